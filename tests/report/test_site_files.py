"""What sites keep of a classification: read, checked, pooled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedprompt.report.cards import write_case_cards
from fedprompt.report.site_files import Bin, pooled, read_confusion, read_overlays

CLASSES = ("mel", "nv")


def write(folder: Path, cases: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probabilities, labels = rng.dirichlet((1, 1), cases), rng.integers(0, 2, cases)
    ids = [f"{index}" for index in range(cases)]
    write_case_cards(folder, ids, probabilities, labels, CLASSES, lambda _: np.zeros((8, 8, 3)))
    return probabilities, labels


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    probabilities, labels = write(tmp_path)
    notes: list[str] = []
    confusion = read_confusion(tmp_path, "oslo", notes)
    assert confusion is not None
    assert confusion.classes == CLASSES
    assert confusion.cases == 8
    right = sum(confusion.counts[n][n] for n in range(2))
    assert right == (probabilities.argmax(axis=1) == labels).sum()
    cards = read_overlays(tmp_path, "oslo", notes)
    assert len(cards) == 6
    assert {card.truth for card in cards} | {card.prediction for card in cards} <= set(CLASSES)
    assert all(card.dice is None and card.probability is not None for card in cards)
    assert notes == []


def test_nothing_there_is_no_damage(tmp_path: Path) -> None:
    notes: list[str] = []
    assert read_confusion(tmp_path, "oslo", notes) is None
    assert read_overlays(tmp_path, "oslo", notes) == ()
    assert notes == []


GOOD: dict[str, Any] = {
    "classes": ["a", "b"],
    "counts": [[1, 0], [2, 3]],
    "reliability": [{"confidence": 0.7, "accuracy": 0.5, "cases": 6}],
}


@pytest.mark.parametrize(
    "change",
    [
        {"counts": [[1, 0]]},
        {"counts": [[1, 0], [2]]},
        {"counts": [[1, 0], [2, -1]]},
        {"counts": [[1, 0], [2, 0.5]]},
        {"counts": [[1, 0], [2, True]]},
        {"counts": 3},
        {"classes": ["a"]},
        {"classes": None},
        {"reliability": [{"confidence": 2, "accuracy": 0.5, "cases": 6}]},
        {"reliability": [{"confidence": 0.5, "accuracy": "x", "cases": 6}]},
        {"reliability": [{"confidence": 0.5}]},
        {"reliability": [7]},
    ],
)
def test_a_damaged_matrix_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    file = tmp_path / "confusion.json"
    notes: list[str] = []
    file.write_text(json.dumps(GOOD))
    assert read_confusion(tmp_path, "oslo", notes) is not None
    file.write_text(json.dumps({**GOOD, **change}))
    assert read_confusion(tmp_path, "oslo", notes) is None
    assert notes == ["The confusion matrix of site oslo is damaged."]
    file.write_text("[]")
    assert read_confusion(tmp_path, "oslo", notes) is None
    assert len(notes) == 2


def test_pooled_bins_are_those_of_all_cases_together(tmp_path: Path) -> None:
    notes: list[str] = []
    parts = [write(tmp_path / str(seed), 40, seed) for seed in range(3)]
    found = [read_confusion(tmp_path / str(seed), "s", notes) for seed in range(3)]
    probabilities, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    ids = [str(index) for index in range(120)]
    write_case_cards(tmp_path, ids, probabilities, labels, CLASSES, lambda _: np.zeros((8, 8, 3)))
    whole = read_confusion(tmp_path, "s", notes)
    assert whole is not None
    joint = pooled(confusion.reliability for confusion in found if confusion is not None)
    assert np.array(joint) == pytest.approx(np.array(whole.reliability))


def test_empty_bins_pool_to_nothing() -> None:
    assert pooled([[Bin(0.5, 0.5, 0)], []]) == []
