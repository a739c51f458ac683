"""The Flower ServerApp: a shell around whatever conducts the study over the grid."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

__all__ = ["make_server_app"]


def make_server_app(conduct: Callable[[Grid], object]) -> ServerApp:
    """A ServerApp whose main function calls `conduct(grid)`, for example `run_study` bound to a run."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        del context  # all settings come from the study file
        conduct(grid)

    return app
