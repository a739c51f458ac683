"""What the models of a task are judged by: names, digits, and which way is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedprompt.report.numerals import DASH

__all__ = ["LOSS", "TASKS", "Measure", "TaskMeasures", "measures_of"]


@dataclass(frozen=True)
class Measure:
    """One result of a model.

    Attributes:
        key: Its name in `metrics` and `mean`; a class's own value is `<key>_<class>`.
        label: What a reader sees.
        digits: Digits after the point in a report, one less from 10 on.
        exact: Digits after the point where runs are compared in a terminal.
        better: Which way is better.
    """

    key: str
    label: str
    digits: int = 3
    exact: int = 4
    better: Literal["higher", "lower"] = "higher"

    def text(self, value: float | None) -> str:
        """A value as a report shows it; a dash for what is not known."""
        return DASH if value is None else f"{value:.{self.digits - (abs(value) >= 10)}f}"

    def exact_text(self, value: float | None) -> str:
        """A value as the terminal's table shows it."""
        return DASH if value is None else f"{value:.{self.exact}f}"

    def is_best(self, value: float | None, rivals: Sequence[float | None]) -> bool:
        """Whether no rival reads as better, and at least one as worse. `rivals` may hold `value` itself."""
        known = [rival for rival in rivals if rival is not None]
        if value is None or not known:
            return False
        best = max(known) if self.better == "higher" else min(known)
        return len({self.text(rival) for rival in known}) > 1 and self.text(value) == self.text(best)


@dataclass(frozen=True)
class TaskMeasures:
    """The measures of a task.

    Attributes:
        task: Name of the task.
        headline: On top of a report and in every round; the first one is primary.
        compared: Columns of the comparison between strategies.
        tested: Columns of every site.
        first_class: Position of the first class with a value of its own: a background has none.
        sparse: Whether a site's annotation may tell less than the whole truth.
    """

    task: str
    headline: tuple[Measure, ...]
    compared: tuple[Measure, ...]
    tested: tuple[Measure, ...]
    first_class: int
    sparse: bool

    @property
    def primary(self) -> Measure:
        """The one that curves, dots and gains are about."""
        return self.headline[0]


LOSS = Measure("loss", "loss", better="lower")
_DICE = Measure("dice", "Dice")
_HD95 = Measure("hd95", "HD95", digits=2, exact=2, better="lower")
_ASSD = Measure("assd", "ASSD", digits=2, exact=2, better="lower")
_AUROC = Measure("auroc", "AUROC")
_BALANCED = Measure("balanced_accuracy", "balanced accuracy")
_F1 = Measure("macro_f1", "macro F1")
_ACCURACY = Measure("accuracy", "accuracy")
_ECE = Measure("ece", "ECE", better="lower")
_BRIER = Measure("brier", "Brier score", better="lower")

TASKS = {
    measures.task: measures
    for measures in (
        TaskMeasures(
            task="segmentation",
            headline=(_DICE,),
            compared=(_DICE, _HD95, _ASSD),
            tested=(_DICE, _HD95, _ASSD),
            first_class=1,
            sparse=True,
        ),
        TaskMeasures(
            task="classification",
            headline=(_AUROC, _BALANCED),
            compared=(_AUROC, _BALANCED, _F1, _ECE),
            tested=(_AUROC, _BALANCED, _F1, _ACCURACY, _ECE, _BRIER),
            first_class=0,
            sparse=False,
        ),
    )
}


def measures_of(task: str) -> TaskMeasures:
    """The measures of a task; those of segmentation where the task is not known."""
    return TASKS.get(task, TASKS["segmentation"])
