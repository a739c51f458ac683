"""A run directory as frozen values: finished or not, with or without pictures and baselines."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedprompt.artifacts import read_json
from fedprompt.errors import DataError
from fedprompt.report.history import (
    Dropped,
    History,
    Numbers,
    Round,
    SiteRound,
    mapping,
    number,
    numbers,
    read_history,
)
from fedprompt.report.site_files import Confusion, Overlay, read_confusion, read_overlays

__all__ = ["Run", "SiteResult", "read_run"]

SCHEMA = 1


@dataclass(frozen=True)
class SiteResult:
    """One site of a run: its cases per split, how its masks are drawn, test metrics and what it keeps.

    `labels` are its train cases per class, where the task has one class per case.
    """

    id: str
    cases: Numbers = field(default_factory=dict)
    labels: Numbers = field(default_factory=dict)
    annotation: str = ""
    metrics: Numbers = field(default_factory=dict)
    overlays: tuple[Overlay, ...] = ()
    confusion: Confusion | None = None


@dataclass(frozen=True)
class Run:
    """All that a report tells. Empty texts and mappings and None stand for what is not known."""

    name: str
    study: str
    strategy: str
    status: str
    reason: str
    started: str
    seed: int | None
    task: str
    classes: tuple[str, ...]
    rounds_planned: int | None
    rounds: tuple[Round, ...]
    sites: Mapping[str, SiteResult]
    mean: Numbers
    parameters: Numbers
    up: float | None
    down: float | None
    bytes_total: float | None
    seconds: float | None
    seconds_per_round: float | None
    backbone: Mapping[str, Any]
    environment: Mapping[str, Any]
    privacy: Mapping[str, Any]
    dropped: tuple[Dropped, ...]
    notes: tuple[str, ...]
    study_file: str
    baselines: tuple[Run, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the run came to its own end."""
        return self.status == "completed"


