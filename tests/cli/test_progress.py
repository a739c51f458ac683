"""Progress: one line per round in a log, a live display in a terminal, nothing when silent."""

from __future__ import annotations

import io
import re
import threading
from typing import Any

from fedprompt.cli.progress import Progress

SITES = ["oslo", "paris"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def round_events(number: int, *, dropped: str | None = None, seconds: float = 4.0) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [{"event": "round_started", "round": number, "sites": SITES}]
    for site in SITES:
        if site == dropped:
            events.append(
                {"event": "site_dropped", "round": number, "site": site, "code": "run", "reason": "NaN"}
            )
        else:
            sizes = {"up": 1000, "down": 2000}
            events.append({"event": "site_reported", "round": number, "site": site, "bytes": sizes})
    mean = {"dice": 0.5 + number / 10}
    events.append(
        {
            "event": "round_finished",
            "round": number,
            "sites": 2,
            "mean": mean,
            "loss": 0.4,
            "seconds": seconds,
        }
    )
    return events


def show(stream: io.StringIO, **options: Any) -> str:
    with Progress(phases=2, stream=stream, **options) as progress:
        progress.phase("fedlppa", 3)
        for number, seconds in ((1, 60.0), (2, 4.0), (3, 4.0)):
            for event in round_events(number, dropped="oslo" if number == 2 else None, seconds=seconds):
                progress(event)
        progress({"event": "evaluated", "split": "test", "mean": {"dice": 0.9}})
        progress({"event": "study_finished", "status": "completed", "rounds": 3})
        progress.phase("frozen", 0)
        progress({"event": "study_finished", "status": "completed", "rounds": 0})
    return stream.getvalue()


def test_a_log_has_one_line_per_round() -> None:
    assert show(io.StringIO()).splitlines() == [
        "fedlppa: 3 rounds",
        "fedlppa: round 1 of 3, 2 sites, loss 0.400, Dice 0.600, 2 kB up, 4 kB down, 2 min 00 s left",
        "fedlppa: round 2, oslo dropped (NaN)",
        "fedlppa: round 2 of 3, 2 sites, loss 0.400, Dice 0.700, 3 kB up, 6 kB down, 32 s left",
        "fedlppa: round 3 of 3, 2 sites, loss 0.400, Dice 0.800, 5 kB up, 10 kB down",
        "fedlppa: completed, test Dice 0.900",
        "frozen: evaluation only",
        "frozen: completed, test Dice –",
    ]


def classified(stream: io.StringIO) -> Progress:
    """A round and the test of a classification."""
    with Progress(task="classification", stream=stream) as progress:
        progress.phase("fedavg", 1)
        for event in round_events(1)[:-1]:
            progress(event)
        mean = {"auroc": 0.81, "balanced_accuracy": 0.7249, "accuracy": 0.9}
        progress(
            {"event": "round_finished", "round": 1, "sites": 2, "mean": mean, "loss": 0.4, "seconds": 4.0}
        )
        if progress._live is not None:
            progress._live.refresh()
        progress({"event": "evaluated", "split": "test", "mean": {"balanced_accuracy": 0.6}})
        progress({"event": "study_finished", "status": "completed", "rounds": 1})
    return progress


def test_a_classification_has_its_own_metrics() -> None:
    log, terminal = io.StringIO(), Terminal()
    classified(log)
    assert log.getvalue().splitlines() == [
        "fedavg: 1 rounds",
        "fedavg: round 1 of 1, 2 sites, loss 0.400, AUROC 0.810, balanced accuracy 0.725, 2 kB up, 4 kB down",
        "fedavg: completed, test AUROC –, balanced accuracy 0.600",
    ]
    classified(terminal)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert "validation AUROC 0.810" in shown
    assert "balanced accuracy 0.725" in shown
    assert "Dice" not in shown


def test_silence() -> None:
    assert show(io.StringIO(), silent=True) == ""
    assert show(Terminal(), silent=True) == ""


def test_a_terminal_gets_bars_marks_and_numbers() -> None:
    stream = Terminal()
    with Progress(phases=2, stream=stream) as progress:
        progress.phase("fedlppa", 2)
        for event in round_events(1):
            progress(event)
        for event in round_events(2, dropped="oslo")[:-1]:
            progress(event)
        assert progress._live is not None
        progress._live.refresh()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    for part in (
        "round 2 of 2",
        "4.0 s left",
        "1 of 2",
        "✗ oslo",
        "✓ paris",
        "validation Dice 0.600",
        "oslo dropped",
    ):
        assert part in shown, part
    assert "round 1 of 2, 2 sites" not in shown, "the display has it already"
    assert "\x1b[?25h" in stream.getvalue(), "the cursor comes back"


def test_many_sites_are_counted() -> None:
    stream = Terminal()
    with Progress(stream=stream) as progress:
        progress.phase("fedavg", 1)
        progress({"event": "round_started", "round": 1, "sites": [f"s{n}" for n in range(100)]})
        progress({"event": "site_reported", "round": 1, "site": "s7"})
        assert progress._live is not None
        progress._live.refresh()
    assert "1 of 100 sites reported" in stream.getvalue()


def test_a_resumed_run_goes_on_counting() -> None:
    stream = io.StringIO()
    with Progress(stream=stream) as progress:
        progress.phase("fedlppa", 5)
        progress({"event": "resumed", "round": 3})
        for event in round_events(4):
            progress(event)
    assert "goes on after round 3" in stream.getvalue()
    assert "round 4 of 5" in stream.getvalue()
    assert "4.0 s left" in stream.getvalue()


def test_events_may_come_from_several_threads() -> None:
    stream = Terminal()
    with Progress(stream=stream) as progress:
        progress.phase("fedavg", 200)

        def work(offset: int) -> None:
            for number in range(offset, 200, 4):
                for event in round_events(number, dropped="oslo"):
                    progress(event)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
            assert not thread.is_alive(), "no deadlock between the display and the events"
