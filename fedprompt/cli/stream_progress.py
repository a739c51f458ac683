"""How far a command is with its images, on standard error: a bar, or lines where no terminal is."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["StreamProgress"]


class StreamProgress(AbstractContextManager["StreamProgress"]):
    """Counts images.

    Args:
        what: Is done with them, such as "adapting".
        total: Number of images.
        stream: Where to write; standard error by default. A terminal gets a bar, which leaves it clean.
    """

    def __init__(self, what: str, total: int, *, stream: TextIO | None = None) -> None:
        self._what, self._total, self._done = what, total, 0
        self._stream = stream or sys.stderr
        console = Console(file=self._stream)
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(what, total=total)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, note: str = "") -> None:
        """One image more is done; `note` stands beside the count."""
        before, self._done = self._done, self._done + 1
        if self._bar is not None:
            described = escape(f"{self._what}, {note}" if note else self._what)
            self._bar.update(self._task, completed=self._done, description=described)
        elif 10 * self._done // self._total > 10 * before // self._total:
            beside = f", {note}" if note else ""
            print(
                f"{self._what}: {self._done} of {self._total} images{beside}", file=self._stream, flush=True
            )

    def say(self, line: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(escape(line), soft_wrap=True, highlight=False)
        else:
            print(line, file=self._stream, flush=True)
