"""Synthetic shapes: deterministic, well-formed, and as varied as they claim."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation, label

from fedprompt.backbones.shapes import shape_batch, shape_image


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.sampled_from([32, 64, 96]))
def test_an_image_is_in_range_and_its_inner_regions_lie_inside_outer_ones(seed: int, size: int) -> None:
    image, mask = shape_image(np.random.default_rng(seed), size)
    assert image.shape == (3, size, size)
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert image.max() <= 1
    assert mask.shape == (size, size)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 1, 2}
    touched = binary_dilation(mask == 2)
    assert not (touched & (mask == 0)).any()


def test_the_generator_decides_everything() -> None:
    first = shape_batch(np.random.default_rng(7), 4, 48)
    second = shape_batch(np.random.default_rng(7), 4, 48)
    other = shape_batch(np.random.default_rng(8), 4, 48)
    assert first[0].tobytes() == second[0].tobytes()
    assert first[1].tobytes() == second[1].tobytes()
    assert first[0].tobytes() != other[0].tobytes()


def test_blobs_vary_in_number_size_and_contrast() -> None:
    images, masks = shape_batch(np.random.default_rng(0), 150, 48)
    counts = [label(mask > 0)[1] for mask in masks]
    shares = [(mask > 0).mean() for mask in masks if (mask > 0).any()]
    assert {0, 1, 2} <= set(counts)
    assert counts.count(1) > 75
    assert min(shares) < 0.03
    assert max(shares) > 0.35
    grey = images.mean(axis=1)
    steps = [g[m > 0].mean() - g[m == 0].mean() for g, m in zip(grey, masks, strict=True) if (m > 0).any()]
    assert np.mean(np.array(steps) > 0) == pytest.approx(0.5, abs=0.2)
    assert np.mean(np.abs(steps) < 0.03) > 0.03


def test_inner_regions_are_mostly_there_but_not_always() -> None:
    _, masks = shape_batch(np.random.default_rng(1), 120, 48)
    with_outer = [mask for mask in masks if (mask == 1).any()]
    share = np.mean([(mask == 2).any() for mask in with_outer])
    assert 0.7 < share < 1.0
