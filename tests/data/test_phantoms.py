"""The embedded data set: complete, the same every time, and different from site to site."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedprompt.config import Annotation, Site, Study
from fedprompt.data.cases import read_cases
from fedprompt.data.federation import read_federation
from fedprompt.data.phantoms import CLASSES, write_phantoms
from fedprompt.data.samples import load_sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, 7, limit=6)
    return folder


@pytest.fixture(scope="module")
def sites(folder: Path) -> list[Site]:
    return read_federation(folder, Study())


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_four_sites_with_a_different_kind_of_annotation_each(sites: list[Site]) -> None:
    assert {site.id: site.annotation for site in sites} == {
        "ashford": Annotation.SCRIBBLE,
        "brookside": Annotation.POINT,
        "cedarhill": Annotation.BLOCK,
        "dunmore": Annotation.BOX,
    }
    assert Study().classes == CLASSES


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, folder: Path) -> None:
    write_phantoms(tmp_path / "again", 7, limit=6)
    assert content(tmp_path / "again") == content(folder)
    write_phantoms(tmp_path / "other", 8, limit=6)
    other = content(tmp_path / "other")
    images = [name for name in content(folder) if "/images/" in name and name in other]
    assert images
    assert all(other[name] != content(folder)[name] for name in images)


def test_cases_of_one_patient_stay_in_one_split(sites: list[Site]) -> None:
    for site in sites:
        splits: dict[str, set[str]] = {}
        for case in read_cases(site.data):
            splits.setdefault(case.patient, set()).add(case.split)
        assert all(len(found) == 1 for found in splits.values())
        assert set.union(*splits.values()) == {"train", "val", "test"}


def test_some_patients_have_two_images(sites: list[Site]) -> None:
    cases = [case for site in sites for case in read_cases(site.data)]
    assert len({case.patient for case in cases}) < len(cases)


def test_masks_hold_a_cup_inside_a_rim(sites: list[Site]) -> None:
    for site in sites:
        for case in read_cases(site.data):
            image, mask = np.asarray(Image.open(case.image)), np.asarray(Image.open(case.mask))
            assert image.shape == (128, 128, 3)
            assert mask.shape == (128, 128)
            assert set(np.unique(mask)) == {0, 1, 2}
            beside_cup = np.zeros_like(mask, dtype=bool)
            for axis in (0, 1):
                for step in (-1, 1):
                    beside_cup |= np.roll(mask == 2, step, axis)
            assert not (beside_cup & (mask == 0)).any()
            assert 0.1 < (mask == 2).sum() / (mask > 0).sum() < 0.7


def test_sites_look_different_and_cases_do_not_all_look_alike(sites: list[Site]) -> None:
    looks = {}
    for site in sites:
        images = np.stack([np.asarray(Image.open(case.image)) for case in read_cases(site.data)]) / 255
        looks[site.id] = images.mean(axis=(0, 1, 2))
        assert images.mean(axis=(1, 2, 3)).std() > 0.005
    names = sorted(looks)
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            assert np.abs(looks[first] - looks[second]).max() > 0.08, (first, second)


def test_the_brightest_pixels_are_not_the_disc(sites: list[Site]) -> None:
    """A threshold must not solve the task: compare the disc with as many of the brightest pixels."""
    overlaps = []
    for site in sites:
        for case in read_cases(site.data):
            brightness = np.asarray(Image.open(case.image).convert("L")).astype(float)
            disc = np.asarray(Image.open(case.mask)) > 0
            brightest = brightness >= np.sort(brightness, axis=None)[-disc.sum()]
            overlaps.append(2 * (brightest & disc).sum() / (brightest.sum() + disc.sum()))
    assert np.mean(overlaps) < 0.85


def test_they_load_as_samples(sites: list[Site]) -> None:
    for site in sites:
        train = [case for case in read_cases(site.data) if case.split == "train"]
        sample = load_sample(train[0], site, Study(), simulate=True)
        assert set(np.unique(sample.annotation)) == {0, 1, 2, 255}


def test_size_and_numbers_of_cases(tmp_path: Path) -> None:
    write_phantoms(tmp_path, 0, size=32)
    counts = {}
    for site in read_federation(tmp_path, Study()):
        cases = read_cases(site.data)
        assert Image.open(cases[0].image).size == (32, 32)
        counts[site.id] = tuple(sum(c.split == split for c in cases) for split in ("train", "val", "test"))
    assert counts == {
        "ashford": (6, 8, 16),
        "brookside": (8, 8, 16),
        "cedarhill": (5, 8, 16),
        "dunmore": (6, 8, 16),
    }
