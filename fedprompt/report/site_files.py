"""What a site keeps of its test cases, as a report reads it: pictures, confusion matrix, reliability."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fedprompt.artifacts import read_json
from fedprompt.errors import DataError
from fedprompt.report.history import number

__all__ = ["BINS", "Bin", "Confusion", "Overlay", "pooled", "read_confusion", "read_overlays"]

BINS = 15  # of the reliability: those of the calibration error that `fedprompt.training` computes


@dataclass(frozen=True)
class Overlay:
    """One picture of a site.

    Segmentation: a panel of four tiles with its Dice. Classification: the case itself, with its class, the
    predicted one and the probability of the prediction. What the other task has is None.
    """

    path: Path
    case: str
    dice: float | None = None
    truth: str | None = None
    prediction: str | None = None
    probability: float | None = None


class Bin(NamedTuple):
    """Cases of like confidence: its mean, the share of right predictions among them, their number."""

    confidence: float
    accuracy: float
    cases: int


@dataclass(frozen=True)
class Confusion:
    """How many cases of each class (row) were taken for which (column), and how sure the model was."""

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    reliability: tuple[Bin, ...]

    @property
    def cases(self) -> int:
        """All cases of the matrix."""
        return sum(map(sum, self.counts))


def read_overlays(folder: Path, site: str, notes: list[str]) -> tuple[Overlay, ...]:
    """The pictures that `folder/pictures.json` lists and that are there; what is wrong goes into `notes`."""
    if not (folder / "pictures.json").exists():
        return ()
    try:
        entries = [_overlay(folder, entry) for entry in read_json(folder / "pictures.json")]
    except (DataError, KeyError, TypeError, AttributeError):
        notes.append(f"The list of pictures of site {site} is damaged.")
        return ()
    missing = sum(not overlay.path.is_file() for overlay in entries)
    if missing:
        notes.append(f"{missing} of {len(entries)} pictures of site {site} are missing.")
    return tuple(overlay for overlay in entries if overlay.path.is_file())


def read_confusion(folder: Path, site: str, notes: list[str]) -> Confusion | None:
    """`folder/confusion.json`; None where there is none, or where it is damaged, which `notes` tell."""
    if not (folder / "confusion.json").exists():
        return None
    try:
        return _confusion(read_json(folder / "confusion.json"))
    except (DataError, KeyError, TypeError, ValueError, AttributeError):
        notes.append(f"The confusion matrix of site {site} is damaged.")
        return None


def pooled(sites: Iterable[Iterable[Bin]]) -> list[Bin]:
    """The bins over the cases of all sites, from the least to the most confident."""
    places: dict[int, list[Bin]] = {}
    for found in (entry for bins in sites for entry in bins if entry.cases):
        places.setdefault(math.ceil(found.confidence * BINS), []).append(found)
    joint = []
    for _, bins in sorted(places.items()):
        cases = sum(found.cases for found in bins)
        confidence = sum(found.confidence * found.cases for found in bins) / cases
        joint.append(Bin(confidence, sum(found.accuracy * found.cases for found in bins) / cases, cases))
    return joint


def _overlay(folder: Path, entry: dict[str, Any]) -> Overlay:
    return Overlay(
        path=folder / Path(str(entry["file"])).name,
        case=str(entry["case"]),
        dice=number(entry.get("dice")),
        truth=_text(entry.get("truth")),
        prediction=_text(entry.get("prediction")),
        probability=number(entry.get("probability")),
    )


def _confusion(content: dict[str, Any]) -> Confusion:
    """Raises where the matrix is not square, or holds what cannot be."""
    classes = tuple(str(name) for name in content["classes"])
    counts = tuple(tuple(_count(cell) for cell in row) for row in content["counts"])
    if len(counts) != len(classes) or any(len(row) != len(classes) for row in counts):
        raise ValueError("expected one row and one column per class")
    bins = tuple(
        Bin(_share(entry["confidence"]), _share(entry["accuracy"]), _count(entry["cases"]))
        for entry in content["reliability"]
    )
    return Confusion(classes, counts, bins)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("expected a number of cases")
    return value


def _share(value: Any) -> float:
    found = number(value)
    if found is None or not 0 <= found <= 1:
        raise ValueError("expected a fraction")
    return found


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
