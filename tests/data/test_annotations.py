"""Drawn annotations: right where they label, everything present labelled, like the kind they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import ndimage

from fedprompt.config import Annotation
from fedprompt.data.annotations import draw_annotation

EXACT = [Annotation.FULL, Annotation.SCRIBBLE, Annotation.POINT, Annotation.BLOCK]
SPARSE = [kind for kind in Annotation if kind is not Annotation.FULL]


def fundus(size: int = 128, columns: int | None = None) -> np.ndarray:
    """A disc (rim 1, cup 2) beside the middle."""
    columns = columns or size
    y, x = (np.mgrid[:size, :columns] + 0.5) / size
    disc = np.hypot((x - 0.55) / 0.2, (y - 0.45) / 0.22)
    cup = np.hypot((x - 0.57) / 0.1, (y - 0.46) / 0.11)
    return np.where(cup < 1, 2, disc < 1).astype(np.uint8)


def drawn(mask: np.ndarray, kind: Annotation, seed: int = 0) -> np.ndarray:
    return draw_annotation(mask, kind, np.random.default_rng(seed))


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """Masks of all sorts: noise, thin lines, tiny and touching objects, one value, with and without 255."""
    shape = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    values = st.sampled_from([0, 1, 2, 255])
    if draw(st.booleans()):
        return draw(npst.arrays(np.uint8, shape, elements=values))
    mask = np.full(shape, draw(st.sampled_from([0, 0, 0, 1])), dtype=np.uint8)
    for _ in range(draw(st.integers(0, 5))):
        top, left = draw(st.integers(0, shape[0] - 1)), draw(st.integers(0, shape[1] - 1))
        height, width = draw(st.sampled_from([1, 2, 5, 20])), draw(st.sampled_from([1, 2, 5, 20]))
        mask[top : top + height, left : left + width] = draw(values)
    return mask


@settings(deadline=None, max_examples=80)
@given(masks(), st.sampled_from(list(Annotation)), st.integers(0, 5))
def test_every_class_is_labelled_and_labels_are_right(mask: np.ndarray, kind: Annotation, seed: int) -> None:
    annotation = drawn(mask, kind, seed)
    assert annotation.shape == mask.shape
    assert annotation.dtype == np.uint8
    labelled = annotation != 255
    assert not labelled[mask == 255].any()
    assert set(np.unique(annotation[labelled])) <= set(np.unique(mask))
    for value in set(np.unique(mask)) - {255}:
        assert ((annotation == value) & (mask == value)).any()
    wrong = labelled & (annotation != mask)
    if kind in EXACT:
        assert not wrong.any()
    if kind is Annotation.BOX:
        assert not (wrong & (annotation == 0)).any()
    np.testing.assert_array_equal(annotation, drawn(mask, kind, seed))


@pytest.mark.parametrize("kind", SPARSE)
def test_an_empty_mask_gets_background_only(kind: Annotation) -> None:
    annotation = drawn(np.zeros((50, 70), dtype=np.uint8), kind)
    assert set(np.unique(annotation)) <= {0, 255}
    assert (annotation == 0).any()


@pytest.mark.parametrize("kind", SPARSE)
def test_one_case_is_drawn_differently_by_other_seeds(kind: Annotation) -> None:
    others = [drawn(fundus(), kind, seed) for seed in range(3)]
    assert all((others[0] == other).all() for other in others) == (kind is Annotation.BOX)


@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("seed", range(3))
def test_sparse_kinds_label_little_and_sizes_scale_with_the_image(size: int, seed: int) -> None:
    mask = fundus(size)
    bounds = {
        Annotation.SCRIBBLE: (0.004, 0.25),
        Annotation.NOISY_SCRIBBLE: (0.002, 0.25),
        Annotation.POINT: (0.0005, 0.06),
        Annotation.BLOCK: (0.05, 0.2),
    }
    for kind, (least, most) in bounds.items():
        annotation = drawn(mask, kind, seed)
        for value in range(3):
            share = ((annotation == value) & (mask == value)).sum() / (mask == value).sum()
            assert least <= share <= most, (kind, value)


def test_a_point_has_a_radius_of_3_at_256() -> None:
    mask = np.zeros((256, 256), dtype=np.uint8)
    mask[60:200, 50:190] = 1
    assert (drawn(mask, Annotation.POINT) == 1).sum() == 29  # pixels within 3 of the centre
    assert (drawn(mask[::2, ::2], Annotation.POINT) == 1).sum() == 9  # within 1.5


def test_every_object_gets_a_point_but_no_speck() -> None:
    mask = np.zeros((256, 256), dtype=np.uint8)
    for row in (20, 100, 180):
        mask[row : row + 50, row : row + 50] = 1
    mask[250:252, 5:7] = 1  # 0.05 % of the class
    annotation = drawn(mask, Annotation.POINT)
    objects, count = ndimage.label(mask)
    pointed = [(annotation[objects == n] == 1).any() for n in range(1, count + 1)]
    assert sorted(pointed) == [False, True, True, True]
    assert ndimage.label(annotation == 0, structure=np.ones((3, 3)))[1] in (3, 4, 5)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(3, 60), st.integers(3, 60))
@example(seed=0, height=4, width=6)  # a rounded share of 24 pixels can be one
@example(seed=5, height=4, width=6)
def test_blocks_cover_5_to_20_percent(seed: int, height: int, width: int) -> None:
    assume(height * width >= 20)
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[2 : 2 + height, 3 : 3 + width] = 1
    annotation = drawn(mask, Annotation.BLOCK, seed)
    for value in range(2):
        assert 0.05 <= (annotation == value).sum() / (mask == value).sum() <= 0.2


def test_scribbles_keep_off_the_border_and_are_lines() -> None:
    mask = fundus(256)
    for seed in range(4):
        annotation = drawn(mask, Annotation.SCRIBBLE, seed)
        for value in range(3):
            stroke = annotation == value
            assert ndimage.label(stroke, structure=np.ones((3, 3)))[1] == 1
            thickness = 2 * ndimage.distance_transform_edt(np.pad(stroke, 1)).max()
            extent = max(np.ptp(axis) for axis in np.nonzero(stroke))
            assert thickness <= 9
            assert extent >= 1.5 * thickness


def test_noisy_scribbles_err_but_only_near_borders() -> None:
    mask = fundus(256)
    wrong, gaps = 0, 0
    for seed in range(12):
        annotation = drawn(mask, Annotation.NOISY_SCRIBBLE, seed)
        for value in range(3):
            distance = ndimage.distance_transform_edt(mask != value)
            assert distance[annotation == value].max(initial=0) <= 10
            wrong += int((distance[annotation == value] > 0).sum())
            gaps += ndimage.label(annotation == value, structure=np.ones((3, 3)))[1] > 1
    assert wrong > 0
    assert gaps > 12


def test_a_box_labels_outside_ring_and_core_of_one_object() -> None:
    y, x = np.mgrid[:100, :100]
    mask = (np.hypot((x - 50) / 30, (y - 40) / 20) < 1).astype(np.uint8)
    annotation = drawn(mask, Annotation.BOX)
    rows, columns = np.nonzero(mask)
    box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    outside = np.ones(mask.shape, dtype=bool)
    outside[box] = False
    np.testing.assert_array_equal(annotation == 0, outside)
    core = annotation == 1
    assert not (core & (mask == 0)).any()
    assert 0.3 < core.sum() / mask.sum() < 0.42


def test_a_box_around_a_box_keeps_rim_and_cup_apart() -> None:
    mask = fundus(256)
    annotation = drawn(mask, Annotation.BOX)
    assert not ((annotation != 255) & (annotation != mask)).any()
    for value in (1, 2):
        assert (annotation == value).sum() > 0.25 * (mask == value).sum()


def test_boxes_of_separate_objects_do_not_clear_each_other() -> None:
    mask = np.zeros((80, 80), dtype=np.uint8)
    mask[10:30, 10:30] = 1
    mask[40:70, 40:70] = 1
    annotation = drawn(mask, Annotation.BOX)
    assert annotation[20, 20] == 1
    assert annotation[55, 55] == 1
    assert annotation[35, 35] == 0


@pytest.mark.parametrize("kind", SPARSE)
def test_large_masks_are_right_too_and_quick(kind: Annotation) -> None:
    mask = fundus(1500, 2100)
    annotation = drawn(mask, kind)
    assert annotation.shape == mask.shape
    if kind is not Annotation.NOISY_SCRIBBLE:
        assert not ((annotation != 255) & (annotation != mask)).any()
    assert all(((annotation == value) & (mask == value)).any() for value in range(3))
