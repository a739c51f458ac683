"""A site's table of cases: `cases.csv` with the columns image, mask or label, split, patient."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fedprompt.errors import DataError

__all__ = ["Case", "read_cases"]

TABLE = "cases.csv"
COLUMNS = {
    "segmentation": ("image", "mask", "split", "patient"),
    "classification": ("image", "label", "split", "patient"),
}
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Case:
    """One image with its annotation: a mask in segmentation, a label in classification.

    Attributes:
        id: Path of the image relative to the site's folder, with forward slashes.
        image: Absolute path of the image.
        mask: Absolute path of the mask; None in classification.
        split: `train`, `val` or `test`.
        patient: Groups the cases of one person; the id where the table leaves it empty.
        label: Name of the class; None in segmentation.
    """

    id: str
    image: Path
    mask: Path | None
    split: str
    patient: str
    label: str | None = None


def read_cases(folder: Path, task: str = "segmentation") -> list[Case]:
    """Reads and checks `folder/cases.csv`; the cases come in the order of the table.

    Args:
        folder: Of the site.
        task: `segmentation` or `classification`, which decides the columns. Whether a label is a class of
            the study is for `fedprompt.data.samples` to say.

    Raises:
        DataError: There is no table, its columns are not those of the task, a line is incomplete, names a
            file that is missing or lies outside of the folder, a split that does not exist or an image that
            an earlier line has; a patient is in two splits; or the site is empty.
    """
    table = folder / TABLE
    root = folder.resolve()
    cases: list[Case] = []
    lines: dict[Path, int] = {}
    for line, row in _rows(table, task):
        where = f"{table} line {line}"
        if row["split"] not in SPLITS:
            raise DataError(f"{where}: split: expected train, val or test, got {row['split']!r}")
        image = _inside(root, row["image"], f"{where}: image")
        label = row.get("label")
        if label == "":
            raise DataError(f"{where}: label: expected the name of a class, got nothing")
        mask = None if label else _inside(root, row["mask"], f"{where}: mask")
        if image in lines:
            raise DataError(f"{where}: image {row['image']!r} is already on line {lines[image]}")
        lines[image] = line
        name = PurePosixPath(row["image"]).as_posix()
        cases.append(Case(name, image, mask, row["split"], row["patient"] or name, label))
    splits: dict[str, str] = {}
    for case in cases:
        if splits.setdefault(case.patient, case.split) != case.split:
            raise DataError(
                f"{table}: patient {case.patient!r}: expected all cases of a person in one split, "
                f"got {splits[case.patient]} and {case.split}"
            )
    if not any(case.split == "train" for case in cases):
        raise DataError(f"{table}: empty site: expected at least one train case, got {_counted(cases)}")
    return cases


def _rows(table: Path, task: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and stripped values of every line that is not blank."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{table}: no such file; every site folder holds a {TABLE}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table}: expected a UTF-8 table, got one that cannot be read ({error})") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if sorted(header) != sorted(COLUMNS[task]):
            got = ",".join(header) or "nothing"
            fits = [f" ({other})" for other, names in COLUMNS.items() if sorted(header) == sorted(names)]
            raise DataError(
                f"{table}: expected the columns {','.join(COLUMNS[task])} ({task}), got {got}{''.join(fits)}"
            )
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            if len(values) != len(header):
                raise DataError(
                    f"{table} line {reader.line_num}: expected {len(header)} values, got {len(values)}"
                )
            yield reader.line_num, dict(zip(header, (value.strip() for value in values), strict=True))
    except csv.Error as error:
        raise DataError(f"{table} line {reader.line_num}: not a line of a CSV table ({error})") from None


def _inside(root: Path, text: str, where: str) -> Path:
    """The file that `text` names under `root`, symbolic links followed."""
    relative = PurePosixPath(text)
    if not text:
        raise DataError(f"{where}: expected a path, got nothing")
    if relative.is_absolute() or ".." in relative.parts or "\0" in text:
        raise DataError(f"{where}: expected a path inside the site's folder, got {text!r}")
    path = root / relative
    try:
        found = path.resolve()
        if not found.is_relative_to(root):
            raise DataError(f"{where}: {text!r} is a link that leaves the site's folder")
        if not found.is_file():
            raise DataError(f"{where}: no such file: {text!r}")
    except (OSError, RuntimeError) as error:
        raise DataError(f"{where}: {text!r} cannot be followed ({error})") from None
    return path


def _counted(cases: list[Case]) -> str:
    if not cases:
        return "no case"
    counts = {split: sum(case.split == split for case in cases) for split in SPLITS[1:]}
    return " and ".join(f"{n} {split}" for split, n in counts.items() if n)
