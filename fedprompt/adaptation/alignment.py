"""How far the statistics of an image's features lie from those of the source."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedprompt.adaptation.layers import LayerStatistics
from fedprompt.adaptation.statistics import Source

__all__ = ["alignment_loss", "living"]

_DEAD = 1e-3  # share of a layer's mean source variance below which a channel says nothing


def alignment_loss(observed: LayerStatistics, source: Mapping[str, Source]) -> Tensor:
    """Mean over layers and channels of the squared distance of two Gaussians, in source units.

    ((mu - mu_s)^2 + (sigma - sigma_s)^2) / sigma_s^2: the squared Wasserstein distance of a channel's values
    over the source's variance, 0 when aligned. Every channel counts alike, whatever its scale.

    Args:
        observed: Statistics of one image by layer, with gradient; layers without a source are left out.
        source: Statistics of the source by layer.
    """
    parts = []
    for name, found in observed.items():
        if name in source:
            target = source[name]
            alive = living(target)
            scale = target.variance.clamp(min=1e-12)
            moved = (found.mean - target.mean).square()
            spread = ((found.variance + 1e-12).sqrt() - scale.sqrt()).square()
            parts.append((((moved + spread) / scale) * alive).sum() / alive.sum())
    if not parts:
        raise ValueError("expected statistics of at least one layer that has a source, got none")
    return torch.stack(parts).mean()


def living(source: Source) -> Tensor:
    """1 for channels that vary in the source, 0 for dead ones: float (C,), at least one is 1."""
    variance = source.variance
    alive = variance > _DEAD * variance.mean()
    return (alive | (variance == variance.max())).float()
