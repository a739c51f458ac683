"""What `fedprompt simulate` is going to run: checked before anything is written, read back to resume."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from fedprompt.artifacts import write_json
from fedprompt.config import PHANTOM_CLASSES, Annotation, Site, Study, load_study
from fedprompt.errors import ConfigurationError

__all__ = ["BASELINES", "FEDERATION", "Engine", "Plan", "baseline", "new_plan", "resumed_plan"]

Engine = Literal["inprocess", "ray"]
BASELINES = ("frozen", "head", "local", "fedavg", "fedprox", "fedadam", "fedlppa", "full-finetune")
FEDERATION = "federation.json"

_PLAN = "simulation.json"
_PHANTOMS = "phantoms"


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


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid")

    compare: tuple[str, ...]
    engine: Engine


class _Federation(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sites: tuple[Site, ...]


def new_plan(
    folder: Path,
    study: Study,
    data: Path | None,
    compare: Sequence[str],
    engine: Engine,
    feature_cache: Path | None = None,
) -> Plan:
    """Checks everything, then claims the run directory; without `data` the phantoms are written into it.

    Raises:
        ConfigurationError: The folder holds a run or cannot be made, a baseline is unknown, the engine is not
            installed, the backbone does not fit the study, or the study is not about phantoms.
        DataError: Backbone files or the federation folder cannot be used.
    """
    for name in compare:
        if name not in BASELINES or name == study.strategy.name:
            known = ", ".join(b for b in BASELINES if b != study.strategy.name)
            raise ConfigurationError(f"compare: expected some of {known}, got {name!r}")
        try:
            baseline(study, name)
        except ConfigurationError as error:
            raise ConfigurationError(f"compare: {name} does not fit this study ({error})") from None
    phantoms = PHANTOM_CLASSES[study.task]
    if data is None and study.classes != phantoms:
        raise ConfigurationError(
            f"data: a study of {', '.join(study.classes)} needs --data FOLDER; only phantoms "
            f"({', '.join(phantoms)}) come with fedprompt"
        )
    _check_engine(engine)
    if (folder / _PLAN).exists() or (folder / "study.toml").exists():
        raise _taken(folder)
    _check_cache(feature_cache)
    _check_backbone(study)
    sites = None if data is None else _checked_sites(data, study)
    names = tuple(dict.fromkeys(compare))
    _claim(folder, names, engine)
    if sites is None:
        from fedprompt.data.phantoms import write_phantoms

        write_phantoms(folder / _PHANTOMS, study.seed, task=study.task)
        sites = _checked_sites(folder / _PHANTOMS, study)
    if feature_cache is not None:
        sites = [site.model_copy(update={"feature_cache": feature_cache.resolve()}) for site in sites]
    write_json(folder / FEDERATION, {"sites": [site.model_dump(mode="json") for site in sites]})
    return Plan(folder, study, sites, names, engine)


def baseline(study: Study, name: str) -> tuple[Study, int | None]:
    """The study of a baseline: everything as in `study` but the strategy.

    `frozen` trains no round; `head` trains no prompt, only the head on the frozen features, by fedavg.
    """
    strategy = {
        "name": "fedavg" if name in ("frozen", "head") else name,
        "max-weight": study.strategy.max_weight,
    }
    if name == "head":
        return study.changed(strategy=strategy, prompts={}), None
    return study.changed(strategy=strategy), 0 if name == "frozen" else None


def resumed_plan(folder: Path, engine: Engine | None) -> Plan:
    """The plan of a run directory that was cut off; `engine` instead of the one it began with.

    Raises:
        ConfigurationError: The folder holds no simulated run, or one that was cut off before it began.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"{folder}: expected a run directory, got no folder")
    if not (folder / "study.toml").exists():
        begun = (folder / _PLAN).exists()
        raise ConfigurationError(
            f"{folder}: the run was cut off before its first round; remove the folder and start again"
            if begun
            else f"{folder}: expected a run directory, got a folder without study.toml"
        )
    try:
        plan = _Stored.model_validate_json((folder / _PLAN).read_text(encoding="utf-8"))
        federation = _Federation.model_validate_json((folder / FEDERATION).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{folder}: not a simulated run ({error.strerror})") from None
    except (ValidationError, UnicodeDecodeError):
        raise ConfigurationError(
            f"{folder}: expected {_PLAN} and {FEDERATION} as fedprompt wrote them, got other content"
        ) from None
    chosen = engine or plan.engine
    _check_engine(chosen)
    return Plan(folder, load_study(folder / "study.toml"), federation.sites, plan.compare, chosen)


def _check_engine(engine: str) -> None:
    if engine not in get_args(Engine):
        raise ConfigurationError(f"engine: expected one of {', '.join(get_args(Engine))}, got {engine!r}")
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise ConfigurationError("engine ray: Ray is not installed; pip install 'fedprompt[ray]'")


def _check_cache(folder: Path | None) -> None:
    """Makes the folder for features now: later, one that cannot be written would only cost time unseen."""
    if folder is None:
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"feature-cache: expected a folder that can be written, got {folder} ({error.strerror})"
        ) from None


def _check_backbone(study: Study) -> None:
    from fedprompt.backbones import load_backbone
    from fedprompt.models import build_model

    backbone = load_backbone(study.backbone, task=study.task, classes=len(study.classes))
    backbone.check_size(study.image.size)
    build_model(backbone, study, Annotation.FULL)  # prompts that do not fit say so


def _checked_sites(data: Path, study: Study) -> list[Site]:
    from fedprompt.data.checking import check_cases
    from fedprompt.data.federation import read_federation

    sites = read_federation(data, study)
    if study.rounds.quorum > len(sites):
        raise ConfigurationError(
            f"rounds.quorum: expected at most the {len(sites)} sites of {data}, got {study.rounds.quorum}"
        )
    check_cases(sites, study)
    return sites


def _claim(folder: Path, compare: tuple[str, ...], engine: str) -> None:
    """Makes the run directory ours: of two processes that want it, one gets it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / _PLAN).open("x", encoding="utf-8") as file:
            json.dump({"compare": compare, "engine": engine}, file)
    except FileExistsError:
        raise _taken(folder) from None
    except OSError as error:
        raise ConfigurationError(f"{folder}: the run directory cannot be made ({error.strerror})") from None


def _taken(folder: Path) -> ConfigurationError:
    return ConfigurationError(
        f"{folder}: expected a folder without a run, got one with study.toml; --resume goes on with it"
    )
