"""The drift monitor: quiet where nothing is shifted, sure where something is, and anew with a new domain."""

from __future__ import annotations

import json
from functools import lru_cache

import pytest
import torch
from disc_networks import TinyUNet, TinyViT, darkened, disc_images, disc_network, disc_statistics, reddened
from torch import Tensor, nn

from fedprompt.adaptation.drift import LAYERS, DriftMonitor
from fedprompt.adaptation.layers import LayerStatistics, Moments, WatchedNetwork
from fedprompt.adaptation.statistics import Source

CHANNELS = 24
SOURCE = {
    name: Source(
        mean=torch.linspace(-1, 1, CHANNELS),
        variance=torch.linspace(0.5, 3, CHANNELS),
        between=torch.linspace(0.1, 0.4, CHANNELS),
        between_logs=torch.full((CHANNELS,), 0.2),
    )
    for name in ("first", "second", "third")
}


def drawn(count: int, *, shift: float = 0.0, factor: float = 1.0, seed: int = 0) -> list[LayerStatistics]:
    """Images whose channels vary by themselves; shift in deviations between images, factor of variances."""
    generator = torch.Generator().manual_seed(seed)

    def noise(scale: Tensor) -> Tensor:
        return scale.sqrt() * torch.randn(CHANNELS, generator=generator)

    def one(source: Source) -> Moments:
        mean = source.mean + shift * source.between.sqrt() + noise(source.between)
        within = source.variance - source.between
        return Moments(mean, factor * within * (noise(source.between_logs) - 0.1).exp())

    return [{name: one(source) for name, source in SOURCE.items()} for _ in range(count)]


def followed(monitor: DriftMonitor, images: list[LayerStatistics]) -> tuple[list[float], list[int]]:
    """Trust after every image, and the images with which a new domain was found."""
    trust, restarts = [], []
    for place, image in enumerate(images):
        if monitor.add(image):
            restarts.append(place)
        trust.append(monitor.trust)
    return trust, restarts


@pytest.mark.parametrize("seed", range(8))
def test_a_stream_like_the_source_is_left_alone(seed: int) -> None:
    trust, restarts = followed(DriftMonitor(SOURCE), drawn(200, seed=seed))
    assert max(trust) < 0.05
    assert restarts == []


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("change", [{"shift": 3.0}, {"factor": 6.0}, {"shift": -2.5, "factor": 0.4}])
def test_a_shifted_stream_is_found_at_once_and_for_good(seed: int, change: dict[str, float]) -> None:
    trust, restarts = followed(DriftMonitor(SOURCE), drawn(100, seed=seed, **change))
    assert min(trust[4:]) > 0.9
    assert restarts == []


@pytest.mark.parametrize("seed", range(4))
def test_a_change_of_domain_is_found_within_a_few_images(seed: int) -> None:
    monitor = DriftMonitor(SOURCE)
    parts = [drawn(30, seed=seed), drawn(30, seed=seed, shift=4), drawn(30, seed=seed, shift=-4, factor=3)]
    trust, restarts = followed(monitor, [image for part in parts for image in part])
    assert len(restarts) == 2
    assert 30 <= restarts[0] < 34
    assert 60 <= restarts[1] < 64
    assert max(trust[:30]) < 0.05
    assert min(trust[34:60] + trust[64:]) > 0.6


def test_back_at_the_source_nothing_is_trusted_any_more() -> None:
    monitor = DriftMonitor(SOURCE)
    trust, restarts = followed(monitor, drawn(30, shift=5) + drawn(60, seed=1))
    assert len(restarts) == 1
    assert 30 <= restarts[0] < 34
    assert trust[29] > 0.99
    assert trust[-1] < 0.05


@pytest.mark.parametrize("shift", [4.0, 8.0, 20.0])
def test_a_single_odd_image_is_no_new_domain(shift: float) -> None:
    monitor = DriftMonitor(SOURCE)
    _, restarts = followed(monitor, drawn(30) + drawn(1, shift=shift, seed=1) + drawn(30, seed=2))
    assert restarts == []


def test_a_short_stream_does_not_begin_anew() -> None:
    _, restarts = followed(DriftMonitor(SOURCE), drawn(3) + drawn(3, shift=6))
    assert restarts == []


