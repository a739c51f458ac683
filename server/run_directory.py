"""The run directory: everything that a study leaves on disk, owned by one process at a time."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from fedprompt.artifacts import write_arrays, write_atomic, write_json
from fedprompt.config import Annotation, Study, load_study
from fedprompt.config.template import study_toml
from fedprompt.errors import ConfigurationError, DataError, RunError
from fedprompt.manifest import Scope
from server.checkpoints import Checkpoint, latest_checkpoint, save_checkpoint

__all__ = ["RunDirectory", "new_event", "read_events"]

_STUDY = "study.toml"
_EVENTS = "events.jsonl"
_LOCK = ".lock"


class RunDirectory:
    """A study's folder: `study.toml`, `events.jsonl`, `checkpoints/`, `prompts/`, `summary.json`.

    Made by `create` or `resume`; a context manager that gives the folder free. The lock is the kernel's, so
    that a killed process leaves none behind.
    """

    def __init__(self, folder: Path, study: Study, lock: int) -> None:
        self.folder = folder
        self.study = study
        self._lock = lock
        _mend_events(folder / _EVENTS)

    @classmethod
    def create(cls, folder: Path, study: Study) -> Self:
        """A new run in `folder`, which may exist but must not hold a run.

        Raises:
            ConfigurationError: It holds a run already.
            RunError: Another process works in it.
        """
        folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        lock = _take_lock(folder)
        if (folder / _STUDY).exists():
            os.close(lock)
            raise ConfigurationError(f"{folder}: expected a folder without a run, got one with {_STUDY}")
        if study.backbone.folder is not None:  # study.toml moves the origin of relative paths
            backbone = study.backbone.model_copy(update={"folder": study.backbone.folder.resolve()})
            study = study.model_copy(update={"backbone": backbone})
        write_atomic(folder / _STUDY, study_toml(study).encode())
        return cls(folder, study, lock)

    @classmethod
    def resume(cls, folder: Path, study: Study | None = None) -> Self:
        """The run that `folder` holds.

        Args:
            folder: A run directory.
            study: What the caller believes to go on with; None takes the one in the folder.

        Raises:
            ConfigurationError: The folder holds no run, or one of another study.
            RunError: Another process works in it.
        """
        folder = folder.resolve()
        if not (folder / _STUDY).exists():
            raise ConfigurationError(f"{folder}: expected a run directory, got a folder without {_STUDY}")
        stored = load_study(folder / _STUDY)
        if study is not None and study.digest() != stored.digest():
            raise ConfigurationError(
                f"{folder}: expected a run of study {study.name}, got one of another study"
            )
        return cls(folder, stored, _take_lock(folder))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the folder free."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def append(self, event: Mapping[str, Any]) -> None:
        """Adds one event (see `new_event`) to `events.jsonl`. NaN and infinity are refused."""
        line = json.dumps(dict(event), allow_nan=False) + "\n"
        with (self.folder / _EVENTS).open("ab", buffering=0) as file:
            file.write(line.encode())  # one system call: a reader never sees half a line for long

    def events(self) -> list[dict[str, Any]]:
        """All events so far."""
        return read_events(self.folder)

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint; the last two stay."""
        save_checkpoint(self.folder / "checkpoints", checkpoint)

    def latest_checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint, verified; raises where it is damaged or of another study."""
        return latest_checkpoint(self.folder / "checkpoints", self.study.digest())

    def write_bundle(self, checkpoint: Checkpoint, facts: Mapping[str, Any]) -> None:
        """Writes `prompts/`: the shared tensors and what is needed to use them.

        The bytes of `shared.safetensors` depend on study, round and tensors alone.

        Args:
            checkpoint: State of the study.
            facts: Further JSON values for `bundle.json`: backbone name, metrics.
        """
        study, folder = self.study, self.folder / "prompts"
        origin = {"study": study.name, "digest": checkpoint.study, "round": checkpoint.round}
        shared = checkpoint.manifest.select(Scope.SHARED).to_json()
        write_arrays(folder / "shared.safetensors", checkpoint.shared, {**origin, "manifest": shared})
        bundle = {
            "schema": 1,
            **origin,
            "strategy": study.strategy.name,
            "task": study.task,
            "classes": list(study.classes),
            "image_size": study.image.size,
            "seed": study.seed,
            "annotation": Annotation.FULL.value,  # for a site that draws no masks: no kind is told
            "prompts": study.prompts.model_dump(mode="json", by_alias=True, exclude_none=True),
            "manifest": checkpoint.manifest.to_json(),
            "backbone": {"name": study.backbone.name, "fingerprint": checkpoint.fingerprint},
            **facts,
        }
        write_json(folder / "bundle.json", bundle)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes `summary.json`."""
        write_json(self.folder / "summary.json", dict(summary))


def read_events(folder: Path) -> list[dict[str, Any]]:
    """All whole events of a run directory, in order; a last line that is being written is left out.

    Raises:
        DataError: A line is no JSON.
    """
    path = folder / _EVENTS
    if not path.exists():
        return []
    events = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            events.append(json.loads(line))
        except ValueError:
            raise DataError(f"{path}: line {number} is no JSON object; the file was damaged") from None
    return events


def new_event(event: str, **fields: Any) -> dict[str, Any]:
    """An event that happens now."""
    return {"event": event, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}


def _take_lock(folder: Path) -> int:
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise RunError(f"{folder}: another process works in this run directory") from None
    return descriptor


def _mend_events(path: Path) -> None:
    """Cuts off a last line that a killed process did not finish."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
