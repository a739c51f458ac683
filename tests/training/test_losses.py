"""Losses against slow loops, and the cases in which the reference code breaks."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprompt.training import losses


def random_logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_partial_cross_entropy_is_the_mean_over_labelled_pixels() -> None:
    logits = random_logits(0, 2, 3, 4, 5)
    annotation = torch.randint(0, 3, (2, 4, 5), generator=torch.Generator().manual_seed(1))
    annotation[torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(2)) < 0.6] = 255
    expected, count = 0.0, 0
    for b in range(2):
        for y in range(4):
            for x in range(5):
                if annotation[b, y, x] != 255:
                    expected -= float(logits[b, :, y, x].log_softmax(0)[annotation[b, y, x]])
                    count += 1
    assert float(losses.partial_cross_entropy(logits, annotation)) == pytest.approx(
        expected / count, rel=1e-5
    )


def test_partial_cross_entropy_without_any_label_is_zero_with_zero_gradient() -> None:
    logits = random_logits(0, 1, 2, 3, 3).requires_grad_()
    loss = losses.partial_cross_entropy(logits, torch.full((1, 3, 3), 255))
    loss.backward()
    assert float(loss) == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_soft_dice_of_the_truth_is_zero_and_of_its_opposite_is_near_one() -> None:
    target = torch.tensor([[[0, 0, 1], [1, 1, 0]]])
    exact = torch.nn.functional.one_hot(target, 2).movedim(-1, 1).float()
    assert float(losses.soft_dice(exact, target)) == pytest.approx(0, abs=1e-6)
    assert float(losses.soft_dice(1 - exact, target)) == pytest.approx(1, abs=1e-4)


def slow_crf(p: torch.Tensor, guide: torch.Tensor, radius: int, sigma_xy: float, sigma_rgb: float) -> float:
    batch, _, height, width = p.shape
    energy = 0.0
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                for v in range(max(0, y - radius), min(height, y + radius + 1)):
                    for u in range(max(0, x - radius), min(width, x + radius + 1)):
                        if (v, u) == (y, x):
                            continue
                        colour = float((guide[b, :, y, x] - guide[b, :, v, u]).square().sum()) / sigma_rgb**2
                        near = ((y - v) ** 2 + (x - u) ** 2) / sigma_xy**2
                        agree = float((p[b, :, y, x] * p[b, :, v, u]).sum())
                        energy += math.exp(-0.5 * (colour + near)) * (1 - agree)
    return energy / (batch * height * width)


@pytest.mark.parametrize("shape", [(5, 7), (3, 3), (2, 6)])
def test_gated_crf_equals_a_loop_over_all_pairs(shape: tuple[int, int]) -> None:
    probabilities = random_logits(3, 2, 3, *shape).softmax(1)
    guide = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(4))
    kernels = losses.crf_kernels(guide, radius=2, sigma_xy=3.0, sigma_rgb=0.5)
    fast = float(losses.gated_crf(probabilities, kernels, radius=2))
    assert fast == pytest.approx(slow_crf(probabilities, guide, 2, 3.0, 0.5), rel=1e-4)


def test_gated_crf_of_a_sure_and_uniform_prediction_is_zero_also_at_the_border() -> None:
    probabilities = torch.zeros(1, 2, 6, 6)
    probabilities[:, 1] = 1
    kernels = losses.crf_kernels(torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)))
    assert float(losses.gated_crf(probabilities, kernels)) == pytest.approx(0, abs=1e-6)


@given(st.integers(0, 10_000), st.floats(0.01, 1))
def test_prompt_contrast_is_bounded_and_finite(seed: int, margin: float) -> None:
    fused, peers = 100 * random_logits(seed, 4, 8), 100 * random_logits(seed + 1, 4, 8)
    loss = float(losses.prompt_contrast(fused, peers, margin))
    assert 0 <= loss <= margin + 1e-6


def test_prompt_contrast_pushes_equal_features_apart_up_to_the_margin_only() -> None:
    same = random_logits(0, 2, 8)
    assert float(losses.prompt_contrast(same, same, 0.1)) == pytest.approx(0.1, abs=1e-6)
    assert float(losses.prompt_contrast(same, -same, 0.1)) == 0


def test_mixed_pseudo_labels_follow_the_branch_with_the_larger_share() -> None:
    main = torch.tensor([0.9, 0.1]).view(1, 2, 1, 1)
    auxiliary = torch.tensor([0.2, 0.8]).view(1, 2, 1, 1)
    assert int(losses.mixed_pseudo_labels(main, auxiliary, 0.9)) == 0
    assert int(losses.mixed_pseudo_labels(main, auxiliary, 0.1)) == 1
