"""`fedprompt report`: a run directory as one HTML file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedprompt.errors import ConfigurationError
from fedprompt.report import write_report

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(help="A run directory, finished or not.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The file to write; RUN/report.html by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Write a run directory as one self-contained HTML file."""
    target = out or run / "report.html"
    if target.is_dir():
        raise ConfigurationError(f"{target}: expected a file to write, got a folder")
    try:
        content = write_report(run, target)
    except OSError as error:
        raise ConfigurationError(f"{target}: cannot be written ({error.strerror})") from error
    size = target.stat().st_size
    if as_json:
        told = {"report": str(target), "bytes": size, "status": content.status, "notes": content.notes}
        print(json.dumps(told))
        return
    for note in content.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"wrote {target} ({size / 1e6:.1f} MB)")
