"""Runs a stream over files and reads what it wrote."""

from __future__ import annotations

import csv
from pathlib import Path

from fedprompt.adaptation.adapter import Adapter
from fedprompt.adaptation.network import Network
from fedprompt.adaptation.stream_rows import Row
from fedprompt.adaptation.streams import Stream

__all__ = ["adapted", "lines", "unhurried"]


def lines(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def adapted(network: Network, images: list[Path], out: Path, **options: object) -> list[Row]:
    stream = Stream(images, Adapter(network), out, **options)  # type: ignore[arg-type]
    rows = list(stream)
    stream.finish()
    return rows


def unhurried(out: Path) -> dict[str, bytes | list[dict[str, str]]]:
    """Everything that a stream wrote but for the seconds."""
    found: dict[str, bytes | list[dict[str, str]]] = {
        path.name: path.read_bytes() for path in (out / "masks").iterdir()
    }
    found["lines"] = [{key: line[key] for key in line if key != "seconds"} for line in lines(out)]
    return found
