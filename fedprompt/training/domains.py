"""Pseudo-domains: the styles of a site's images in clusters, and the loss by which an adapter tells them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor
from torch.nn import functional as F

from fedprompt.training.views import View

__all__ = ["adapter_loss", "pseudo_domains"]

_COMPONENTS = 16  # of the style, before it is clustered
_RESTARTS = 8


def pseudo_domains(styles: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Cluster (N,) of every style vector (N, D): k-means on its first principal components.

    Args:
        styles: float (N, D).
        count: Number of clusters; fewer where there are fewer images.
        seed: Decides the starts; the best of several is taken.
    """
    count = min(count, len(styles))
    spread = styles.std(axis=0)
    standard = (styles - styles.mean(axis=0)) / np.where(spread > 1e-6, spread, 1)
    left, scales, _ = np.linalg.svd(standard, full_matrices=False)
    points = (left * scales)[:, :_COMPONENTS].astype(np.float64)
    if count == 1 or not np.ptp(points, axis=0).any():
        return np.zeros(len(styles), dtype=np.int64)
    best, found = np.inf, np.zeros(len(styles), dtype=np.int64)
    for start in range(_RESTARTS):
        rng = np.random.default_rng([seed, start])
        centres, labels = kmeans2(points, count, minit="++", seed=rng, missing="warn")
        inertia = float(np.square(points - centres[labels]).sum())
        if inertia < best:
            best, found = inertia, labels.astype(np.int64)
    return found


def adapter_loss(domains: Tensor, views: Sequence[View]) -> Tensor:
    """Cross-entropy of the adapter's logits (B, K) against the pseudo-domains of the views."""
    own = torch.tensor([view.domain for view in views], device=domains.device)
    return F.cross_entropy(domains.float(), own)
