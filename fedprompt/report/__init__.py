"""A run directory as one self-contained HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedprompt.report.reader import Run

__all__ = ["write_report"]


def write_report(run: Path, file: Path) -> Run:
    """Writes the report of a run directory, finished or not; returns what it read.

    Raises:
        DataError: There is no run in the folder.
    """
    from fedprompt.artifacts import write_atomic
    from fedprompt.report.html import render  # slow import: matplotlib
    from fedprompt.report.reader import read_run

    content = read_run(run)
    write_atomic(file, render(content).encode(errors="replace"), durable=False)
    return content
