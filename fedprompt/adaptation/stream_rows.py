"""What a stream tells of every image: a row of `results.csv`, and all rows in one summary."""

from __future__ import annotations

import csv
import errno
import io
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from fedprompt.errors import ConfigurationError, DataError

__all__ = ["ResultsFile", "Row", "summarised"]

_BEFORE, _AFTER = "dice_before", "dice_after"


@dataclass(frozen=True)
class Row:
    """One image of a stream; None is not known.

    Attributes:
        image: File name.
        accepted: The adaptation was used.
        reason: Why not; empty where it was.
        loss_before: Alignment loss without adaptation.
        loss_after: With it.
        entropy: Mean entropy of the prediction, 0 to 1.
        agreement: Dice of the mask and the one without adaptation.
        foreground: Share of the written mask that is not background; None: there is no mask.
        reused: Started from a remembered prompt.
        restarted: Warm-up began again at this image.
        seconds: That adaptation took.
        sha256: Of the image file.
        dice_before: Per foreground class, without adaptation; empty without truth.
        dice_after: Per foreground class, of the written mask.
    """

    image: str
    accepted: bool
    reason: str = ""
    loss_before: float | None = None
    loss_after: float | None = None
    entropy: float | None = None
    agreement: float | None = None
    foreground: float | None = None
    reused: bool = False
    restarted: bool = False
    seconds: float | None = None
    sha256: str = ""
    dice_before: dict[str, float] = field(default_factory=dict)
    dice_after: dict[str, float] = field(default_factory=dict)

    @property
    def mean_dice(self) -> tuple[float, float] | None:
        """Before and after, over the foreground classes."""
        if not self.dice_before:
            return None
        before, after = (list(dice.values()) for dice in (self.dice_before, self.dice_after))
        return sum(before) / len(before), sum(after) / len(after)

    def texts(self) -> dict[str, str]:
        """The values of its line by column, those of Dice only where they are known."""
        texts = {name: _text(getattr(self, name)) for name in _PLAIN}
        for column, dice, place in ((_BEFORE, self.dice_before, 0), (_AFTER, self.dice_after, 1)):
            if self.mean_dice is not None:
                texts[column] = _text(self.mean_dice[place])
                texts |= {f"{column}_{name}": _text(value) for name, value in dice.items()}
        return texts

    @classmethod
    def parsed(cls, texts: dict[str, str]) -> Self:
        """The row of a line's texts; raises `ValueError` where a number is none."""
        values: dict[str, Any] = {name: texts[name] for name in ("image", "reason", "sha256")}
        values |= {name: texts[name] == "true" for name in ("accepted", "reused", "restarted")}
        values |= {name: float(texts[name]) if texts[name] else None for name in _NUMBERS}
        for column in (_BEFORE, _AFTER):
            start = f"{column}_"
            values[column] = {
                name.removeprefix(start): float(text)
                for name, text in texts.items()
                if name.startswith(start) and text
            }
        return cls(**values)


_PLAIN = tuple(each.name for each in fields(Row) if each.name not in (_BEFORE, _AFTER))
_NUMBERS = ("loss_before", "loss_after", "entropy", "agreement", "foreground", "seconds")


class ResultsFile:
    """`results.csv`: a header and one line per image; what a killed process left of a line does not count.

    Args:
        path: Of the file.
        classes: Foreground classes where there is a truth; None: no columns for Dice.
    """

    def __init__(self, path: Path, classes: Sequence[str] | None) -> None:
        self.path = path
        self.columns = [*_PLAIN]
        if classes is not None:
            self.columns += [_BEFORE, _AFTER]
            self.columns += [f"{column}_{name}" for column in (_BEFORE, _AFTER) for name in classes]

    def texts(self) -> list[dict[str, str]]:
        """The whole lines of the file, none where there is no file.

        Raises:
            ConfigurationError: It is of a stream with other columns.
            DataError: It cannot be read.
        """
        try:
            text = self._whole().decode(errors="surrogateescape")
            lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        except (OSError, csv.Error) as error:
            raise DataError(f"{self.path}: expected the results of a stream, got ({error})") from None
        if lines and lines[0] != self.columns:
            raise ConfigurationError(
                f"{self.path}: expected results of the same classes, with truth or without as now, got the "
                f"columns {','.join(lines[0])}"
            )
        if any(len(line) != len(self.columns) for line in lines):
            raise DataError(f"{self.path}: expected {len(self.columns)} values per line, got others")
        return [dict(zip(self.columns, line, strict=True)) for line in lines[1:]]

    def rows(self) -> list[Row]:
        """All rows; raises like `texts`."""
        try:
            return [Row.parsed(texts) for texts in self.texts()]
        except ValueError as error:
            raise DataError(f"{self.path}: expected the results of a stream, got others ({error})") from None

    def begin(self) -> None:
        """Makes the file, or cuts off a line that a killed process did not finish. Raises `OSError`."""
        whole = self._whole()
        with self.path.open("r+b" if self.path.exists() else "xb", buffering=0) as file:
            file.truncate(len(whole))
        if not whole:
            self._append(self.columns)

    def append(self, texts: dict[str, str]) -> None:
        """Adds one line, whole or not at all. Raises `OSError`."""
        self._append([texts.get(column, "") for column in self.columns])

    def _append(self, values: Sequence[str]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerow(values)
        line = text.getvalue().encode(errors="surrogateescape")
        with self.path.open("ab", buffering=0) as file:
            end = file.tell()
            if file.write(line) != len(line):
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _whole(self) -> bytes:
        try:
            content = self.path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return b""
        return content[: content.rfind(b"\n") + 1]


def summarised(rows: Sequence[Row]) -> dict[str, Any]:
    """All rows in some numbers.

    Returns:
        `images`; `adapted`; `passed_through`: images per reason, most frequent first; `without_mask`: those
        of them that could not be segmented at all; `restarts` of the warm-up; `dice_before`, `dice_after`:
        means over images; `worst_change` of Dice and `worst_image`; `seconds`: mean. None is not known.
    """
    reasons = Counter(row.reason for row in rows if not row.accepted)
    scored = [(*row.mean_dice, row.image) for row in rows if row.mean_dice is not None]
    worst = min(((after - before, image) for before, after, image in scored), default=(None, None))
    return {
        "images": len(rows),
        "adapted": sum(row.accepted for row in rows),
        "passed_through": dict(sorted(reasons.items(), key=lambda entry: (-entry[1], entry[0]))),
        "without_mask": sum(row.foreground is None for row in rows),
        "restarts": sum(row.restarted for row in rows),
        "dice_before": _mean([before for before, _, _ in scored]),
        "dice_after": _mean([after for _, after, _ in scored]),
        "worst_change": _rounded(worst[0]),
        "worst_image": worst[1],
        "seconds": _mean([row.seconds for row in rows if row.seconds is not None]),
    }


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else ""
    return "" if value is None else str(value)


def _mean(values: Sequence[float]) -> float | None:
    return _rounded(sum(values) / len(values)) if values else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
