"""Augmented views: the same every time, image and annotation together."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprompt.data.augmentation import augmented

IMAGE = np.random.default_rng(0).random((3, 64, 64), dtype=np.float32)
LABELS = np.random.default_rng(1).choice(np.array([0, 1, 2, 255], dtype=np.uint8), (64, 64))


def test_view_0_is_the_case_itself() -> None:
    image, labels = augmented(IMAGE, LABELS, 0, seed=5)
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(labels, LABELS)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 1000), st.integers(0, 2**31 - 1))
def test_views_are_images_and_come_out_the_same_again(view: int, seed: int) -> None:
    before = IMAGE.copy(), LABELS.copy()
    image, labels = augmented(IMAGE, LABELS, view, seed)
    assert (image.shape, image.dtype) == (IMAGE.shape, np.float32)
    assert (labels.shape, labels.dtype) == (LABELS.shape, np.uint8)
    assert image.min() >= 0
    assert image.max() <= 1
    assert set(np.unique(labels)) <= {0, 1, 2, 255}
    for first, second in zip((image, labels), augmented(IMAGE, LABELS, view, seed), strict=True):
        np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(IMAGE, before[0])
    np.testing.assert_array_equal(LABELS, before[1])


def test_views_seeds_and_images_differ() -> None:
    first, _ = augmented(IMAGE, LABELS, 1, seed=0)
    for other in (
        augmented(IMAGE, LABELS, 2, seed=0)[0],
        augmented(IMAGE, LABELS, 1, seed=1)[0],
        augmented(IMAGE[::-1], LABELS, 1, seed=0)[0][::-1],
    ):
        assert np.abs(first - other).mean() > 0.05


def test_the_annotation_moves_with_the_image() -> None:
    y, x = np.mgrid[:64, :64]
    labels = ((np.abs(x - 25) < 12) & (np.abs(y - 36) < 7)).astype(np.uint8)
    image = np.repeat(labels[None].astype(np.float32), 3, axis=0)
    agreement, same = [], []
    for view in range(1, 40):
        moved, moved_labels = augmented(image, labels, view, seed=0)
        inside = moved_labels != 255
        bright = moved[1] > (moved[1].min() + moved[1].max()) / 2
        agreement.append((bright == (moved_labels == 1))[inside].mean())
        same.append((moved_labels == labels).mean())
    assert min(agreement) > 0.97
    assert np.mean(same) < 0.95


def test_what_comes_from_outside_is_unlabelled_but_not_black() -> None:
    image = np.full((3, 64, 64), 0.8, dtype=np.float32)
    labels = np.ones((64, 64), dtype=np.uint8)
    outside = 0
    for view in range(1, 20):
        moved, moved_labels = augmented(image, labels, view, seed=2)
        assert set(np.unique(moved_labels)) <= {1, 255}
        outside += int((moved_labels == 255).sum())
        assert np.ptp(moved) < 1e-5
        assert moved.min() > 0.3
    assert outside > 0
