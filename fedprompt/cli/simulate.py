"""`fedprompt simulate`: one command from a study file to a report."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fedprompt.config import Study, load_study, study_from_mapping
from fedprompt.errors import ConfigurationError

__all__ = ["simulate"]


def simulate(
    study_file: Annotated[
        Path | None, typer.Argument(metavar="[STUDY.toml]", help="Study file; default: the phantoms.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Federation folder with one folder per site; default: phantoms.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Without a study file: segmentation (default) or classification.")
    ] = None,
    strategy: Annotated[str | None, typer.Option(help="Strategy instead of the study's.")] = None,
    compare: Annotated[
        str, typer.Option(help="Baselines with the same budget, as in frozen,head,local,fedavg.")
    ] = "",
    rounds: Annotated[int | None, typer.Option(help="Rounds instead of the study's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed instead of the study's.")] = None,
    engine: Annotated[
        Literal["inprocess", "ray"] | None,
        typer.Option(help="Threads of this process (default), or Flower's Ray engine."),
    ] = None,
    feature_cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps the features of all sites for later runs.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; default: runs/STUDY-TIME.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Run directory to go on with.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json on standard output.")] = False,
) -> None:
    """Run a study over simulated sites on this machine and write a report."""
    from fedprompt.cli.plan import new_plan, resumed_plan
    from fedprompt.cli.progress import Progress
    from fedprompt.cli.simulation import simulate_study

    if resume is not None:
        begun = (study_file, data, task, strategy, rounds, seed, feature_cache, out)
        if any(value is not None for value in begun) or compare:
            raise ConfigurationError(
                "resume: expected no other option but --json, got one that the run fixed"
            )
        plan = resumed_plan(resume, engine)
    else:
        study = _study(study_file, task, strategy, rounds, seed)
        folder = out or Path("runs") / f"{study.name}-{datetime.now():%Y%m%d-%H%M%S}"
        names = [name.strip() for name in compare.split(",") if name.strip()]
        plan = new_plan(folder, study, data, names, engine or "inprocess", feature_cache)
    with Progress(phases=1 + len(plan.compare), task=plan.study.task) as progress:
        try:
            summary = simulate_study(plan, progress)
        except KeyboardInterrupt:
            print(f"go on with: fedprompt simulate --resume {plan.folder}", file=sys.stderr)
            raise
    if as_json:
        print(json.dumps(summary))
        return
    _show(summary, plan.study.task)
    print(f"report: {plan.folder / 'report.html'}", file=sys.stderr)


def _study(
    path: Path | None, task: str | None, strategy: str | None, rounds: int | None, seed: int | None
) -> Study:
    if path is not None and task is not None:
        raise ConfigurationError("task: expected no --task beside a study file, which says it already")
    given = {} if task is None else {"task": task}
    study = study_from_mapping(given, "simulate") if path is None else load_study(path)
    changes: dict[str, Any] = {}
    if strategy is not None and strategy != study.strategy.name:
        changes["strategy"] = {"name": strategy, "max-weight": study.strategy.max_weight}
    if rounds is not None:
        changes["rounds"] = {**dict(study.rounds), "count": rounds}
    if seed is not None:
        changes["seed"] = seed
    return study.changed(**changes) if changes else study


def _show(summary: dict[str, Any], task: str) -> None:
    """Mean test metrics of the strategy and its baselines as a table on standard error."""
    from rich.console import Console
    from rich.table import Table

    from fedprompt.report.measures import measures_of

    measures = measures_of(task).compared
    table = Table(title="test split, mean over sites")
    for column in ("", *(measure.label for measure in measures)):
        table.add_column(column, justify="right" if column else "left")
    rows = {**summary["baselines"], summary["strategy"]: summary}
    for name, row in rows.items():
        table.add_row(name, *(measure.exact_text(row["mean"].get(measure.key)) for measure in measures))
    Console(stderr=True).print(table)
