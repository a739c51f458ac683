"""`summary.json` from the events of a run: nothing is in it that the events do not say."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from fedprompt.config import Study

__all__ = ["effective", "mean_metrics", "summarise"]

_SEGMENT_STARTS = ("study_started", "resumed")


def mean_metrics(metrics: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric over the sites that have it; every site counts the same."""
    values: dict[str, list[float]] = {}
    for site in metrics:
        for name, value in site.items():
            values.setdefault(name, []).append(value)
    return {name: sum(found) / len(found) for name, found in sorted(values.items())}


def effective(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Events without those that a resumed run did again: rounds after its checkpoint, evaluation, end.

    A run that was cut off before its first checkpoint starts anew.
    """
    kept: list[Mapping[str, Any]] = []
    for event in events:
        if event["event"] == "study_started":
            kept = []
        if event["event"] == "resumed":
            done = event["round"]
            kept = [e for e in kept if e.get("round", 0) <= done and e["event"] not in _ENDINGS]
        kept.append(event)
    return kept


_ENDINGS = ("evaluated", "study_finished")


def summarise(study: Study, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of `summary.json`."""
    valid = effective(events)
    joined = {e["site"]: e for e in valid if e["event"] == "site_joined"}
    first: Mapping[str, Any] = joined[min(joined)] if joined else {}
    finished = [e for e in valid if e["event"] == "round_finished"]
    reported = [e for e in valid if e["event"] == "site_reported"]
    evaluated: Mapping[str, Any] = next((e for e in valid if e["event"] == "evaluated"), {})
    end: Mapping[str, Any] = next((e for e in valid if e["event"] == "study_finished"), {})
    metrics = evaluated.get("sites", {})
    seconds = [e["seconds"] for e in finished]
    return {
        "schema": 1,
        "study": study.name,
        "strategy": study.strategy.name,
        "rounds": end.get("rounds", len(finished)),
        "status": end.get("status", "stopped"),
        "reason": end.get("reason"),
        "task": study.task,
        "classes": list(study.classes),
        "sites": {
            site: {
                "cases": event["cases"],
                "annotation": event["annotation"],
                "metrics": metrics.get(site, {}),
            }
            for site, event in sorted(joined.items())
        },
        "mean": evaluated.get("mean", {}),
        "baselines": {},
        "parameters": first.get("parameters", {}),
        "bytes": {
            "up_per_site_round": _mean([e["bytes"]["up"] for e in reported]),
            "down_per_site_round": _mean([e["bytes"]["down"] for e in reported]),
            "total": sum(sum(e["bytes"].values()) for e in [*finished, evaluated] if "bytes" in e),
        },
        "seconds": {
            "total": _working_seconds(events),
            "per_round": sum(seconds) / len(seconds) if seconds else 0.0,
            "evaluation": evaluated.get("seconds", 0.0),
        },
        "dropped": sum(e["event"] == "site_dropped" for e in valid),
        "skipped": sum(e["event"] == "round_skipped" for e in valid),
        "privacy": None,
        "backbone": {"name": study.backbone.name, "fingerprint": first.get("fingerprint")},
        "environment": {"python": ".".join(map(str, sys.version_info[:3])), **first.get("environment", {})},
        "seed": study.seed,
    }


def _mean(sizes: Sequence[int]) -> int:
    return round(sum(sizes) / len(sizes)) if sizes else 0


def _working_seconds(events: Sequence[Mapping[str, Any]]) -> float:
    """Time over all processes that worked on the run, without the pauses between them."""
    total, start, last = 0.0, None, None
    for event in events:
        now = datetime.fromisoformat(event["time"])
        if start is None or last is None or event["event"] in _SEGMENT_STARTS:
            total += (last - start).total_seconds() if start and last else 0.0
            start = now
        last = now
    return round(total + ((last - start).total_seconds() if start and last else 0.0), 3)
