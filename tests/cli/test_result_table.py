"""The table at the end of `fedprompt simulate`."""

from __future__ import annotations

import pytest

from fedprompt.cli.simulate import _show


def rows(shown: str) -> list[list[str]]:
    """Cells of the lines that have some."""
    lines = [line.replace("┃", "│").split("│") for line in shown.splitlines() if "│" in line or "┃" in line]
    return [[cell.strip() for cell in line[1:-1]] for line in lines]


def test_a_segmentation(capsys: pytest.CaptureFixture[str]) -> None:
    mean = {"dice": 0.81234, "hd95": 12.345, "assd": 1.5, "dice_cup": 0.7}
    frozen = {"mean": {"dice": 0.5, "hd95": 100.0, "assd": 30.25}}
    _show({"strategy": "fedlppa", "mean": mean, "baselines": {"frozen": frozen}}, "segmentation")
    assert rows(capsys.readouterr().err) == [
        ["", "Dice", "HD95", "ASSD"],
        ["frozen", "0.5000", "100.00", "30.25"],
        ["fedlppa", "0.8123", "12.35", "1.50"],
    ]


def test_a_classification_in_which_no_site_has_an_auroc(capsys: pytest.CaptureFixture[str]) -> None:
    mean = {"balanced_accuracy": 0.72349, "macro_f1": 0.7, "accuracy": 0.9, "ece": 0.04, "brier": 0.2}
    _show({"strategy": "fedavg", "mean": mean, "baselines": {}}, "classification")
    assert rows(capsys.readouterr().err) == [
        ["", "AUROC", "balanced accuracy", "macro F1", "ECE"],
        ["fedavg", "–", "0.7235", "0.7000", "0.0400"],
    ]
