"""A camera that changed: what each part of a shift does, and a site's folder written again."""

from __future__ import annotations

import filecmp
from pathlib import Path

import numpy as np
import pytest

from fedprompt.data.cases import read_cases
from fedprompt.data.images import read_picture
from fedprompt.data.phantoms import write_phantoms
from fedprompt.data.shifts import CameraShift, shifted, write_shifted_site

GREY = np.full((20, 30, 3), 0.5, np.float32)


def one(image: np.ndarray, seed: int = 0, **shift: float) -> np.ndarray:
    return shifted(image, CameraShift(**shift), np.random.default_rng(seed))


def test_no_shift_changes_nothing() -> None:
    image = np.random.default_rng(1).random((8, 9, 3)).astype("f4")
    assert np.allclose(one(image), image, atol=1e-7)


def test_warm_light_is_redder_and_less_blue() -> None:
    red, green, blue = one(GREY, warmth=0.2).mean(axis=(0, 1))
    assert 0.58 < red < 0.62
    assert green == pytest.approx(0.5)
    assert 0.38 < blue < 0.42


def test_haze_takes_its_share_of_the_contrast_and_leaves_middle_grey() -> None:
    steps = np.linspace(0, 1, 11, dtype=np.float32)[:, None, None].repeat(3, axis=2)
    seen = one(steps, haze=0.5)
    assert 0.42 < np.ptp(seen) < 0.58
    assert seen[5] == pytest.approx(0.5)
    assert (np.diff(seen[:, 0, 0]) > 0).all()


@pytest.mark.parametrize(("direction", "axis", "sign"), [(0.0, 1, 1), (np.pi, 1, -1), (np.pi / 2, 0, 1)])
def test_uneven_light_comes_from_its_direction(direction: float, axis: int, sign: int) -> None:
    planes = one(GREY, unevenness=0.4, direction=direction)[..., 0]
    first, last = np.take(planes, 0, axis).mean(), np.take(planes, -1, axis).mean()
    assert sign * (last - first) > 0.2
    assert planes.mean() == pytest.approx(0.5, abs=1e-6)


def test_values_stay_in_range_and_a_seed_decides_what_differs() -> None:
    image = np.random.default_rng(2).random((16, 16, 3)).astype("f4")
    strong = {"warmth": 0.9, "haze": 0.1, "unevenness": 0.9}
    found = one(image, **strong)
    assert found.dtype == np.float32
    assert 0 <= found.min() <= found.max() <= 1
    assert np.array_equal(found, one(image, **strong))
    assert not np.allclose(found, one(image, 1, **strong), atol=1e-3)


def test_a_shift_or_an_image_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="haze: expected 0 to less than 1, got 1"):
        CameraShift(haze=1.0)
    with pytest.raises(ValueError, match=r"expected \(H, W, 3\)"):
        one(np.zeros((4, 4), np.float32))


def test_a_site_is_written_again_with_the_same_cases_and_masks(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "all", 1, size=32, limit=2, sites=["dunmore"])
    source = tmp_path / "all" / "dunmore"
    shift = CameraShift(warmth=0.3, haze=0.5, unevenness=0.5)
    for name in ("one", "two"):
        write_shifted_site(source, tmp_path / name, shift, 7)
    before, after = read_cases(source), read_cases(tmp_path / "one")
    assert [(c.id, c.split, c.patient) for c in after] == [(c.id, c.split, c.patient) for c in before]
    files = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()]
    assert filecmp.cmpfiles(tmp_path / "one", tmp_path / "two", files, shallow=False)[0] == files
    changed = filecmp.cmpfiles(source, tmp_path / "one", files, shallow=False)[1]
    assert sorted(changed) == sorted(case.id for case in before)
    for old, new in zip(before, after, strict=True):
        found, was = read_picture(new.image).array, read_picture(old.image).array
        assert found.std() < was.std()
