"""Source statistics: what is collected, merged over sites, written and refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from disc_networks import (
    Grouped,
    LayerNormed,
    TinyUNet,
    TinyViT,
    darkened,
    digest,
    disc_images,
    disc_network,
    disc_statistics,
)
from torch import Tensor, nn

from fedprompt.adaptation import SourceStatistics, collect_statistics, merged
from fedprompt.adaptation.layers import Moments, WatchedNetwork
from fedprompt.adaptation.statistics import LEAST, Source
from fedprompt.artifacts import read_arrays, write_arrays
from fedprompt.errors import DataError


@pytest.mark.parametrize("kind", [TinyUNet, Grouped, LayerNormed, TinyViT])
def test_they_are_those_of_all_positions_of_all_images(kind: type[nn.Module]) -> None:
    network, images = disc_network(kind), disc_images(10, seed=21)[0]
    found = collect_statistics(network, images)
    assert (found.images, found.fingerprint) == (10, network.fingerprint)
    watched = WatchedNetwork(network.module)
    with torch.no_grad():
        together = watched.observe(network.normalised(images))[1]
        alone = [watched.observe(network.normalised(image[None]))[1] for image in images]
    assert list(found.layers) == list(watched.names)
    for name, source in found.layers.items():
        means = torch.stack([one[name].mean for one in alone]).double()
        logs = torch.stack([one[name].variance for one in alone]).double().log()
        expected = (*together[name], means.var(0, unbiased=False), logs.var(0, unbiased=False))
        for mine, theirs in zip(source, expected, strict=True):
            torch.testing.assert_close(mine, theirs.float(), atol=1e-5, rtol=1e-3)


def test_collecting_leaves_the_network_alone_and_takes_any_iterable() -> None:
    network, images = disc_network(Grouped), disc_images(LEAST, seed=21)[0]
    before = digest(network.module)
    first = collect_statistics(network, iter(images))
    assert digest(network.module) == before
    again = collect_statistics(network, list(images))
    for name, source in first.layers.items():
        assert all(torch.equal(a, b) for a, b in zip(source, again.layers[name], strict=True))


def sites() -> list[Tensor]:
    """Images of three sites, one of them with another scanner."""
    return [disc_images(9, seed=1)[0], darkened(disc_images(20, seed=2)[0]), disc_images(12, seed=3)[0]]


@pytest.mark.parametrize("kind", [TinyUNet, TinyViT])
def test_merged_statistics_are_those_of_the_union(kind: type[nn.Module]) -> None:
    network = disc_network(kind)
    parts = [collect_statistics(network, images) for images in sites()]
    whole = collect_statistics(network, torch.cat(sites()))
    found = merged(parts)
    assert (found.images, found.fingerprint) == (41, network.fingerprint)
    assert list(found.layers) == list(whole.layers)
    for name, source in whole.layers.items():
        for field in ("mean", "variance", "between"):
            mine = getattr(found.layers[name], field)
            torch.testing.assert_close(mine, getattr(source, field), atol=1e-5, rtol=1e-3)
        within = torch.stack([part.layers[name].between_logs for part in parts])
        logs = found.layers[name].between_logs
        assert (logs >= within.amin(0) - 1e-6).all()
        assert (logs <= source.between_logs + 1e-6).all()


def test_one_part_stays_what_it_is() -> None:
    part = disc_statistics(TinyViT)
    found = merged([part])
    for name, source in part.layers.items():
        for mine, theirs in zip(found.layers[name], source, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_parts_of_different_networks_are_not_merged() -> None:
    with pytest.raises(DataError, match="expected at least one to merge"):
        merged([])
    one = disc_statistics(TinyViT)
    with pytest.raises(DataError, match="expected those of one network, got"):
        merged([one, replace(one, fingerprint="0" * 64)])


def test_too_few_images_and_images_that_are_not_finite_are_refused() -> None:
    network, images = disc_network(TinyViT), disc_images(LEAST, seed=21)[0]
    with pytest.raises(DataError, match=f"expected at least {LEAST} images, got {LEAST - 1}"):
        collect_statistics(network, images[1:])
    with pytest.raises(DataError, match="expected at least 8 images, got 0"):
        collect_statistics(network, [])
    images[3, 0, 5, 5] = torch.nan
    with pytest.raises(DataError, match="expected finite features"):
        collect_statistics(network, images)


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    saved, path = disc_statistics(TinyViT), tmp_path / "statistics.safetensors"
    saved.save(path)
    found = SourceStatistics.load(path, saved.fingerprint)
    assert (found.images, found.fingerprint) == (saved.images, saved.fingerprint)
    assert list(found.layers) == list(saved.layers)
    for name in saved.layers:
        assert all(torch.equal(a, b) for a, b in zip(found.layers[name], saved.layers[name], strict=True))
    content = path.read_bytes()
    found.save(path)
    assert path.read_bytes() == content
    assert SourceStatistics.load(path).images == saved.images


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    path, other = tmp_path / "statistics.safetensors", disc_network(Grouped).fingerprint
    saved = disc_statistics(TinyViT)
    saved.save(path)
    with pytest.raises(DataError, match=f"network {other[:12]}, got those of {saved.fingerprint[:12]}"):
        SourceStatistics.load(path, other)


def test_missing_cut_changed_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "statistics.safetensors"
    with pytest.raises(DataError, match="no such file"):
        SourceStatistics.load(path)
    disc_statistics(TinyViT).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=str(path)):
        SourceStatistics.load(path)
    path.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    with pytest.raises(DataError, match="does not match its digest"):
        SourceStatistics.load(path)
    write_arrays(path, {"a": np.zeros(3, np.float32)}, {"kind": "something", "schema": 1})
    with pytest.raises(DataError, match="expected source statistics of schema 1"):
        SourceStatistics.load(path)


@pytest.mark.parametrize("damage", ["missing", "nan", "shape", "dtype", "no layers"])
def test_files_that_do_not_hold_whole_statistics_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "statistics.safetensors"
    disc_statistics(TinyViT).save(path)
    arrays, metadata = read_arrays(path)
    name = "variance/norms.1"
    if damage == "missing":
        del arrays[name]
    elif damage == "nan":
        arrays[name][2] = np.nan
    elif damage == "shape":
        arrays[name] = arrays[name][:-1]
    elif damage == "dtype":
        arrays[name] = arrays[name].astype(np.float64)
    else:
        metadata["layers"] = []
    write_arrays(path, arrays, metadata)
    with pytest.raises(DataError, match="expected whole source statistics"):
        SourceStatistics.load(path)


def test_running_statistics_stand_in_for_collected_ones() -> None:
    kept = Moments(torch.tensor([1.0, -2.0]), torch.tensor([4.0, 0.5]))
    source = Source.of_batch_norm(kept)
    assert torch.equal(source.mean, kept.mean)
    assert torch.equal(source.variance, kept.variance)
    assert (source.between < source.variance).all()
    assert torch.equal(source.between / source.variance, torch.full((2,), 0.3))
