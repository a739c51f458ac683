"""Losses for weak annotations, as pure functions of tensors (after FedLPPA, IEEE TMI 2024)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "UNLABELLED",
    "crf_kernels",
    "gated_crf",
    "mixed_pseudo_labels",
    "partial_cross_entropy",
    "prompt_contrast",
    "soft_dice",
]

UNLABELLED = 255


def partial_cross_entropy(logits: Tensor, annotation: Tensor) -> Tensor:
    """Cross-entropy over labelled pixels; 0 (with a gradient of 0) when a batch has none.

    Args:
        logits: (B, C, H, W).
        annotation: (B, H, W) int64, class numbers or 255.
    """
    labelled = (annotation != UNLABELLED).sum()
    total = F.cross_entropy(logits, annotation, ignore_index=UNLABELLED, reduction="sum")
    return total / labelled.clamp(min=1)


def soft_dice(probabilities: Tensor, target: Tensor) -> Tensor:
    """1 - Dice of probabilities (B, C, H, W) against labels (B, H, W), mean over classes.

    Sums run over the batch, so that an image without a class does not count as a miss.
    """
    one_hot = F.one_hot(target, probabilities.shape[1]).movedim(-1, 1).to(probabilities.dtype)
    dims = (0, 2, 3)
    overlap = (probabilities * one_hot).sum(dims)
    total = probabilities.square().sum(dims) + one_hot.sum(dims)
    return (1 - (2 * overlap + 1e-5) / (total + 1e-5)).mean()


def mixed_pseudo_labels(main: Tensor, auxiliary: Tensor, share: float) -> Tensor:
    """Labels (B, H, W) from `share` of the main and the rest of the auxiliary probabilities, no gradient."""
    with torch.no_grad():
        return (share * main + (1 - share) * auxiliary).argmax(dim=1)


def prompt_contrast(fused: Tensor, fused_peers: Tensor, margin: float = 0.1) -> Tensor:
    """Pushes pooled fused features (B, w) away from those with the peers' row: max(0, margin - (1 - cos)).

    Bounded in [0, margin + 1]; the reference's KL divergence on raw features is not bounded and yields NaN.
    """
    distance = 1 - F.cosine_similarity(fused, fused_peers.detach(), dim=1)
    return F.relu(margin - distance).mean()


def crf_kernels(
    guide: Tensor, *, radius: int = 3, sigma_xy: float = 3.0, sigma_rgb: float = 0.1
) -> list[Tensor]:
    """Gaussian affinities of every pixel to its neighbours in half a window (the other half mirrors it).

    Args:
        guide: Images (B, 3, H, W) in 0 to 1.
        radius: Of the window, in pixels of the guide.
        sigma_xy: Of the distance, in pixels of the guide.
        sigma_rgb: Of the colour difference.

    Returns:
        One map (B, 1, H - |dy|, W - |dx|) per offset of `_half_window(radius)`.
    """
    kernels = []
    for dy, dx in _half_window(radius):
        a, b = _shifted(guide, dy, dx)
        colour = (a - b).square().sum(dim=1, keepdim=True) / sigma_rgb**2
        kernels.append(torch.exp(-0.5 * (colour + (dy * dy + dx * dx) / sigma_xy**2)))
    return kernels


def gated_crf(probabilities: Tensor, kernels: list[Tensor], *, radius: int = 3) -> Tensor:
    """Potts energy of neighbours that look alike but are labelled apart (gated CRF, arXiv 1906.04651).

    Neighbours outside the image do not count; the reference pads with zeros and adds a constant there.

    Args:
        probabilities: (B, C, H, W) at the guide's resolution.
        kernels: What `crf_kernels` gave for the same images and radius.
        radius: Of the window.
    """
    energy = probabilities.new_zeros(())
    for (dy, dx), kernel in zip(_half_window(radius), kernels, strict=True):
        a, b = _shifted(probabilities, dy, dx)
        energy = energy + (kernel * (1 - (a * b).sum(dim=1, keepdim=True))).sum()
    batch, _, height, width = probabilities.shape
    return 2 * energy / (batch * height * width)


def _half_window(radius: int) -> list[tuple[int, int]]:
    span = range(-radius, radius + 1)
    return [(dy, dx) for dy in span for dx in span if (dy, dx) > (0, 0)]


def _shifted(x: Tensor, dy: int, dx: int) -> tuple[Tensor, Tensor]:
    """Views of `x` (B, C, H, W) whose pixels are (dy, dx) apart; dy is never negative."""
    height, width = x.shape[-2:]
    here = x[..., : height - dy, max(0, -dx) : width - max(0, dx)]
    there = x[..., dy:, max(0, dx) : width - max(0, -dx)]
    return here, there
