"""The embedded data set: complete, the same every time, and different from site to site."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedprompt.config import Annotation, Site, Study
from fedprompt.data.cases import read_cases
from fedprompt.data.federation import read_federation
from fedprompt.data.phantoms import CLASSES, LESION_CLASSES, write_phantoms
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


LESIONS = Study(task="classification")


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lesions")
    write_phantoms(folder, 7, size=64, task="classification")
    return folder


def labels(folder: Path) -> dict[str, dict[str, Counter[str | None]]]:
    """How often each class comes, per site and split."""
    counts: dict[str, dict[str, Counter[str | None]]] = {}
    for site in read_federation(folder, LESIONS):
        splits = counts.setdefault(site.id, {split: Counter() for split in ("train", "val", "test")})
        for case in read_cases(site.data, "classification"):
            splits[case.split][case.label] += 1
    return counts


def test_lesions_come_the_same_again_and_differ_by_seed(tmp_path: Path) -> None:
    for name, seed in (("first", 7), ("again", 7), ("other", 8)):
        write_phantoms(tmp_path / name, seed, size=32, limit=2, task="classification")
    first, again, other = (content(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    images = [name for name in first if name.endswith(".png") and name in other]
    assert images
    assert all(first[name] != other[name] for name in images)


def test_every_site_is_tested_on_all_classes_and_one_trains_without_keratosis(lesions: Path) -> None:
    counts = labels(lesions)
    assert set(counts) == {"ashford", "brookside", "cedarhill", "dunmore"}
    for splits in counts.values():
        assert [splits[split].total() for split in ("train", "val", "test")] == [24, 8, 24]
        assert set(splits["test"]) == set(LESION_CLASSES) == set(LESIONS.classes)
    assert [site for site, splits in counts.items() if splits["train"]["keratosis"] == 0] == ["dunmore"]
    leading = {splits["train"].most_common(1)[0][0] for splits in counts.values()}
    assert leading == set(LESION_CLASSES)


def test_a_few_lesions_per_site_still_train_every_class(tmp_path: Path) -> None:
    write_phantoms(tmp_path, 0, size=32, limit=1, task="classification")
    trained = sum((splits["train"] for splits in labels(tmp_path).values()), Counter())
    assert trained.total() == 4
    assert set(trained) == set(LESION_CLASSES)


def test_lesions_of_one_patient_stay_in_one_split(lesions: Path) -> None:
    cases = [
        case for site in read_federation(lesions, LESIONS) for case in read_cases(site.data, "classification")
    ]
    assert 0.7 * len(cases) < len({case.patient for case in cases}) < len(cases)
    assert len({(case.patient, case.split) for case in cases}) == len({case.patient for case in cases})
    assert load_sample(cases[0], Site(id="ashford"), LESIONS, simulate=True).label in (0, 1, 2)


def test_classes_differ_inside_every_site_and_sites_differ_in_colour(lesions: Path) -> None:
    """The middle of keratoses is less red than that of nevi, but less so than sites are apart."""
    looks = {}
    for site in read_federation(lesions, LESIONS):
        by_class: dict[str | None, list[np.ndarray]] = {}
        for case in read_cases(site.data, "classification"):
            picture = np.asarray(Image.open(case.image)).astype(float) / 255
            assert picture.shape == (64, 64, 3)
            by_class.setdefault(case.label, []).append(picture[24:40, 24:40].mean(axis=(0, 1)))
        middle = {name: np.mean(pictures, axis=0) for name, pictures in by_class.items()}
        assert middle["melanoma"].sum() < middle["nevus"].sum() - 0.05, site.id
        assert np.ptp(middle["keratosis"]) < np.ptp(middle["nevus"]), site.id
        looks[site.id] = middle["nevus"]
    names = sorted(looks)
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            assert np.abs(looks[first] - looks[second]).max() > 0.04, (first, second)


def test_some_sites_alone_have_the_bytes_that_they_have_among_all(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "all", 4, size=32, limit=1)
    write_phantoms(tmp_path / "some", 4, size=32, limit=1, sites=["cedarhill"])
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["cedarhill"]
    for path in (tmp_path / "some").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "all" / path.relative_to(tmp_path / "some")).read_bytes()
