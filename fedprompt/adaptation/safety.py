"""Label-free sanity of an adapted prediction."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["entropy", "foreground", "objection"]

_ENTROPY_FACTOR = 2.0
_ENTROPY_SLACK = 0.1  # of the entropy of even odds
_FLOOD = 0.9  # of the pixels
_SPECK = 0.001  # of the pixels: less may well be noise


def entropy(probabilities: Tensor) -> Tensor:
    """Mean entropy per image (B,) of (B, classes, H, W), as a share of that of even odds, 0 to 1."""
    logs = probabilities.clamp(min=1e-12).log()
    return -(probabilities * logs).sum(dim=1).mean(dim=(1, 2)) / math.log(probabilities.shape[1])


def foreground(probabilities: Tensor) -> Tensor:
    """Share (B,) of the pixels whose most probable class is not the background."""
    return (probabilities.argmax(dim=1) > 0).float().mean(dim=(1, 2))


def objection(plain: Tensor, found: Tensor) -> str:
    """Why an adapted prediction must not be reported; empty where nothing speaks against it.

    Args:
        plain: Probabilities (1, classes, H, W) of the frozen network.
        found: Those with adaptation.
    """
    if not bool(torch.isfinite(found).all()):
        return "the adapted prediction is not finite"
    before, after = float(entropy(plain)), float(entropy(found))
    if after > _ENTROPY_FACTOR * before + _ENTROPY_SLACK:
        return f"the prediction's entropy rises from {before:.2f} to {after:.2f}"
    was, now = float(foreground(plain)), float(foreground(found))
    if now > _FLOOD > was:
        return f"the foreground floods the image, from {was:.0%} to {now:.0%}"
    if now == 0 and was >= _SPECK and after >= before:
        return f"the foreground vanishes, from {was:.1%}, without more certainty"
    return ""
