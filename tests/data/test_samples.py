"""From a case to arrays, and the split of a site's cases."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedprompt.config import Annotation, Site, Study, study_from_mapping
from fedprompt.data.cases import Case
from fedprompt.data.samples import load_sample, split_cases
from fedprompt.errors import DataError

STUDY = study_from_mapping({"image": {"size": 64}, "seed": 3}, "study")


def make_case(
    folder: Path, image: np.ndarray, mask: np.ndarray, split: str = "train", name: str = "a"
) -> Case:
    Image.fromarray(image).save(folder / f"{name}.png")
    Image.fromarray(mask).save(folder / f"{name}-mask.png")
    return Case(f"{name}.png", folder / f"{name}.png", folder / f"{name}-mask.png", split, name)


def make_site(**values: object) -> Site:
    return Site.model_validate({"id": "one", **values})


def make_mask() -> np.ndarray:
    y, x = np.mgrid[:96, :128]
    radius = np.hypot(x - 60, y - 50)
    return ((radius < 30).astype(np.uint8) + (radius < 15)).astype(np.uint8)


IMAGE = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)


def test_shapes_types_and_native_truth(tmp_path: Path) -> None:
    mask = make_mask()
    sample = load_sample(make_case(tmp_path, IMAGE, mask), make_site(), STUDY, simulate=False)
    assert (sample.image.shape, sample.image.dtype) == ((3, 64, 64), np.float32)
    assert (sample.annotation.shape, sample.annotation.dtype) == ((64, 64), np.uint8)
    np.testing.assert_array_equal(sample.truth, mask)
    assert sample.spacing == (1.0, 1.0)
    assert sample.image.min() >= 0
    assert sample.image.max() <= 1


def test_resizing_averages_images_and_picks_labels(tmp_path: Path) -> None:
    image = np.zeros((128, 128, 3), dtype=np.uint8)
    image[::2] = 255  # every other row: without antialiasing it would come out black or white
    mask = np.zeros((128, 128), dtype=np.uint8)
    mask[:, 64:] = 2
    sample = load_sample(make_case(tmp_path, image, mask), make_site(), STUDY, simulate=False)
    np.testing.assert_allclose(sample.image[:, 2:-2], 0.5, atol=0.02)
    assert set(np.unique(sample.annotation)) == {0, 2}
    np.testing.assert_array_equal(sample.annotation[:, 32:], 2)


def test_a_constant_image_of_16_bit_is_zeros(tmp_path: Path) -> None:
    case = make_case(tmp_path, np.full((96, 128), 700, dtype=np.uint16), make_mask())
    assert not load_sample(case, make_site(), STUDY, simulate=False).image.any()


def test_a_simulation_draws_train_masks_only(tmp_path: Path) -> None:
    site = make_site(annotation="scribble")
    mask = make_mask()
    for split in ("train", "val", "test"):
        case = make_case(tmp_path, IMAGE, mask, split)
        drawn = (load_sample(case, site, STUDY, simulate=True).annotation == 255).any()
        assert drawn == (split == "train")
    case = make_case(tmp_path, IMAGE, mask)
    assert not (load_sample(case, site, STUDY, simulate=False).annotation == 255).any()


def test_masks_that_are_sparse_already_stay_as_they_are(tmp_path: Path) -> None:
    mask = make_mask()
    mask[:10] = 255
    case = make_case(tmp_path, IMAGE, mask)
    kept = load_sample(case, make_site(annotation="point"), STUDY, simulate=True)
    plain = load_sample(case, make_site(), STUDY, simulate=False)
    np.testing.assert_array_equal(kept.annotation, plain.annotation)


def test_drawing_depends_on_seed_and_case_alone(tmp_path: Path) -> None:
    mask = make_mask()
    site = make_site(annotation=Annotation.POINT.value)
    first, second = (make_case(tmp_path, IMAGE, mask, name=name) for name in ("a", "b"))

    def drawn(case: Case, study: Study) -> np.ndarray:
        return load_sample(case, site, study, simulate=True).annotation

    np.testing.assert_array_equal(drawn(first, STUDY), drawn(first, STUDY))
    assert (drawn(first, STUDY) != drawn(second, STUDY)).any()
    assert (drawn(first, STUDY) != drawn(first, STUDY.changed(seed=4))).any()


def test_another_size_names_both_files(tmp_path: Path) -> None:
    case = make_case(tmp_path, IMAGE, make_mask()[:90])
    with pytest.raises(DataError, match=r"a-mask\.png: expected 128×96 pixels as in .*a\.png, got 128×90"):
        load_sample(case, make_site(), STUDY, simulate=False)


def test_spacing_of_the_file_wins_over_the_site_s(tmp_path: Path) -> None:
    site = make_site(**{"pixel-spacing": [0.3, 0.2]})
    case = make_case(tmp_path, IMAGE, make_mask())
    assert load_sample(case, site, STUDY, simulate=False).spacing == (0.3, 0.2)
    image = nibabel.Nifti1Image(IMAGE[..., 0].T.astype(np.int16), np.eye(4))
    image.header.set_zooms((0.5, 0.25))
    nibabel.save(image, tmp_path / "a.nii")
    case = Case("a.nii", tmp_path / "a.nii", case.mask, "train", "a")
    assert load_sample(case, site, STUDY, simulate=False).spacing == (0.25, 0.5)


def table(patients: list[int], val: int = 0) -> list[Case]:
    cases = [Case(f"{n}", Path(f"{n}"), Path(), "train", f"p{patient}") for n, patient in enumerate(patients)]
    cases += [Case(f"v{n}", Path(f"v{n}"), Path(), "val", f"v{n}") for n in range(val)]
    return [*cases, Case("t", Path("t"), Path(), "test", "t")]


@given(st.lists(st.integers(0, 9), min_size=1), st.floats(0, 0.99), st.integers(0, 9))
def test_validation_takes_whole_patients(patients: list[int], share: float, seed: int) -> None:
    cases = table(patients)
    split = split_cases(cases, share, seed)
    train, val = {case.patient for case in split.train}, {case.patient for case in split.val}
    assert not train & val
    assert train | val == {f"p{patient}" for patient in patients}
    assert train
    assert bool(val) == (share > 0 and len(set(patients)) > 1)
    if val and len(train) > 1:
        assert abs(len(val) - share * len(set(patients))) <= 1
    assert [case.id for case in split.test] == ["t"]
    assert {case.split for case in split.val} <= {"val"}
    assert {case.split for case in split.train} == {"train"}
    again = split_cases(cases[::-1], share, seed)
    assert {case.id for case in again.val} == {case.id for case in split.val}


def test_the_seed_decides_which_patients() -> None:
    cases = table(list(range(20)))
    drawn = {tuple(case.id for case in split_cases(cases, 0.2, seed).val) for seed in range(5)}
    assert len(drawn) > 1


def test_an_own_validation_split_is_kept() -> None:
    split = split_cases(table([1, 2, 3], val=2), 0.5, 0)
    assert [case.id for case in split.val] == ["v0", "v1"]
    assert len(split.train) == 3


LABELLED = study_from_mapping(
    {"task": "classification", "classes": ["mel", "nv", "bkl"], "image": {"size": 64}}, "study"
)


def labelled_case(folder: Path, image: np.ndarray, label: str = "bkl") -> Case:
    Image.fromarray(image).save(folder / "a.png")
    return Case("a.png", folder / "a.png", None, "train", "a", label)


def test_a_labelled_case_has_a_class_number_and_no_mask(tmp_path: Path) -> None:
    site = make_site(**{"pixel-spacing": [0.3, 0.2]})
    sample = load_sample(labelled_case(tmp_path, IMAGE), site, LABELLED, simulate=True)
    assert (sample.label, sample.annotation, sample.truth) == (2, None, None)
    assert sample.spacing == (0.3, 0.2)
    masked = load_sample(make_case(tmp_path, IMAGE, make_mask()), site, STUDY, simulate=False)
    np.testing.assert_array_equal(sample.image, masked.image)
    assert (sample.sha256, masked.label) == (masked.sha256, None)


GREY = np.arange(96 * 128, dtype=np.uint32).reshape(96, 128) % 256  # from 0 to 255


@pytest.mark.parametrize(
    ("image", "same"),
    [
        (np.concatenate([IMAGE, IMAGE[..., :1]], axis=2), IMAGE),
        (GREY.astype(np.uint8), np.repeat(GREY[..., None], 3, axis=2).astype(np.uint8)),
        ((GREY * 200 + 3000).astype(np.uint16), np.repeat(GREY[..., None], 3, axis=2).astype(np.uint8)),
    ],
    ids=["alpha", "one channel", "16-bit grey"],
)
def test_images_of_other_kinds_become_three_channels(
    tmp_path: Path, image: np.ndarray, same: np.ndarray
) -> None:
    got = load_sample(labelled_case(tmp_path, image), make_site(), LABELLED, simulate=False).image
    plain = load_sample(labelled_case(tmp_path, same), make_site(), LABELLED, simulate=False).image
    assert got.shape == (3, 64, 64)
    np.testing.assert_allclose(got, plain, atol=1e-6)


def test_a_label_that_is_no_class_is_named(tmp_path: Path) -> None:
    case = labelled_case(tmp_path, IMAGE, "MEL")
    words = r"cases\.csv: a\.png: label 'MEL' is no class of the study \(mel, nv, bkl\)"
    with pytest.raises(DataError, match=words):
        load_sample(case, make_site(), LABELLED, simulate=False)


def test_a_labelled_case_is_none_for_segmentation(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png: expected a mask"):
        load_sample(labelled_case(tmp_path, IMAGE), make_site(), STUDY, simulate=False)
