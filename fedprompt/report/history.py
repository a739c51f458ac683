"""`events.jsonl` as values: what happened in every round, read leniently, each damaged line named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

__all__ = [
    "Dropped",
    "History",
    "Numbers",
    "Round",
    "SiteRound",
    "mapping",
    "number",
    "numbers",
    "read_history",
]

Numbers = dict[str, float]


@dataclass(frozen=True)
class SiteRound:
    """What one site reported in one round: metrics of the tensors it received, training loss, bytes."""

    metrics: Numbers
    loss: float | None
    up: float | None
    down: float | None


@dataclass(frozen=True)
class Round:
    """One round; `finished` is false for one that was skipped, is running, or was cut off."""

    number: int
    finished: bool = False
    mean: Numbers = field(default_factory=dict)
    loss: float | None = None
    seconds: float | None = None
    sites: Mapping[str, SiteRound] = field(default_factory=dict)
    affinity: Mapping[str, Numbers] = field(default_factory=dict)
    entropy: float | None = None


@dataclass(frozen=True)
class Dropped:
    """A site left out of a round, a node refused, or (without a site) a round skipped."""

    round: int | None
    site: str
    code: str
    reason: str


@dataclass(frozen=True)
class History:
    """A run by its events. A resumed run did some rounds again: only the last time counts."""

    start: Mapping[str, Any] = field(default_factory=dict)
    end: Mapping[str, Any] = field(default_factory=dict)
    joined: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rounds: tuple[Round, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    evaluated: Mapping[str, Any] = field(default_factory=dict)
    first_time: str = ""
    resumed: bool = False
    notes: tuple[str, ...] = ()


def number(value: Any) -> float | None:
    """A finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if abs(value) < float("inf") else None


def mapping(value: Any) -> dict[str, Any]:
    """A JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def numbers(value: Any) -> Numbers:
    """The finite numbers of a JSON object."""
    found = {name: number(entry) for name, entry in mapping(value).items()}
    return {name: entry for name, entry in found.items() if entry is not None}


def read_history(path: Path) -> History:
    """Reads `events.jsonl`; a missing file is a run in which nothing happened yet."""
    reader = _Reader()
    lines = path.read_bytes().splitlines() if path.exists() else []
    for count, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            reader.add(json.loads(line))
        except (ValueError, KeyError, TypeError, RecursionError):
            reader.notes.append(f"Line {count} of {path.name} is damaged and was left out.")
    return reader.history()


class _Reader:
    """Collects events one after the other."""

    def __init__(self) -> None:
        self._start: dict[str, Any] = {}
        self._end: dict[str, Any] = {}
        self._joined: dict[str, dict[str, Any]] = {}
        self._rounds: dict[int, Round] = {}
        self._dropped: list[Dropped] = []
        self._evaluated: dict[str, Any] = {}
        self._first_time = ""
        self._resumed = False
        self.notes: list[str] = []

    def history(self) -> History:
        """All events so far."""
        return History(
            start=self._start,
            end=self._end,
            joined=self._joined,
            rounds=tuple(self._rounds[n] for n in sorted(self._rounds)),
            dropped=tuple(self._dropped),
            evaluated=self._evaluated,
            first_time=self._first_time,
            resumed=self._resumed,
            notes=tuple(self.notes),
        )

    def add(self, event: dict[str, Any]) -> None:
        """Takes one event; raises KeyError, TypeError or ValueError where it is none."""
        name, time = event["event"], event.get("time", "")
        if not isinstance(name, str) or not isinstance(time, str):
            raise TypeError("an event has a name and a time")
        match name:
            case "study_started":
                self._start = event
            case "site_joined":
                self._joined[_text(event["site"])] = event
            case "resumed":
                self._forget(int(event["round"]))
            case "round_started":
                self._change(event)
            case "site_reported":
                self._reported(event)
            case "round_finished":
                self._finished(event)
            case "site_dropped" | "site_refused" | "round_skipped":
                self._dropped.append(_drop(event))
            case "evaluated":
                if event.get("split", "test") == "test":
                    self._evaluated = event
            case "study_finished":
                self._end = event
        self._first_time = self._first_time or time

    def _forget(self, done: int) -> None:
        self._rounds = {n: entry for n, entry in self._rounds.items() if n <= done}
        self._dropped = [drop for drop in self._dropped if drop.round is None or drop.round <= done]
        self._evaluated, self._end, self._resumed = {}, {}, True

    def _change(self, event: dict[str, Any], **values: Any) -> None:
        count = int(event["round"])
        self._rounds[count] = replace(self._rounds.get(count, Round(count)), **values)

    def _reported(self, event: dict[str, Any]) -> None:
        sizes, loss = mapping(event.get("bytes")), event.get("loss")
        report = SiteRound(
            metrics=numbers(event.get("metrics")),
            loss=number(mapping(loss).get("total") if isinstance(loss, dict) else loss),
            up=number(sizes.get("up")),
            down=number(sizes.get("down")),
        )
        known = self._rounds.get(int(event["round"]), Round(0)).sites
        self._change(event, sites={**known, _text(event["site"]): report})

    def _finished(self, event: dict[str, Any]) -> None:
        facts = mapping(event.get("strategy"))
        self._change(
            event,
            finished=True,
            mean=numbers(event.get("mean")),
            loss=number(event.get("loss")),
            seconds=number(event.get("seconds")),
            affinity={site: numbers(weights) for site, weights in mapping(facts.get("affinity")).items()},
            entropy=number(facts.get("affinity_entropy")),
        )


def _drop(event: dict[str, Any]) -> Dropped:
    count = event.get("round")
    node = event.get("node")
    site = str(event.get("site") or ("" if node is None else f"node {node}"))
    code = "skipped" if event["event"] == "round_skipped" else str(event.get("code", ""))
    return Dropped(None if count is None else int(count), site, code, str(event.get("reason", "")))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    return value