def read_run(folder: Path, *, name: str | None = None) -> Run:
    """Reads a run directory.

    Args:
        folder: What `fedprompt simulate --out` wrote, or is writing.
        name: How to call the run; its strategy by default.

    Raises:
        DataError: There is no run in the folder, or it was written by a newer version.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: expected a run directory, got {'a file' if folder.exists() else 'nothing'}"
        )
    if not any((folder / file).exists() for file in ("study.toml", "events.jsonl", "summary.json")):
        raise DataError(
            f"{folder}: expected a run directory, got a folder without study.toml and events.jsonl"
        )
    notes: list[str] = []
    history = read_history(folder / "events.jsonl")
    notes += history.notes
    study, study_file = _study(folder / "study.toml", notes)
    summary = _summary(folder / "summary.json", history, notes)
    return _run(folder, name, study, study_file, summary, history, notes)


def _study(path: Path, notes: list[str]) -> tuple[dict[str, Any], str]:
    """The resolved study as plain values and as text; the report needs no valid one."""
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text), text
    except FileNotFoundError:
        notes.append("The run has no study.toml.")
    except (OSError, ValueError):
        notes.append("study.toml cannot be read.")
    return {}, ""


def _summary(path: Path, history: History, notes: list[str]) -> dict[str, Any]:
    """`summary.json`; empty where there is none yet, or where the run went on after it was written."""
    went_on = history.resumed and not history.end
    if went_on or not path.exists():
        return {}
    try:
        summary = read_json(path)
    except DataError:
        summary = None
    if not isinstance(summary, dict):
        notes.append("summary.json is damaged; the figures come from events.jsonl alone.")
        return {}
    if summary.get("schema") != SCHEMA:
        raise DataError(f"{path}: expected schema {SCHEMA}, got {summary.get('schema')!r}")
    return summary


def _run(
    folder: Path,
    name: str | None,
    study: dict[str, Any],
    study_file: str,
    summary: dict[str, Any],
    history: History,
    notes: list[str],
) -> Run:
    strategy = _first(summary.get("strategy"), history.start.get("strategy"), study.get("strategy"))
    card = next(iter(history.joined.values()), {})
    sizes, seconds = mapping(summary.get("bytes")), mapping(summary.get("seconds"))
    finished = [entry for entry in history.rounds if entry.finished]
    reports = [report for entry in finished for report in entry.sites.values()]
    planned = number(history.start.get("rounds"))
    if planned is None:
        planned = number(mapping(study.get("rounds")).get("count"))
    sites = _sites(folder, summary, history, notes)
    baselines = _baselines(folder, mapping(summary.get("baselines")), notes)
    return Run(
        name=name or strategy,
        study=_first(summary.get("study"), history.start.get("study"), study.get("name")),
        strategy=strategy,
        status=_first(summary.get("status"), history.end.get("status")) or "unfinished",
        reason=_first(summary.get("reason"), history.end.get("reason")),
        started=history.first_time,
        seed=_whole(summary.get("seed"), history.start.get("seed"), study.get("seed")),
        task=_first(summary.get("task"), study.get("task")),
        classes=tuple(str(c) for c in summary.get("classes") or study.get("classes") or ()),
        rounds_planned=None if planned is None else int(planned),
        rounds=history.rounds,
        sites=sites,
        mean=numbers(summary.get("mean")) or numbers(history.evaluated.get("mean")),
        parameters=numbers(summary.get("parameters")) or numbers(card.get("parameters")),
        up=_either(sizes.get("up_per_site_round"), _mean([report.up for report in reports])),
        down=_either(sizes.get("down_per_site_round"), _mean([report.down for report in reports])),
        bytes_total=_either(sizes.get("total"), _total(reports)),
        seconds=number(seconds.get("total")),
        seconds_per_round=_either(seconds.get("per_round"), _mean([entry.seconds for entry in finished])),
        backbone=mapping(summary.get("backbone"))
        or {"name": card.get("backbone"), "fingerprint": card.get("fingerprint")},
        environment=mapping(summary.get("environment")) or mapping(card.get("environment")),
        privacy=mapping(summary.get("privacy")),
        dropped=history.dropped,
        notes=tuple(notes),
        study_file=study_file,
        baselines=baselines,
    )


def _sites(
    folder: Path, summary: dict[str, Any], history: History, notes: list[str]
) -> dict[str, SiteResult]:
    told, tested = mapping(summary.get("sites")), mapping(history.evaluated.get("sites"))
    sites = {}
    for site in sorted({*told, *history.joined, *tested}):
        joined = history.joined.get(site, {})
        entry = mapping(told.get(site)) or joined
        pictures = folder / "sites" / site / "pictures"
        kept = Path(site).name == site  # else the id leads out of the run
        sites[site] = SiteResult(
            id=site,
            cases=numbers(entry.get("cases")),
            labels=numbers(entry.get("labels")) or numbers(joined.get("labels")),
            annotation=_first(entry.get("annotation")),
            metrics=numbers(entry.get("metrics")) or numbers(tested.get(site)),
            overlays=read_overlays(pictures, site, notes) if kept else (),
            confusion=read_confusion(pictures, site, notes) if kept else None,
        )
    return sites


def _baselines(folder: Path, told: dict[str, Any], notes: list[str]) -> tuple[Run, ...]:
    """Baselines in the order of the summary, then those whose folder it does not name yet."""
    folders = sorted((folder / "baselines").glob("*/")) if (folder / "baselines").is_dir() else []
    runs = []
    for name in dict.fromkeys([*told, *(path.name for path in folders)]):
        try:
            run = read_run(folder / "baselines" / Path(name).name, name=name)
        except DataError:
            run = _untraced(name, mapping(told.get(name)))
            if name not in told:
                notes.append(f"The baseline {name} cannot be read.")
                continue
        notes += [f"Baseline {name}: {note}" for note in run.notes]
        runs.append(run)
    return tuple(runs)


def _untraced(name: str, told: dict[str, Any]) -> Run:
    """A baseline of which only the results in the main summary are there."""
    sites = {}
    for site, entry in sorted(mapping(told.get("sites")).items()):
        metrics = numbers(mapping(entry).get("metrics")) or numbers(entry)
        sites[site] = SiteResult(site, metrics=metrics)
    return Run(
        name=name,
        study="",
        strategy=name,
        status="completed",
        reason="",
        started="",
        seed=None,
        task="",
        classes=(),
        rounds_planned=None,
        rounds=(),
        sites=sites,
        mean=numbers(told.get("mean")),
        parameters={},
        up=None,
        down=None,
        bytes_total=None,
        seconds=None,
        seconds_per_round=None,
        backbone={},
        environment={},
        privacy={},
        dropped=(),
        notes=(),
        study_file="",
    )


def _first(*values: Any) -> str:
    """The first text; of a table such as `[strategy]` its name."""
    for value in values:
        text = value.get("name") if isinstance(value, dict) else value
        if isinstance(text, str) and text:
            return text
    return ""


def _whole(*values: Any) -> int | None:
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool)), None)


def _either(told: Any, derived: float | None) -> float | None:
    value = number(told)
    return derived if value is None else value


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _total(reports: list[SiteRound]) -> float | None:
    known = [size for report in reports for size in (report.up, report.down) if size is not None]
    return sum(known) if known else None
