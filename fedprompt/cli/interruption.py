"""Ctrl-C that lets the work in hand come to its end; a second one stops at once."""

from __future__ import annotations

import signal
import threading
from contextlib import AbstractContextManager
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["Interruption"]


class Interruption(AbstractContextManager["Interruption"]):
    """While it is entered, the first Ctrl-C only sets `wanted`; the next one raises `KeyboardInterrupt`.

    A process that ignores Ctrl-C, as one in the background does, goes on ignoring it.

    Attributes:
        wanted: Somebody pressed it.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._before: Any = None

    def __enter__(self) -> Self:
        here = threading.current_thread() is threading.main_thread()  # elsewhere no signal can be handled
        if here and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - Python's signature
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True
