"""The summary says what the events say, and what a resumed run did again counts once."""

from __future__ import annotations

from typing import Any

import pytest
from fake_sites import make_study

from server.summary import effective, mean_metrics, summarise


def event(name: str, second: int, **fields: Any) -> dict[str, Any]:
    return {"event": name, "time": f"2026-01-01T00:00:{second:02d}.000+00:00", **fields}


def reported(second: int, number: int, site: str, up: int) -> dict[str, Any]:
    return event("site_reported", second, round=number, site=site, bytes={"up": up, "down": 2 * up})


def finished(second: int, number: int) -> dict[str, Any]:
    return event("round_finished", second, round=number, seconds=3.0, bytes={"up": 20, "down": 40})


CARD = {
    "cases": {"train": 3, "val": 0, "test": 1},
    "annotation": "box",
    "fingerprint": "f",
    "parameters": {"site": 2},
}
EVENTS = [
    event("study_started", 0, rounds=3),
    event("site_joined", 1, site="b", **CARD, environment={"torch": "2"}),
    event("site_joined", 1, site="a", **CARD, environment={"torch": "2"}),
    reported(2, 1, "a", 10),
    finished(4, 1),
    reported(5, 2, "a", 99),
    event("site_dropped", 5, round=2, site="b", code="x", reason="x"),
    event("resumed", 30, round=1),
    event("site_joined", 30, site="a", **CARD, environment={"torch": "2"}),
    reported(31, 2, "b", 10),
    finished(33, 2),
    event("round_skipped", 34, round=3, reason="x"),
    event(
        "evaluated",
        35,
        split="test",
        sites={"a": {"dice": 0.5}},
        mean={"dice": 0.5},
        bytes={"up": 1, "down": 2},
    ),
    event("study_finished", 36, status="completed", rounds=2),
]


def test_a_resumed_run_is_counted_once() -> None:
    summary = summarise(make_study("fedlppa"), EVENTS)
    assert summary["schema"] == 1
    assert (summary["status"], summary["rounds"], summary["skipped"], summary["dropped"]) == (
        "completed",
        2,
        1,
        0,
    )
    assert summary["bytes"] == {"up_per_site_round": 10, "down_per_site_round": 20, "total": 123}
    assert summary["seconds"]["per_round"] == 3.0
    assert summary["seconds"]["total"] == 5 + 6  # not the pause between the two processes
    assert list(summary["sites"]) == ["a", "b"]
    assert summary["sites"]["a"] == {"cases": CARD["cases"], "annotation": "box", "metrics": {"dice": 0.5}}
    assert summary["sites"]["b"]["metrics"] == {}
    assert summary["mean"] == {"dice": 0.5}
    assert summary["environment"]["torch"] == "2"
    assert summary["parameters"] == {"site": 2}


def test_a_run_that_was_killed_has_a_summary_too() -> None:
    summary = summarise(make_study(), EVENTS[:5])
    assert (summary["status"], summary["rounds"], summary["mean"]) == ("stopped", 1, {})
    assert summarise(make_study(), [])["sites"] == {}


def test_effective_events_have_each_round_once() -> None:
    again = [
        *EVENTS,
        event("resumed", 40, round=2),
        event("study_finished", 41, status="completed", rounds=2),
    ]
    names = [(e["event"], e.get("round")) for e in effective(again)]
    assert names.count(("round_finished", 2)) == 1
    assert [name for name, _ in names].count("study_finished") == 1
    assert ("round_skipped", 3) not in names


def test_mean_over_the_sites_that_have_a_metric() -> None:
    assert mean_metrics([{"dice": 1.0}, {"dice": 0.0, "hd95": 3.0}]) == {"dice": 0.5, "hd95": 3.0}
    assert mean_metrics([]) == {}
    assert mean_metrics([{"dice": 0.1}] * 3)["dice"] == pytest.approx(0.1)


def test_a_run_that_was_cut_off_before_its_first_checkpoint_starts_anew() -> None:
    first = [{"event": "study_started"}, {"event": "study_finished", "status": "stopped", "rounds": 0}]
    again = [{"event": "study_started"}, {"event": "study_finished", "status": "completed", "rounds": 4}]
    assert effective(first + again) == again
