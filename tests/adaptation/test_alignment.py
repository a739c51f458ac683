"""The alignment loss against plain loops; what has no say in it."""

from __future__ import annotations

import math

import pytest
import torch

from fedprompt.adaptation.alignment import alignment_loss, living
from fedprompt.adaptation.layers import Moments
from fedprompt.adaptation.statistics import Source


def source_of(mean: list[float], variance: list[float]) -> Source:
    return Source.of_batch_norm(Moments(torch.tensor(mean), torch.tensor(variance)))


SOURCE = {"a": source_of([0.0, 2.0, -1.0], [1.0, 4.0, 0.25]), "b": source_of([5.0], [9.0])}
IMAGE = {
    "a": Moments(torch.tensor([0.5, 1.0, -1.0]), torch.tensor([2.0, 1.0, 0.3])),
    "b": Moments(torch.tensor([4.0]), torch.tensor([9.0])),
}


def test_it_is_the_mean_squared_distance_of_gaussians_in_source_units() -> None:
    layers = []
    for name, source in SOURCE.items():
        total = 0.0
        for channel in range(len(source.mean)):
            mean, variance = (float(value[channel]) for value in IMAGE[name])
            mu, square = float(source.mean[channel]), float(source.variance[channel])
            total += ((mean - mu) ** 2 + (math.sqrt(variance) - math.sqrt(square)) ** 2) / square
        layers.append(total / len(source.mean))
    assert float(alignment_loss(IMAGE, SOURCE)) == pytest.approx(sum(layers) / 2, rel=1e-5)


def test_it_is_zero_where_aligned_and_grows_with_the_distance() -> None:
    def at(share: float) -> float:
        moved = {
            name: Moments(source.mean + share, source.variance * (1 + share))
            for name, source in SOURCE.items()
        }
        return float(alignment_loss(moved, SOURCE))

    assert at(0) == pytest.approx(0, abs=1e-9)
    assert at(0) < at(0.1) < at(0.5) < at(2)


def test_the_scale_of_a_channel_does_not_matter() -> None:
    factor = torch.tensor([3.0, 0.5, 1.5])
    image = {"a": Moments(IMAGE["a"].mean * factor, IMAGE["a"].variance * factor**2)}
    kept = SOURCE["a"]
    source = {"a": kept._replace(mean=kept.mean * factor, variance=kept.variance * factor**2)}
    expected = alignment_loss({"a": IMAGE["a"]}, {"a": SOURCE["a"]})
    assert float(alignment_loss(image, source)) == pytest.approx(float(expected), rel=1e-5)


def test_channels_that_are_dead_in_the_source_say_nothing() -> None:
    source = {"a": source_of([0.0, 0.0, 0.0], [1.0, 0.0, 1e-5])}
    image = Moments(
        torch.tensor([0.5, 7.0, 3.0]),
        torch.tensor([1.0, 2.0, 5.0]),
    )
    assert living(source["a"]).tolist() == [1, 0, 0]
    assert float(alignment_loss({"a": image}, source)) == pytest.approx(0.25, rel=1e-5)
    assert living(source_of([0.0, 0.0], [0.0, 0.0])).tolist() == [1, 1]


def test_layers_without_a_source_are_left_out_and_none_at_all_is_an_error() -> None:
    more = {**IMAGE, "unknown": Moments(torch.full((4,), 1e6), torch.ones(4))}
    assert float(alignment_loss(more, SOURCE)) == float(alignment_loss(IMAGE, SOURCE))
    with pytest.raises(ValueError, match="at least one layer that has a source"):
        alignment_loss({"unknown": IMAGE["a"]}, SOURCE)


def test_its_gradient_is_finite_for_a_constant_channel() -> None:
    mean, variance = (torch.zeros(3, requires_grad=True) for _ in range(2))
    loss = alignment_loss({"a": Moments(mean, variance)}, {"a": SOURCE["a"]})
    for gradient in torch.autograd.grad(loss, (mean, variance)):
        assert torch.isfinite(gradient).all()
