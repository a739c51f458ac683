"""Logit adjustment against a case-by-case reference, and what it is for: rare and absent classes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fedprompt.training.classification_losses import log_prior, logit_adjusted_cross_entropy


def reference(
    logits: list[list[float]], targets: list[list[float]], prior: list[float], strength: float
) -> float:
    total = 0.0
    for row, target in zip(logits, targets, strict=True):
        weights = [math.exp(value) * math.exp(p) ** strength for value, p in zip(row, prior, strict=True)]
        shares = [weight / sum(weights) for weight in weights]
        total -= sum(t * math.log(share) for t, share in zip(target, shares, strict=True))
    return total / len(logits)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(2, 5), st.sampled_from([0.0, 0.5, 1.0, 1.7]), st.integers(0, 999))
def test_hard_and_soft_targets_equal_the_reference(
    batch: int, classes: int, strength: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, classes, generator=generator)
    labels = torch.randint(classes, (batch,), generator=generator)
    soft = torch.rand(batch, classes, generator=generator)
    soft /= soft.sum(dim=1, keepdim=True)
    prior = log_prior(torch.randint(classes, (9,), generator=generator), classes)
    for given_targets, targets in ((labels, F.one_hot(labels, classes)), (soft, soft)):
        loss = logit_adjusted_cross_entropy(logits, given_targets, prior, strength)
        expected = reference(logits.tolist(), targets.tolist(), prior.tolist(), strength)
        assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_strength_0_is_plain_cross_entropy_even_with_an_absent_class() -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0], [0.1, 0.2, -0.4]])
    labels = torch.tensor([1, 0])
    loss = logit_adjusted_cross_entropy(logits, labels, log_prior([0, 1], 3), 0.0)
    assert torch.equal(loss, F.cross_entropy(logits, labels))


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), max_size=200))
def test_the_prior_is_a_distribution_and_an_absent_class_comes_last(labels: list[int]) -> None:
    prior = log_prior(labels, 4)
    assert prior.dtype == torch.float32
    assert prior.exp().sum().item() == pytest.approx(1, abs=1e-5)
    present = sorted(set(labels))
    absent = sorted({0, 1, 2, 3} - set(labels))
    if present and absent:
        assert prior[absent].max() < prior[present].min()
        assert prior[absent].exp().min().item() == pytest.approx(0.5 / (len(labels) + len(absent) / 2))
    for first in present:
        for second in present:
            ratio = (prior[first] - prior[second]).exp().item()
            assert ratio == pytest.approx(labels.count(first) / labels.count(second), rel=1e-4)


def test_tensors_and_lists_are_the_same_labels() -> None:
    assert torch.equal(log_prior(torch.tensor([0, 2, 2]), 3), log_prior([0, 2, 2], 3))


def test_an_absent_class_is_hardly_pushed_down() -> None:
    pushes = {}
    for strength in (0.0, 1.0):
        logits = torch.zeros(24, 3, requires_grad=True)
        labels = torch.tensor([0] * 14 + [1] * 10)
        logit_adjusted_cross_entropy(logits, labels, log_prior(labels, 3), strength).backward()
        pushes[strength] = logits.grad[:, 2].sum().item()
    assert pushes[0.0] == pytest.approx(1 / 3)
    assert 0 < pushes[1.0] < 0.03


def test_equal_logits_are_the_optimum_where_the_classes_look_alike() -> None:
    """With nothing to tell the classes apart, the plain loss learns their shares and this one nothing."""
    labels = torch.tensor([0] * 30 + [1] * 9 + [2] * 3)
    for strength, gap in ((1.0, 0.0), (0.0, math.log(10))):
        bias = torch.zeros(3, requires_grad=True)
        optimiser = torch.optim.LBFGS([bias], max_iter=60)

        def closure() -> torch.Tensor:
            optimiser.zero_grad()  # noqa: B023 - called at once
            loss = logit_adjusted_cross_entropy(
                bias.expand(len(labels), 3),  # noqa: B023
                labels,
                log_prior(labels, 3),
                strength,  # noqa: B023
            )
            loss.backward()
            return loss

        optimiser.step(closure)
        assert (bias[0] - bias[2]).item() == pytest.approx(gap, abs=1e-2)
