"""Dice, HD95 and ASSD of one case at native resolution, with a stated rule for empty masks.

A class that neither prediction nor truth has counts as found: Dice 1, distances 0. A class that only one of
them has counts as missed: Dice 0, distances equal to the diagonal of the image. Pixels whose truth is
unlabelled are left out of the prediction too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fedprompt.training.losses import UNLABELLED

__all__ = ["dice_per_class", "mean_metrics", "segmentation_metrics"]

Mask = np.ndarray


def dice_per_class(prediction: Mask, truth: Mask, classes: int) -> np.ndarray:
    """Dice (classes - 1,) of every class but the background, masks (H, W)."""
    labelled = truth != UNLABELLED
    joint = np.bincount(
        prediction[labelled].astype(np.int64) * classes + truth[labelled].astype(np.int64),
        minlength=classes * classes,
    ).reshape(classes, classes)
    overlap = np.diag(joint).astype(np.float64)
    total = joint.sum(axis=0) + joint.sum(axis=1)
    dice = np.where(total > 0, 2 * overlap / np.maximum(total, 1), 1.0)
    return np.asarray(dice[1:])


def segmentation_metrics(
    prediction: Mask, truth: Mask, classes: Sequence[str], spacing: tuple[float, float]
) -> dict[str, float]:
    """Dice, HD95 and ASSD of one case: means over the foreground classes and `<metric>_<class>`.

    Args:
        prediction: Class numbers (H, W).
        truth: Class numbers (H, W), 255 unlabelled.
        classes: Names, background first.
        spacing: Row and column distance of pixels, in mm (or pixels where it is not known).
    """
    prediction = np.where(truth == UNLABELLED, 0, prediction)
    truth = np.where(truth == UNLABELLED, 0, truth)
    dice = dice_per_class(prediction, truth, len(classes))
    surface = [
        _surface_distances(prediction == number, truth == number, spacing)
        for number in range(1, len(classes))
    ]
    hd95, assd = np.array(surface).T
    metrics: dict[str, float] = {}
    for name, values in (("dice", dice), ("hd95", hd95), ("assd", assd)):
        metrics[name] = float(np.mean(values))
        if len(values) > 1:
            metrics |= {f"{name}_{c}": float(v) for c, v in zip(classes[1:], values, strict=True)}
    return metrics


def mean_metrics(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of every metric over cases; all rows have the same keys."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} if rows else {}


def _surface_distances(prediction: Mask, truth: Mask, spacing: tuple[float, float]) -> tuple[float, float]:
    if not prediction.any() and not truth.any():
        return 0.0, 0.0
    if not prediction.any() or not truth.any():
        diagonal = float(np.hypot(truth.shape[0] * spacing[0], truth.shape[1] * spacing[1]))
        return diagonal, diagonal
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance  # slow to import
    from monai.metrics.surface_distance import compute_average_surface_distance

    pair = (_one_hot(prediction), _one_hot(truth))
    hd95 = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=list(spacing))
    assd = compute_average_surface_distance(
        *pair, include_background=True, symmetric=True, spacing=list(spacing)
    )
    return float(hd95), float(assd)


def _one_hot(mask: Mask) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask))[None, None].float()
