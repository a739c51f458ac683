"""Running statistics of a stream: exact sums, the weight of what is no accident, going on from arrays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedprompt.adaptation.layers import Moments
from fedprompt.adaptation.statistics import Source
from fedprompt.adaptation.stream_statistics import StreamStatistics

CHANNELS = 12
SOURCE = Source(
    mean=torch.linspace(-1, 1, CHANNELS),
    variance=torch.linspace(0.5, 3, CHANNELS),
    between=torch.linspace(0.1, 0.4, CHANNELS),
    between_logs=torch.full((CHANNELS,), 0.2),
)


def drawn(count: int, *, shift: float = 0.0, factor: float = 1.0, seed: int = 0) -> list[Moments]:
    """Statistics of images whose channels vary by themselves; shift in deviations between images."""
    generator = torch.Generator().manual_seed(seed)

    def noise(scale: Tensor) -> Tensor:
        return scale.sqrt() * torch.randn(CHANNELS, generator=generator)

    within = SOURCE.variance - SOURCE.between
    return [
        Moments(
            SOURCE.mean + shift * SOURCE.between.sqrt() + noise(SOURCE.between),
            factor * within * (noise(SOURCE.between_logs) - 0.1).exp(),
        )
        for _ in range(count)
    ]


def stream_of(images: list[Moments]) -> StreamStatistics:
    stream = StreamStatistics(SOURCE)
    for image in images:
        stream.add(image)
    return stream


def unmoved(stream: StreamStatistics) -> bool:
    """Normalises with the source's statistics, bit by bit."""
    found = stream.blended()
    return torch.equal(found.mean, SOURCE.mean) and torch.equal(found.variance, SOURCE.variance)


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_within_the_horizon_they_are_plain_means_and_variances(count: int) -> None:
    images = drawn(count, shift=1)
    found = stream_of(images).arrays()
    means = torch.stack([image.mean for image in images])
    logs = torch.stack([(image.variance + 1e-3 * SOURCE.variance).log() for image in images])
    expected = {
        "mean": means.mean(0),
        "within": torch.stack([image.variance for image in images]).mean(0),
        "log": logs.mean(0),
        "mean_spread": means.var(0, unbiased=False),
        "log_spread": logs.var(0, unbiased=False),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(torch.from_numpy(found[name]), value, atol=1e-5, rtol=1e-4)


def test_beyond_the_horizon_old_images_fade() -> None:
    stream = stream_of(drawn(64, shift=0) + drawn(400, shift=6, seed=1))
    moved = (torch.from_numpy(stream.arrays()["mean"]) - SOURCE.mean) / SOURCE.between.sqrt()
    assert float(moved.mean()) == pytest.approx(6, abs=0.2)
    assert stream.images == 464


def test_a_stream_without_images_says_nothing() -> None:
    stream = StreamStatistics(SOURCE)
    assert stream.weight() == stream.shift() == 0
    assert unmoved(stream)
    assert stream.arrays() == {}


def test_the_source_itself_has_no_shift_and_is_left_as_it_is() -> None:
    within = SOURCE.variance - SOURCE.between
    stream = StreamStatistics(SOURCE)
    for sign in (1, -1) * 20:  # images whose means vary as those of the source
        stream.add(Moments(SOURCE.mean + sign * SOURCE.between.sqrt(), within))
    assert stream.weight() == stream.shift() == 0
    assert unmoved(stream)


@pytest.mark.parametrize("seed", range(5))
def test_weight_and_shift_grow_with_the_distance_and_with_certainty(seed: int) -> None:
    near, far = stream_of(drawn(20, shift=1, seed=seed)), stream_of(drawn(20, shift=4, seed=seed))
    assert stream_of(drawn(20, seed=seed)).weight() < 0.2
    assert 0.5 < near.weight() < far.weight() < 1
    assert near.shift() < far.shift()
    assert far.shift() == pytest.approx(16, rel=0.4)
    few, many = stream_of(drawn(1, shift=4, seed=seed)), stream_of(drawn(40, shift=4, seed=seed))
    assert few.weight() < many.weight()


def test_a_change_of_spread_alone_is_a_shift() -> None:
    plain, spread = stream_of(drawn(20)), stream_of(drawn(20, factor=8.0))
    assert plain.shift() < 0.3 < 3 < spread.shift()


def test_normalisation_follows_a_stream_that_is_far_away() -> None:
    stream = stream_of(drawn(40, shift=8, factor=4.0))
    found = stream.blended()
    weight = stream.weight()
    assert weight > 0.95
    arrays = {name: torch.from_numpy(value) for name, value in stream.arrays().items()}
    torch.testing.assert_close(found.mean, SOURCE.mean + weight * (arrays["mean"] - SOURCE.mean))
    ratio = (arrays["within"] + arrays["mean_spread"]) / SOURCE.variance
    torch.testing.assert_close(found.variance, SOURCE.variance * ratio**weight, atol=1e-4, rtol=1e-4)


def test_channels_that_are_dead_in_the_source_keep_their_variance_and_have_no_say() -> None:
    dead = torch.zeros(CHANNELS)
    dead[0] = 1
    source = Source(*(torch.where(dead > 0, torch.zeros(()), value) for value in SOURCE))
    stream = StreamStatistics(source)
    for image in drawn(20):
        stream.add(Moments(image.mean + 50 * dead, image.variance))
    assert stream.shift() < 0.3
    far = StreamStatistics(source)
    for image in drawn(20, shift=8):
        far.add(image)
    found = far.blended()
    assert float(found.variance[0]) == 0
    assert float(found.variance[1]) != float(source.variance[1])
    assert torch.isfinite(found.variance).all()


@pytest.mark.parametrize("seed", range(5))
def test_recent_images_are_near_their_own_stream_and_far_from_another(seed: int) -> None:
    images = drawn(24, shift=2, seed=seed)
    stream = stream_of(images[:20])
    assert stream.distance(images[20:]) < 0.5
    assert stream.distance(drawn(4, shift=6, seed=seed + 50)) > 5


def test_it_goes_on_from_arrays_bit_by_bit() -> None:
    images = drawn(30, shift=1)
    whole, half = stream_of(images), stream_of(images[:11])
    other = StreamStatistics(SOURCE)
    other.restore(half.images, half.arrays(), torch.device("cpu"))
    for image in images[11:]:
        other.add(image)
    assert other.images == whole.images
    expected = whole.arrays()
    assert all((array == expected[name]).all() for name, array in other.arrays().items())
    assert other.weight() == whole.weight()


def test_arrays_that_were_given_away_do_not_change_with_the_stream() -> None:
    images = drawn(12)
    stream = stream_of(images[:6])
    kept = stream.arrays()
    before = {name: array.copy() for name, array in kept.items()}
    for image in images[6:]:
        stream.add(image)
    assert all((kept[name] == before[name]).all() for name in kept)
