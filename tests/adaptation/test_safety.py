"""When an adapted prediction is not reported, and when a stream is better left alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedprompt.adaptation.safety import (
    CertaintyGate,
    certainty,
    entropy,
    foreground,
    most_probable,
    objection,
)


def prediction(share: float, sure: float = 0.95, classes: int = 2, side: int = 40) -> Tensor:
    """(1, classes, side, side): class 1 on a share of the pixels, each with probability `sure`."""
    count = round(share * side**2)
    flat = torch.full((classes, side**2), (1 - sure) / (classes - 1))
    flat[1, :count] = sure
    flat[0, count:] = sure
    return flat.view(1, classes, side, side)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_entropy_is_a_share_of_that_of_even_odds(classes: int) -> None:
    even = torch.full((1, classes, 4, 4), 1 / classes)
    certain = torch.zeros(1, classes, 4, 4)
    certain[:, 1] = 1
    both = entropy(torch.cat([even, certain]))
    assert both.tolist() == pytest.approx([1, 0], abs=1e-6)
    rest = 0.1 / (classes - 1)
    by_hand = -(0.9 * math.log(0.9) + 0.1 * math.log(rest)) / math.log(classes)
    assert float(entropy(prediction(0.3, 0.9, classes))) == pytest.approx(by_hand, rel=1e-4)


def test_foreground_is_what_is_not_background() -> None:
    assert float(foreground(prediction(0.25))) == pytest.approx(0.25)
    third = torch.zeros(1, 3, 2, 2)
    third[0, 0] = 0.2
    third[0, 2, 0, 0] = 0.7
    assert float(foreground(third)) == 0.25


@pytest.mark.parametrize(
    ("plain", "found"),
    [
        (prediction(0.2), prediction(0.2)),
        (prediction(0.2), prediction(0.4)),
        (prediction(0.2), prediction(0.02)),
        (prediction(0.0), prediction(0.3)),
        (prediction(0.0), prediction(0.0)),
        (prediction(0.95), prediction(0.97)),
        (prediction(0.2, 0.7), prediction(0.2, 0.95)),
        (prediction(0.2, 0.99), prediction(0.2, 0.97)),
        (prediction(0.2, 0.9), prediction(0.0, 0.99)),  # nothing there after all, and surer of it
        (prediction(0.0005, 0.9), prediction(0.0, 0.9)),  # a speck goes
    ],
)
def test_nothing_speaks_against_ordinary_changes(plain: Tensor, found: Tensor) -> None:
    assert objection(plain, found) == ""


@pytest.mark.parametrize(
    ("plain", "found", "reason"),
    [
        (prediction(0.2), prediction(0.2).fill_(torch.nan), "is not finite"),
        (prediction(0.2), prediction(0.2).fill_(torch.inf), "is not finite"),
        (prediction(0.2, 0.99), prediction(0.2, 0.75), "entropy rises from 0.08 to 0.81"),
        (prediction(0.2), prediction(0.93), "the foreground floods the image, from 20% to 93%"),
        (prediction(0.2, 0.9), prediction(0.0, 0.88), "the foreground vanishes, from 20.0%"),
    ],
)
def test_what_went_wrong_is_said(plain: Tensor, found: Tensor, reason: str) -> None:
    assert reason in objection(plain, found)


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_the_most_probable_class_is_the_first_of_the_highest(classes: int) -> None:
    drawn = torch.rand(2, classes, 9, 11, generator=torch.Generator().manual_seed(0))
    drawn[0, :, 2] = drawn[0, :1, 2]  # a row of equals
    chosen, highest = most_probable(drawn)
    assert torch.equal(highest, drawn.amax(1))
    assert torch.equal(chosen.long(), drawn.argmax(1))
    assert not chosen[0, 2].any()


def test_certainty_is_that_of_the_foreground() -> None:
    assert certainty(prediction(0.2, 0.8)) == pytest.approx(0.8, rel=1e-5)
    assert certainty(prediction(0.0)) is None


def gate_after(images: list[tuple[Tensor, Tensor]]) -> bool:
    gate, is_open = CertaintyGate(), True
    for plain, adapted in images:
        is_open = gate.add(plain, adapted)
    return is_open


def test_the_gate_is_open_until_a_stream_speaks_against_adaptation() -> None:
    worse, better = (
        (prediction(0.2, 0.95), prediction(0.2, 0.85)),
        (prediction(0.2, 0.8), prediction(0.2, 0.9)),
    )
    assert gate_after([better] * 40)
    assert gate_after([(prediction(0.2), prediction(0.2))] * 40)
    assert not gate_after([worse] * 20)
    assert gate_after([better] * 20 + [worse])
    assert not gate_after([better] * 5 + [worse] * 40)
    assert gate_after([worse] * 10 + [better] * 40)  # and opens again


def test_images_that_are_empty_both_ways_say_nothing() -> None:
    gate = CertaintyGate()
    for _ in range(30):
        assert gate.add(prediction(0.0, 0.99), prediction(0.0, 0.6))
    assert (gate.images, gate.gain) == (0, 0)


def test_a_foreground_that_is_surely_there_speaks_for_adaptation_and_an_unsure_one_against_it() -> None:
    empty = prediction(0.0)
    assert gate_after([(empty, prediction(0.2, 0.95))] * 20)
    assert not gate_after([(empty, prediction(0.2, 0.55))] * 20)
    assert not gate_after([(prediction(0.2, 0.95), empty)] * 20)


def test_a_prediction_that_is_not_finite_leaves_the_gate_usable() -> None:
    gate = CertaintyGate()
    gate.add(prediction(0.2), prediction(0.2).fill_(torch.nan))
    assert math.isfinite(gate.gain)
    assert gate.add(prediction(0.2, 0.8), prediction(0.2, 0.9))
