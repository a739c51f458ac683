"""A study and its baselines over simulated sites of one machine: what `fedprompt simulate` runs."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fedprompt.artifacts import read_json, write_json
from fedprompt.cli.plan import FEDERATION, Plan, baseline
from fedprompt.config import Study
from fedprompt.errors import RunError

if TYPE_CHECKING:
    from server.run_directory import RunDirectory

__all__ = ["simulate_study"]

_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
}


class OnProgress(Protocol):
    """What shows progress: told of each phase, then of each event in it."""

    def phase(self, name: str, rounds: int) -> None: ...

    def __call__(self, event: dict[str, Any]) -> None: ...


def simulate_study(plan: Plan, progress: OnProgress) -> dict[str, Any]:
    """Runs the study, then its baselines, and writes `summary.json` with both and `report.html`.

    What a run directory holds already is not run again: a completed phase is taken, a cut-off one goes on.

    Returns:
        The content of `summary.json`.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"monai\.")
    _log_to(plan.folder / "run.log")
    os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
    summary = _phase(plan, plan.study.strategy.name, plan.folder, plan.study, None, progress)
    for name in plan.compare:
        folder = plan.folder / "baselines" / name
        write_json(folder / FEDERATION, read_json(plan.folder / FEDERATION))
        study, rounds = baseline(plan.study, name)
        found = _phase(plan, name, folder, study, rounds, progress)
        kept = ("status", "mean", "sites", "bytes", "seconds", "parameters")
        summary["baselines"][name] = {key: found[key] for key in kept}
    write_json(plan.folder / "summary.json", summary)

    from fedprompt.report import write_report

    write_report(plan.folder, plan.folder / "report.html")
    return summary


def _log_to(path: Path) -> None:
    """Details of failures go to a file; the terminal shows progress and one sentence."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    log = logging.getLogger("fedprompt")
    log.addHandler(handler)
    log.propagate = False


def _phase(
    plan: Plan, name: str, folder: Path, study: Study, rounds: int | None, progress: OnProgress
) -> dict[str, Any]:
    done = folder / "summary.json"
    if done.exists() and (summary := read_json(done))["status"] == "completed":
        return {**summary, "baselines": {}}
    from client.app import close_agents, make_client_app
    from server.loop import run_study
    from server.run_directory import RunDirectory

    engine: Callable[..., Any] = import_module(f"server.engines.{plan.engine}").run
    progress.phase(name, study.rounds.count if rounds is None else rounds)
    begun = (folder / "study.toml").exists()
    with RunDirectory.resume(folder, study) if begun else RunDirectory.create(folder, study) as run:
        _check_stores(run)
        outcome = engine(
            lambda grid, stop: run_study(
                grid, stop, run=run, sites=len(plan.sites), rounds=rounds, on_event=progress
            ),
            make_client_app(folder),
            len(plan.sites),
        )
    close_agents(folder)
    if outcome.reason == "interrupted":
        raise KeyboardInterrupt
    if outcome.status != "completed":
        raise RunError(f"{folder}: {name} {outcome.status} after round {outcome.rounds}: {outcome.reason}")
    return dict(outcome.summary)


def _check_stores(run: RunDirectory) -> None:
    """Refuses to go on when a site lost what it kept after its last round that counts."""
    from client.store import PromptStore

    checkpoint = run.latest_checkpoint()
    if checkpoint is None:
        return
    last = {
        event["site"]: event["round"]
        for event in run.events()
        if event["event"] == "site_reported" and event["round"] <= checkpoint.round
    }
    for site, number in sorted(last.items()):
        PromptStore(run.folder / "sites" / site / "store", checkpoint.study).require(number)
