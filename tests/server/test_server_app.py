"""The ServerApp hands Flower's grid to the study and lets its errors out."""

from __future__ import annotations

import pytest
from fake_sites import make_app, make_study
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid

from fedprompt.errors import RunError
from server.app import make_server_app
from server.engines.inprocess import InProcessGrid


def test_the_grid_is_handed_on_and_errors_come_out() -> None:
    seen: list[Grid] = []

    def conduct(grid: Grid) -> None:
        seen.append(grid)
        if len(seen) == 2:
            raise RunError("no more")

    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    app = make_server_app(conduct)
    with InProcessGrid(make_app(make_study(), ["a"]), 1) as grid:
        app(grid, context)
        with pytest.raises(RunError, match="no more"):
            app(grid, context)
    assert seen == [grid, grid]
