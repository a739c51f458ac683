"""Flower's Ray engine: the same study, with the sites in processes of their own."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedprompt.errors import ConfigurationError, RunError
from server.app import make_server_app

__all__ = ["run"]

T = TypeVar("T")

_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # an actor sees the GPU, as the in-process engine does
}
_GRACE = 60.0  # seconds in which the server must write its files after Ray ended


def run(
    main: Callable[[Grid, threading.Event], T],
    client_app: ClientApp,
    sites: int,
    *,
    workers: int | None = None,
) -> T:
    """Runs `main(grid, stop)` over simulated sites in Ray actors and returns what it returns.

    Args:
        main: The server's side, in a thread of this process; `stop` ends it early when set.
        client_app: The sites' side; it is pickled into the actors.
        sites: Number of nodes. Node i has `partition-id` i in its node_config.
        workers: Processes that work at the same time, each on one core; by default one per core.

    Raises:
        ConfigurationError: Ray is not installed.
        RunError: Ray failed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigurationError("engine ray: Ray is not installed; pip install 'fedprompt[ray]'")
    server = _Server(main)
    init: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "include_dashboard": False}
    if workers is not None:
        init["num_cpus"] = workers
    config: dict[str, Any] = {"init_args": init, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    with _quiet():
        from flwr.simulation import run_simulation
        from flwr.supercore import telemetry

        telemetry.FLWR_TELEMETRY_ENABLED = "0"  # read once at import, which may be past
        try:
            run_simulation(make_server_app(server), client_app, sites, backend_config=config)
        except KeyboardInterrupt:
            server.end()
        except Exception as error:
            server.end()
            if not server.results and server.error is None:
                raise RunError(f"engine ray: {error.__cause__ or error}") from error
    if server.error is not None:
        raise server.error
    if not server.results:
        raise RunError("engine ray: the server did not end")
    return server.results[0]


class _Server(Generic[T]):
    """Calls `main` in Flower's thread and keeps what comes of it, for Flower hands nothing back."""

    def __init__(self, main: Callable[[Grid, threading.Event], T]) -> None:
        self._main = main
        self._stop = threading.Event()
        self._ended = threading.Event()
        self.results: list[T] = []
        self.error: BaseException | None = None

    def __call__(self, grid: Grid) -> None:
        try:
            self.results.append(self._main(grid, self._stop))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            self.error = error
        finally:
            self._ended.set()

    def end(self) -> None:
        """Lets the server finish in order, after the engine is gone."""
        self._stop.set()
        self._ended.wait(_GRACE)


@contextmanager
def _quiet() -> Iterator[None]:
    """No telemetry, no update checks, errors only in the logs; the environment is put back afterwards."""
    before = dict(os.environ)  # Flower and Ray add to it
    os.environ.update(_ENVIRONMENT)
    loggers = [logging.getLogger(name) for name in ("flwr", "ray")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
