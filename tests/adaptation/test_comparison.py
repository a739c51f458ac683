"""Streams that are watched for a report: Dice against the truth, prompts as they were, examples in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedprompt.adaptation.adapter import Adapter
from fedprompt.adaptation.comparison import (
    Labelled,
    Seen,
    examples_of,
    labelled_images,
    line_of,
    spectrum_of,
    watched_stream,
)
from fedprompt.adaptation.network import Network
from fedprompt.data.phantoms import CLASSES, write_phantoms
from fedprompt.prompts.low_frequency import LowFrequencyPrompt


class Brightness(nn.Module):
    """Says foreground where a pixel is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, affine=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = self.norm(images).mean(dim=1, keepdim=True)
        return torch.cat([-bright, bright], dim=1)


def network(size: int = 16) -> Network:
    return Network(Brightness().eval(), ("background", "bright"), (0.5,) * 3, (0.25,) * 3, (size, size))


def labelled(number: int, shift: float = 0.0) -> Labelled:
    """Half the picture bright, and the truth is that half."""
    pixels = torch.full((3, 16, 16), 0.3)
    pixels[:, :, 8:] = 0.7
    truth = np.zeros((16, 16), np.uint8)
    truth[:, 8:] = 1
    return Labelled(f"image-{number}", pixels + shift, truth)


def seen_with(dice: float, like: Seen) -> Seen:
    return Seen(like.adapted, like.mask, dice, None, None)


def test_a_stream_is_scored_against_its_truth() -> None:
    steps: list[None] = []
    images = [labelled(0), labelled(1, 0.3)]  # all bright: half of the mask is wrong
    seen = watched_stream(Adapter(network(), "none"), images, lambda: steps.append(None))
    assert [each.dice for each in seen] == pytest.approx([1.0, 2 / 3])
    assert len(steps) == 2
    row = line_of("plain", "as it is", seen, adapts=False)
    assert row.mean == pytest.approx(5 / 6)
    assert row.accepted == ()
    assert line_of("plain", "as it is", seen, adapts=True).accepted == [False, False]


def test_the_prompt_of_an_image_is_kept_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = Adapter(network(), "none")
    prompt = LowFrequencyPrompt(3, 1)
    monkeypatch.setattr(adapter._method, "prompt", prompt)
    images = [labelled(n) for n in range(3)]
    answer = Adapter(network(), "none")(images[0].pixels)
    gains = iter((0.0, 0.2, 0.4))

    def adapted(self: Adapter, image: torch.Tensor) -> object:
        prompt.log_gain.data.fill_(next(gains))
        return type(answer)(**{**vars(answer), "accepted": True})

    monkeypatch.setattr(Adapter, "__call__", adapted)
    first, second, third = watched_stream(adapter, images)
    assert first.gains is None  # the identity is no prompt
    assert second.gains is not None
    assert third.gains is not None
    assert second.gains == pytest.approx(np.exp(0.2))
    assert third.gains == pytest.approx(np.exp(0.4))
    assert second.prompted is not None
    assert second.prompted.mean() == pytest.approx(0.5 * np.exp(0.2), rel=1e-4)

    training = [images[0].pixels]
    spectrum = spectrum_of(training, images, [first, second, third], 1)
    assert spectrum.stream[:, 0] == pytest.approx(spectrum.training[:, 0])
    assert spectrum.prompted[:, 0] == pytest.approx(0.5 * np.exp(0.2), rel=1e-4)  # the geometric mean
    assert spectrum.prompted[:, 3:] == pytest.approx(spectrum.stream[:, 3:], abs=1e-6)


def test_examples_are_the_best_the_middle_and_the_worst_change() -> None:
    images = [labelled(n) for n in range(5)]
    plain = watched_stream(Adapter(network(), "none"), images)
    before = [seen_with(0.5, each) for each in plain]
    after = [seen_with(dice, each) for dice, each in zip((0.6, 0.2, 0.5, 0.9, 0.55), plain, strict=True)]
    found = examples_of(images, {"a": plain, "b": before, "c": after})
    assert [(each.why, each.case) for each in found] == [
        ("best change", "image-3"),
        ("median", "image-4"),
        ("worst change", "image-1"),
    ]
    assert found[0].dice == {"a": 1.0, "b": 0.5, "c": 0.9}
    assert found[0].image.shape == (16, 16, 3)


def test_all_cases_of_a_site_come_in_the_order_of_its_table(tmp_path: Path) -> None:
    write_phantoms(tmp_path, 2, size=32, limit=2, sites=["ashford"])
    model = Network(Brightness().eval(), CLASSES, (0.5,) * 3, (0.25,) * 3, (24, 24))
    found = labelled_images(tmp_path / "ashford", model)
    lines = (tmp_path / "ashford" / "cases.csv").read_text().splitlines()[1:]
    assert [f"images/{each.name.removeprefix('ashford/')}.png" for each in found] == [
        text.split(",")[0] for text in lines
    ]
    assert found[0].pixels.shape == (3, 24, 24)
    assert found[0].truth.shape == (32, 32)
