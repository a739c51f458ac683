"""What a run is doing, on standard error: a live display in a terminal, one line per round elsewhere."""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedprompt.report.measures import LOSS, measures_of
from fedprompt.report.numerals import DASH, duration, size

__all__ = ["Progress"]

_MOST_MARKS = 24  # sites with a mark of their own
_REFRESH = 8  # pictures per second


class Progress(AbstractContextManager["Progress"]):
    """Shows the events of one or several runs, one after the other.

    Args:
        phases: Number of runs.
        task: Of the study: which metrics are shown.
        silent: Show nothing.
        stream: Where to write; standard error by default. A terminal gets a live display.
    """

    def __init__(
        self,
        *,
        phases: int = 1,
        task: str = "segmentation",
        silent: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        self._phases = phases
        self._measures = measures_of(task).headline
        self._silent = silent
        self._console = Console(file=stream or sys.stderr, highlight=False)
        self._live: Live | None = None
        self._lock = threading.RLock()
        self._phase_number = 0
        self._began = time.monotonic()
        self._reset("", 0)

    def _reset(self, name: str, rounds: int) -> None:
        self._name, self._rounds = name, rounds
        self._done = self._round = 0
        self._sites: dict[str, str] = {}  # by site: waiting, reported, dropped
        self._loss: float | None = None
        self._mean: dict[str, float] = {}  # validation metrics in the last round
        self._test: dict[str, float] = {}
        self._up = self._down = 0.0
        self._seconds: list[float] = []
        self._doing = "waiting for sites"

    def __enter__(self) -> Self:
        if not self._silent and self._console.is_terminal:
            self._live = Live(
                get_renderable=self._display,
                console=self._console,
                refresh_per_second=_REFRESH,
                transient=True,
                redirect_stdout=False,
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def phase(self, name: str, rounds: int) -> None:
        """The next run begins: its name and its number of rounds."""
        with self._lock:
            self._phase_number += 1
            self._phases = max(self._phases, self._phase_number)
            self._reset(name, rounds)
        self._say(f"{name}: {rounds} rounds" if rounds else f"{name}: evaluation only")

    def __call__(self, event: dict[str, Any]) -> None:
        """Takes one event of the run."""
        with self._lock:
            line = self._take(event)
        if line:
            self._say(line, lasting=event["event"] != "round_finished")

    def _take(self, event: dict[str, Any]) -> str | None:
        """Changes the state; returns a line where there is something to tell for good."""
        match event["event"]:
            case "resumed":
                self._done = self._round = event["round"]
                return f"{self._name}: goes on after round {event['round']}"
            case "site_refused":
                who = event.get("site") or f"node {event.get('node')}"
                return f"{self._name}: {who} refused ({event.get('reason')})"
            case "round_started":
                self._round, self._doing = event["round"], "training"
                self._sites = dict.fromkeys(event["sites"], "waiting")
            case "site_reported":
                self._sites[event["site"]] = "reported"
                traffic = event.get("bytes", {})
                self._up += traffic.get("up", 0)
                self._down += traffic.get("down", 0)
            case "site_dropped":
                self._sites[event["site"]] = "dropped"
                return (
                    f"{self._name}: round {event['round']}, {event['site']} dropped ({event.get('reason')})"
                )
            case "round_skipped":
                self._done = event["round"]
                return f"{self._name}: round {event['round']} skipped ({event.get('reason')})"
            case "round_finished":
                return self._finished(event)
            case "evaluated":
                self._test = event.get("mean", {})
            case "study_finished":
                self._doing = event.get("status", "finished")
                return f"{self._name}: {self._doing}, test {', '.join(self._scores(self._test))}"
        return None

    def _finished(self, event: dict[str, Any]) -> str:
        self._done, self._doing = event["round"], "evaluating on test cases"
        self._loss, self._mean = event.get("loss"), event.get("mean", {})
        self._seconds.append(event.get("seconds", 0.0))
        left = self._left()
        parts = [
            f"{self._name}: round {self._done} of {self._rounds}",
            f"{event['sites']} sites",
            f"loss {LOSS.text(self._loss)}",
            *self._scores(self._mean),
            f"{size(self._up)} up, {size(self._down)} down",
        ]
        if left:
            parts.append(f"{duration(left)} left")
        return ", ".join(parts)

    def _scores(self, mean: dict[str, float]) -> list[str]:
        return [f"{measure.label} {measure.text(mean.get(measure.key))}" for measure in self._measures]

    def _left(self) -> float | None:
        """Seconds until the last round of this phase, by the median of its rounds."""
        if not self._seconds:
            return None
        return statistics.median(self._seconds) * max(self._rounds - self._done, 0)

    def _say(self, line: str, *, lasting: bool = False) -> None:
        """A line in a log; in a terminal only what the live display does not show. Never under the lock:
        the display takes it while rich holds its own."""
        if not self._silent and (lasting or self._live is None):
            self._console.print(Text(line), soft_wrap=True)

    def _display(self) -> RenderableType:
        with self._lock:
            bars = Table.grid(padding=(0, 2))
            share = self._done / self._rounds if self._rounds else float(self._doing == "completed")
            bars.add_row(
                Text(self._name or "starting", style="bold"),
                ProgressBar(total=1, completed=share, width=32),
                f"round {self._round} of {self._rounds}" if self._rounds else self._doing,
                self._remaining(),
            )
            if self._phases > 1:
                overall = max(self._phase_number - 1, 0) + share
                bars.add_row(
                    Text("all runs", style="dim"),
                    ProgressBar(total=self._phases, completed=overall, width=32),
                    f"{max(self._phase_number, 1)} of {self._phases}",
                    Text(f"{duration(time.monotonic() - self._began)} so far", style="dim"),
                )
            numbers = Text.assemble(
                ("loss ", "dim"),
                LOSS.text(self._loss),
                *self._validation(),
                ("   up ", "dim"),
                size(self._up),
                ("   down ", "dim"),
                size(self._down),
            )
            return Group(bars, numbers, self._marks())

    def _validation(self) -> Iterator[tuple[str, str]]:
        for measure in self._measures:
            yield f"   validation {measure.label} ", "dim"
            yield measure.text(self._mean.get(measure.key)), "bold"

    def _remaining(self) -> Text:
        left = self._left()
        return Text(f"{DASH if left is None else duration(left)} left", style="dim")

    def _marks(self) -> Text:
        """A mark per site: reported, dropped, still out; only counts where there are many."""
        states = list(self._sites.values())
        if not states:
            return Text(self._doing, style="dim")
        reported, dropped = states.count("reported"), states.count("dropped")
        if len(states) > _MOST_MARKS:
            return Text(f"{reported} of {len(states)} sites reported, {dropped} dropped", style="dim")
        text = Text()
        looks = {"reported": ("✓", "green"), "dropped": ("✗", "red"), "waiting": ("·", "dim")}
        for site, state in self._sites.items():
            mark, style = looks[state]
            text.append(f"{mark} {site}  ", style=style)
        return text
