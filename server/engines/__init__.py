"""Engines that simulate sites: each runs a server function over a number of nodes and returns its result."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeVar

from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

__all__ = ["Engine", "get_engine"]

T = TypeVar("T")


class Engine(Protocol):
    """Calls `main(grid, stop)` while `sites` nodes answer with `client_app`."""

    def __call__(
        self,
        main: Callable[[Grid, threading.Event], T],
        client_app: ClientApp,
        sites: int,
        *,
        workers: int | None = None,
    ) -> T: ...


def get_engine(name: Literal["inprocess", "ray"]) -> Engine:
    """The engine of that name; nothing of Ray is imported before it is asked for."""
    engine: Any
    if name == "ray":
        from server.engines.ray import run as engine
    else:
        from server.engines.inprocess import run as engine
    chosen: Engine = engine
    return chosen
