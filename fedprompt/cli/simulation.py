"""A study and its baselines over simulated sites of one machine: what `fedprompt simulate` runs."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from fedprompt.artifacts import read_json, write_json
from fedprompt.config import Site, Study, load_study
from fedprompt.errors import ConfigurationError, DataError, RunError

__all__ = ["BASELINES", "Plan", "new_plan", "resumed_plan", "simulate_study"]

Engine = Literal["inprocess", "ray"]
BASELINES = ("frozen", "local", "fedavg", "fedprox", "fedadam", "fedlppa", "full-finetune")

_PLAN = "simulation.json"
_FEDERATION = "federation.json"
_PHANTOMS = "phantoms"
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


@dataclass(frozen=True)
class Plan:
    """What to run where.

    Attributes:
        folder: The run directory.
        study: The study.
        sites: Sorted by id.
        compare: Baselines with the same budget, run after the study.
        engine: Where sites run.
    """

    folder: Path
    study: Study
    sites: Sequence[Site]
    compare: tuple[str, ...]
    engine: Engine


def new_plan(folder: Path, study: Study, data: Path | None, compare: Sequence[str], engine: Engine) -> Plan:
    """Prepares a new run directory; without `data` the phantoms are written into it.

    Raises:
        ConfigurationError: The folder holds a run, a baseline is unknown, or the study is not about phantoms.
        DataError: The federation folder cannot be used.
    """
    for name in compare:
        if name not in BASELINES or name == study.strategy.name:
            known = ", ".join(b for b in BASELINES if b != study.strategy.name)
            raise ConfigurationError(f"compare: expected some of {known}, got {name!r}")
    if (folder / "study.toml").exists():
        raise ConfigurationError(f"{folder}: expected a folder without a run; --resume goes on with one")
    if data is None and study.classes != Study().classes:
        raise ConfigurationError(
            f"data: a study of {', '.join(study.classes[1:])} needs --data FOLDER; only the phantoms "
            f"({', '.join(Study().classes[1:])}) come with fedprompt"
        )
    sites = _sites(folder, study, data)
    plan = Plan(folder, study, sites, tuple(dict.fromkeys(compare)), engine)
    write_json(folder / _FEDERATION, {"sites": [site.model_dump(mode="json") for site in sites]})
    write_json(folder / _PLAN, {"compare": list(plan.compare), "engine": engine})
    return plan


def resumed_plan(folder: Path) -> Plan:
    """The plan of a run directory that was cut off.

    Raises:
        ConfigurationError: The folder holds no simulated run.
    """
    if not (folder / "study.toml").exists():
        raise ConfigurationError(f"{folder}: expected a run directory, got a folder without study.toml")
    try:
        plan = read_json(folder / _PLAN)
        listed = read_json(folder / _FEDERATION)["sites"]
    except DataError as error:
        raise ConfigurationError(f"{folder}: not a simulated run ({error})") from None
    sites = [Site.model_validate(values) for values in listed]
    return Plan(folder, load_study(folder / "study.toml"), sites, tuple(plan["compare"]), plan["engine"])


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
        write_json(folder / _FEDERATION, read_json(plan.folder / _FEDERATION))
        study, rounds = _baseline(plan.study, name)
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


def _sites(folder: Path, study: Study, data: Path | None) -> list[Site]:
    from fedprompt.data.checking import check_cases
    from fedprompt.data.federation import read_federation

    if data is None:
        from fedprompt.data.phantoms import write_phantoms

        data = folder / _PHANTOMS
        write_phantoms(data, study.seed)
    sites = read_federation(data, study)
    check_cases(sites, study)
    return sites


def _baseline(study: Study, name: str) -> tuple[Study, int | None]:
    """The study of a baseline: everything as in `study` but the strategy; `frozen` trains no round."""
    strategy = {"name": "fedavg" if name == "frozen" else name, "max-weight": study.strategy.max_weight}
    return study.changed(strategy=strategy), 0 if name == "frozen" else None


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
        outcome = engine(
            lambda grid, stop: run_study(
                grid, stop, run=run, sites=len(plan.sites), rounds=rounds, on_event=progress
            ),
            make_client_app(folder),
            len(plan.sites),
        )
    close_agents(folder)
    if outcome.status != "completed":
        raise RunError(f"{folder}: {name} {outcome.status} after round {outcome.rounds}: {outcome.reason}")
    return dict(outcome.summary)
