"""Metrics of a classifier against pairwise and case-by-case references, and where they are not defined."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprompt.training.classification_metrics import (
    auroc,
    classification_metrics,
    expected_calibration_error,
)

CLASSES = ("mel", "nv", "bkl", "vasc")


@st.composite
def outcomes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities in coarse steps, so that ties and equal bins are common, and labels."""
    count, classes = draw(st.integers(1, 25)), draw(st.integers(2, 4))
    weights = draw(
        st.lists(
            st.lists(st.integers(0, 4), min_size=classes, max_size=classes).filter(any),
            min_size=count,
            max_size=count,
        )
    )
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    array = np.array(weights, dtype=np.float32)
    return array / array.sum(axis=1, keepdims=True), np.array(labels)


def pairwise(scores: list[float], positive: list[bool]) -> float | None:
    above = [score for score, p in zip(scores, positive, strict=True) if p]
    below = [score for score, p in zip(scores, positive, strict=True) if not p]
    pairs = [(a, b) for a in above for b in below]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs) if pairs else None


def reference(probabilities: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> dict[str, float]:
    """One case and one class at a time."""
    rows, truth = probabilities.tolist(), labels.tolist()
    guesses = [row.index(max(row)) for row in rows]
    areas = {
        f"auroc_{name}": pairwise([row[c] for row in rows], [t == c for t in truth])
        for c, name in enumerate(classes)
    }
    found: dict[str, float] = {name: area for name, area in areas.items() if area is not None}
    if found:
        found["auroc"] = sum(found.values()) / len(found)
    recalls, scores = [], []
    for c in range(len(classes)):
        true = sum(t == c == g for t, g in zip(truth, guesses, strict=True))
        wrong = sum((t == c) != (g == c) for t, g in zip(truth, guesses, strict=True))
        if c in truth:
            recalls.append(true / truth.count(c))
        if c in truth or c in guesses:
            scores.append(true / (true + wrong / 2))
    gap = 0.0
    for number in range(15):
        held = [i for i, row in enumerate(rows) if number / 15 < max(row) <= (number + 1) / 15]
        gap += abs(sum(max(rows[i]) for i in held) - sum(truth[i] == guesses[i] for i in held))
    squares = [
        sum((p - (t == c)) ** 2 for c, p in enumerate(row)) for row, t in zip(rows, truth, strict=True)
    ]
    return found | {
        "balanced_accuracy": sum(recalls) / len(recalls),
        "macro_f1": sum(scores) / len(scores),
        "accuracy": sum(t == g for t, g in zip(truth, guesses, strict=True)) / len(truth),
        "ece": gap / len(rows),
        "brier": sum(squares) / len(squares),
    }


@settings(deadline=None, max_examples=150)
@given(outcomes())
def test_all_metrics_equal_a_slow_reference(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = drawn
    classes = CLASSES[: probabilities.shape[1]]
    metrics = classification_metrics(probabilities, labels, classes)
    assert metrics == pytest.approx(reference(probabilities, labels, classes), abs=1e-6)
    assert all(type(value) is float and math.isfinite(value) for value in metrics.values())


def test_auroc_of_large_samples_and_of_ties() -> None:
    rng = np.random.default_rng(0)
    positive = rng.random(20_000) < 0.1
    scores = rng.normal(size=20_000) + positive
    assert auroc(scores, positive) == pytest.approx(0.760, abs=0.015)  # the normal distribution at 1 / √2
    assert auroc(-scores, positive) == pytest.approx(1 - auroc(scores, positive))
    assert auroc(np.ones(20_000), positive) == 0.5


def test_one_class_alone_leaves_auroc_undefined_and_the_rest_defined() -> None:
    metrics = classification_metrics(np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([0, 0]), ("mel", "nv"))
    assert set(metrics) == {"balanced_accuracy", "macro_f1", "accuracy", "ece", "brier"}
    assert metrics["balanced_accuracy"] == 0.5
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)


def test_a_class_without_cases_stays_out_of_the_mean() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    metrics = classification_metrics(probabilities, np.array([0, 1, 0]), ("mel", "nv", "bkl"))
    assert "auroc_bkl" not in metrics
    assert metrics["auroc"] == metrics["balanced_accuracy"] == metrics["macro_f1"] == 1.0


def test_confidence_of_one_and_a_hair_more_is_in_the_last_bin() -> None:
    probabilities = np.array([[1.0, 0.0], [1 + 1e-7, 0.0], [0.95, 0.05], [0.95, 0.05]])
    labels = np.array([0, 0, 1, 0])
    assert expected_calibration_error(probabilities, labels) == pytest.approx(abs(3.9 - 3) / 4, abs=1e-6)


def test_a_calibrated_classifier_has_little_error_and_a_sure_one_much() -> None:
    rng = np.random.default_rng(1)
    first = rng.random(50_000)
    labels = (rng.random(50_000) > first).astype(int)
    honest = np.stack([first, 1 - first], axis=1)
    assert expected_calibration_error(honest, labels) < 0.015
    sure = np.stack([first > 0.5, first <= 0.5], axis=1).astype(float)
    assert expected_calibration_error(sure, labels) == pytest.approx(0.25, abs=0.015)


def test_no_cases_no_metrics() -> None:
    assert classification_metrics(np.zeros((0, 3)), np.zeros(0), ("a", "b", "c")) == {}


@pytest.mark.parametrize(
    ("probabilities", "labels", "words"),
    [
        (np.ones((2, 2)) / 2, np.array([0, 1]), r"\(cases, 3\).*\(2, 2\)"),
        (np.ones((2, 3)) / 3, np.array([0]), r"got \(2, 3\) and \(1,\)"),
        (np.full((1, 3), np.nan), np.array([0]), "finite"),
        (np.ones((2, 3)) / 3, np.array([0, 3]), "0 to 2, got 0 to 3"),
    ],
)
def test_what_does_not_fit_is_refused(probabilities: np.ndarray, labels: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        classification_metrics(probabilities, labels, ("a", "b", "c"))
