"""Measures: digits, which way is better, the primary one of a task."""

from __future__ import annotations

import pytest

from fedprompt.config import Study, study_from_mapping
from fedprompt.report.measures import LOSS, TASKS, measures_of

BY_KEY = {measure.key: measure for task in TASKS.values() for measure in (*task.tested, *task.compared)}


@pytest.mark.parametrize(
    ("key", "value", "text", "exact"),
    [
        ("dice", 0.81251, "0.813", "0.8125"),
        ("dice", None, "–", "–"),
        ("hd95", 12.345, "12.3", "12.35"),
        ("assd", 2.345, "2.35", "2.35"),
        ("auroc", 1.0, "1.000", "1.0000"),
        ("brier", 0.12345, "0.123", "0.1235"),
    ],
)
def test_values_read_well(key: str, value: float | None, text: str, exact: str) -> None:
    assert (BY_KEY[key].text(value), BY_KEY[key].exact_text(value)) == (text, exact)


def test_the_loss_is_a_measure_too() -> None:
    assert LOSS.text(0.25) == "0.250"


@pytest.mark.parametrize("key", ["hd95", "assd", "ece", "brier"])
def test_errors_and_distances_are_best_when_low(key: str) -> None:
    assert BY_KEY[key].is_best(0.1, [0.1, 0.2, None])
    assert not BY_KEY[key].is_best(0.2, [0.1, 0.2, None])


@pytest.mark.parametrize("key", ["dice", "auroc", "balanced_accuracy", "macro_f1", "accuracy"])
def test_scores_are_best_when_high(key: str) -> None:
    assert BY_KEY[key].is_best(0.2, [0.1, 0.2, None])
    assert not BY_KEY[key].is_best(0.1, [0.1, 0.2, None])


def test_what_reads_alike_is_equally_good_and_alone_there_is_no_best() -> None:
    dice = BY_KEY["dice"]
    assert dice.is_best(0.80001, [0.80001, 0.80002, 0.7])
    assert not dice.is_best(0.80001, [0.80001, 0.80002])
    assert not dice.is_best(0.8, [0.8])
    assert not dice.is_best(None, [None, 0.8, 0.7])


def test_every_task_of_a_study_has_measures() -> None:
    assert measures_of(Study().task).primary.key == "dice"
    study = study_from_mapping({"task": "classification", "classes": ["a", "b"]}, "study")
    assert measures_of(study.task).primary.key == "auroc"
    assert measures_of("").task == "segmentation", "runs whose study cannot be read"
