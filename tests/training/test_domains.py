"""Pseudo-domains: found where styles differ, equal for a seed, sane where there is nothing to find."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedprompt.training.domains import adapter_loss, pseudo_domains
from fedprompt.training.views import View


def test_styles_that_differ_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=90)
    centres = rng.normal(size=(3, 40)) * 3
    found = pseudo_domains(centres[truth] + rng.normal(size=(90, 40)), 3, seed=1)
    pairs = set(zip(truth.tolist(), found.tolist(), strict=True))
    assert len(pairs) == 3  # each of the three is one cluster


def test_a_seed_decides_and_the_scale_of_a_feature_does_not() -> None:
    styles = np.random.default_rng(1).normal(size=(30, 6)).astype(np.float32)
    scaled = styles * np.array([1, 1e4, 1, 1e-3, 1, 1], dtype=np.float32)
    np.testing.assert_array_equal(pseudo_domains(styles, 3, 5), pseudo_domains(styles, 3, 5))
    np.testing.assert_array_equal(pseudo_domains(styles, 3, 5), pseudo_domains(scaled, 3, 5))


@pytest.mark.parametrize(
    ("styles", "count"),
    [(np.ones((5, 4)), 3), (np.ones((1, 4)), 3), (np.random.default_rng(2).normal(size=(2, 4)), 5)],
)
def test_few_or_equal_images_have_few_domains(styles: np.ndarray, count: int) -> None:
    found = pseudo_domains(styles, count, seed=0)
    assert found.shape == (len(styles),)
    assert 0 <= found.min() <= found.max() < min(count, len(styles))


def test_the_adapter_is_taught_the_domain_of_each_view() -> None:
    views = [View((), torch.tensor(0), torch.zeros(0), domain) for domain in (1, 0)]
    right = torch.tensor([[0.0, 9.0], [9.0, 0.0]])
    assert adapter_loss(right, views) < 0.001 < 8 < adapter_loss(-right, views)
