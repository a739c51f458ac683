"""The table of a stream: lines whole or not at all, rows as they were, the summary."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from fedprompt.adaptation.stream_rows import ResultsFile, Row, summarised
from fedprompt.errors import FedpromptError


def test_a_row_survives_its_line(tmp_path: Path) -> None:
    row = Row(
        'a "b", c\udce9.png', True, "", 0.5, 0.25, 0.125, 1.0, 0.0625, True, False, 0.5, "ff" * 32,
        {"a,b": 0.5, "c": 1.0}, {"a,b": 0.75, "c": 0.5},
    )  # fmt: skip
    empty = Row("x.png", False, "a reason, with a comma", sha256="ee" * 32)
    file = ResultsFile(tmp_path / "results.csv", ["a,b", "c"])
    file.begin()
    for each in (row, empty):
        file.append(each.texts())
    assert file.rows() == [row, empty]
    assert row.mean_dice == (0.75, 0.625)
    assert file.texts()[0]["dice_before"] == "0.75"


def test_numbers_that_are_not_finite_are_not_known() -> None:
    texts = Row("a.png", False, loss_before=float("nan"), loss_after=float("inf")).texts()
    assert (texts["loss_before"], texts["loss_after"]) == ("", "")


@pytest.mark.parametrize("content", [b"image,rows\na,b\n", b"\0\n", b'"open\n'])
def test_a_foreign_table_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_bytes(content)
    with pytest.raises(FedpromptError, match=r"results\.csv: expected"):
        ResultsFile(tmp_path / "results.csv", None).texts()


def test_the_summary_of_nothing() -> None:
    summary = summarised([])
    assert (summary["images"], summary["seconds"], summary["passed_through"]) == (0, None, {})


def test_a_line_that_does_not_fit_is_taken_back(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path / "results.csv", None)
    file.begin()
    file.append(Row("a.png", True).texts())
    whole = file.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 9, limits[1]))
        with pytest.raises(OSError):  # noqa: PT011 - which one depends on the limit
            file.append(Row("b.png", True).texts())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.path.read_bytes() == whole
