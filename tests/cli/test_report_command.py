"""`fedprompt report`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedprompt.cli import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "events.jsonl").write_text('{"event": "study_started", "study": "x", "time": "t"}\n{"ev\n')
    return folder


def test_the_report_goes_into_the_run_or_where_it_is_asked_for(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run)]) == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"wrote {run / 'report.html'}")
    assert "note: Line 2 of events.jsonl is damaged" in told.err
    other = tmp_path / "new" / "page.html"
    assert main(["report", str(run), "--out", str(other), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["report"], found["status"]) == (str(other), "unfinished")
    assert found["bytes"] == other.stat().st_size
    assert other.read_bytes() == (run / "report.html").read_bytes()


def test_what_is_no_run_ends_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "none")]) == 3
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'}: expected a run directory, got nothing\n"


def test_a_folder_is_no_file_to_write(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "--out", str(run)]) == 2
    assert "expected a file to write, got a folder" in capsys.readouterr().err
