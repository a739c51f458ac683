"""Metrics of a classifier over the cases of one split: discrimination, decisions and calibration.

A metric that the cases do not define is left out, never NaN: AUROC needs cases of a class and of others.
MONAI has an AUROC of its own, but it loops over cases in Python and takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["BINS", "auroc", "classification_metrics", "expected_calibration_error"]

BINS = 15


def classification_metrics(
    probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> dict[str, float]:
    """All metrics of one split.

    Args:
        probabilities: (N, C), rows that sum to 1.
        labels: (N,) class numbers.
        classes: C names.

    Returns:
        `auroc` (one class against the rest, mean over the classes for which it is defined) and
        `auroc_<class>`; `balanced_accuracy` (mean recall of the classes that have cases); `macro_f1` (mean
        over the classes that have cases or were predicted); `accuracy`; `ece` (see
        `expected_calibration_error`); `brier` (squared distance of the probabilities to the one-hot label,
        summed over classes: 0 to 2). Nothing where there are no cases.

    Raises:
        ValueError: Shapes or class numbers do not fit, or a probability is not finite.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    labels = np.asarray(labels, dtype=np.int64)
    count = len(classes)
    if labels.ndim != 1 or probabilities.shape != (len(labels), count):
        raise ValueError(
            f"expected probabilities of shape (cases, {count}) and labels of shape (cases,), "
            f"got {probabilities.shape} and {labels.shape}"
        )
    if not np.isfinite(probabilities).all():
        raise ValueError("expected finite probabilities, got NaN or infinity")
    if not np.isin(labels, np.arange(count)).all():
        raise ValueError(f"expected labels from 0 to {count - 1}, got {labels.min()} to {labels.max()}")
    if len(labels) == 0:
        return {}
    one_hot = np.eye(count)[labels]
    confusion = np.bincount(labels * count + probabilities.argmax(axis=1), minlength=count * count)
    confusion = confusion.reshape(count, count)  # rows are labels, columns predictions
    hits, actual, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    here, touched = actual > 0, actual + predicted > 0
    areas = {
        f"auroc_{name}": auroc(probabilities[:, number], labels == number)
        for number, name in enumerate(classes)
        if 0 < actual[number] < len(labels)
    }
    macro = {"auroc": float(np.mean(list(areas.values())))} if areas else {}
    return {
        **macro,
        **areas,
        "balanced_accuracy": float((hits[here] / actual[here]).mean()),
        "macro_f1": float((2 * hits[touched] / (actual + predicted)[touched]).mean()),
        "accuracy": float(hits.sum() / len(labels)),
        "ece": expected_calibration_error(probabilities, labels),
        "brier": float(((probabilities - one_hot) ** 2).sum(axis=1).mean()),
    }


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive case scores above a negative one, ties counted half (Mann-Whitney U).

    Args:
        scores: (N,).
        positive: bool (N,), with both values in it.
    """
    _, place, tied = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(tied) - (tied - 1) / 2)[place]  # from 1, the mean rank of those that are equal
    positives = int(positive.sum())
    above = ranks[positive].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(scores) - positives)))


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean gap between confidence and accuracy of the predicted class (Guo et al., ICML 2017).

    Confidences lie in 15 bins of equal width, each open below and closed above; gaps are weighted by cases.

    Args:
        probabilities: (N, C).
        labels: (N,) class numbers, N at least 1.
    """
    confidence = probabilities.max(axis=1)
    surplus = confidence - (probabilities.argmax(axis=1) == labels)
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    return float(np.abs(np.bincount(bins, weights=surplus, minlength=BINS)).sum() / len(labels))