def test_trust_grows_with_the_shift_from_zero_to_one() -> None:
    found = [DriftMonitor(SOURCE) for _ in range(6)]
    assert found[0].trust == found[0].shift == 0
    for distance, monitor in enumerate(found):
        followed(monitor, drawn(20, shift=float(distance), seed=1))
    for name in ("shift", "trust"):
        values = [getattr(monitor, name) for monitor in found]
        assert values == sorted(values)
    assert found[0].trust < 0.01 < 0.99 < found[-1].trust < 1


@pytest.mark.parametrize("cut", [0, 1, 3, 8, 31, 32, 33])
def test_it_goes_on_from_its_state_bit_by_bit(cut: int) -> None:
    images = drawn(30, shift=1) + drawn(20, shift=5, seed=1)
    whole, half, other = (DriftMonitor(SOURCE) for _ in range(3))
    trust, restarts = followed(whole, images)
    followed(half, images[:cut])
    arrays, metadata = half.state()
    followed(other, drawn(9, seed=5))  # what it was before does not matter
    other.restore(arrays, json.loads(json.dumps(metadata)), torch.device("cpu"))
    found, again = followed(other, images[cut:])
    assert found == trust[cut:]
    assert [cut + place for place in again] == [place for place in restarts if place >= cut]
    mine, theirs = other.state(), whole.state()
    assert mine[1] == theirs[1]
    assert mine[0].keys() == theirs[0].keys()
    assert all((mine[0][name] == theirs[0][name]).all() for name in mine[0])


def test_its_state_does_not_grow_with_the_stream() -> None:
    monitor = DriftMonitor(SOURCE)
    sizes = []
    for image in drawn(300):
        monitor.add(image)
        arrays, metadata = monitor.state()
        sizes.append((sum(array.nbytes for array in arrays.values()), len(metadata)))
    assert len(set(sizes[4:])) == 1


@lru_cache(maxsize=4)
def watched_of(kind: type[nn.Module]) -> tuple[WatchedNetwork, dict[str, Source]]:
    watched = WatchedNetwork(disc_network(kind).module)
    watched.observe(torch.zeros(1, 3, 32, 32))
    kept = {name: Source.of_batch_norm(value) for name, value in watched.batch_norm.items()}
    source = kept or disc_statistics(kind).layers
    return watched, {name: source[name] for name in watched.names[:LAYERS]}


def seen(kind: type[nn.Module], images: Tensor) -> tuple[list[float], list[int]]:
    watched, source = watched_of(kind)
    with torch.no_grad():
        found = [watched.observe(disc_network(kind).normalised(image[None]))[1] for image in images]
    return followed(DriftMonitor(source), found)


@pytest.mark.parametrize("kind", [TinyUNet, TinyViT])
def test_a_network_tells_its_own_domain_from_others(kind: type[nn.Module]) -> None:
    for seed in range(3):
        images = disc_images(40, seed=100 + seed)[0]
        assert seen(kind, images)[0][-1] < 0.05
        assert min(seen(kind, darkened(images))[0][4:]) > 0.9
        assert min(seen(kind, reddened(images))[0][4:]) > 0.9


@pytest.mark.parametrize("kind", [TinyUNet, TinyViT])
@pytest.mark.parametrize("seed", range(3))
def test_a_network_notices_a_change_of_scanner(kind: type[nn.Module], seed: int) -> None:
    images = disc_images(60, seed=200 + seed)[0]
    stream = torch.cat([images[:20], darkened(images[20:40]), reddened(images[40:])])
    trust, restarts = seen(kind, stream)
    assert len(restarts) == 2
    assert 20 <= restarts[0] < 24
    assert 40 <= restarts[1] < 44
    assert trust[26] > 0.5  # images of the old scanner are not taken over


@pytest.mark.parametrize("kind", [TinyUNet, TinyViT])
def test_a_network_finds_no_new_domain_in_its_own(kind: type[nn.Module]) -> None:
    found = [seen(kind, disc_images(60, seed=100 + seed)[0])[1] for seed in range(8)]
    assert found == [[]] * 8


def test_few_images_of_the_own_domain_are_adapted_to() -> None:
    trust = [value for seed in range(8) for value in seen(TinyUNet, disc_images(40, seed=300 + seed)[0])[0]]
    assert sum(value >= 0.05 for value in trust) <= 0.05 * len(trust)
