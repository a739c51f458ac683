"""Checkpoints: all that the server must remember after a round, one verified file each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedprompt.artifacts import read_arrays, write_arrays
from fedprompt.errors import ConfigurationError, DataError, FedpromptError, RunError
from fedprompt.manifest import Arrays, Manifest, Scope

__all__ = ["Checkpoint", "latest_checkpoint", "save_checkpoint"]

_SCHEMA = 1
_KEPT = 2  # checkpoints that stay on disk
_PATTERN = "round-*.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """State of a study after a round.

    Attributes:
        round: Number of the round; 0 before the first.
        study: Digest of the study.
        fingerprint: Of the frozen backbone that all sites have.
        manifest: The tensors of all scopes.
        sites: Ids of the sites that were part of the study so far.
        shared: Shared tensors after the round.
        kept: Tensors of scope `site` by site id.
        strategy: Arrays of the strategy's own state.
        strategy_metadata: JSON values of it.
        event: The event that reports the round; a process killed before it was written lets a resumed one
            write it.
    """

    round: int
    study: str
    fingerprint: str
    manifest: Manifest
    sites: list[str]
    shared: Arrays
    kept: dict[str, Arrays]
    strategy: Arrays = field(default_factory=dict)
    strategy_metadata: dict[str, Any] = field(default_factory=dict)
    event: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Writes `round-<number>.safetensors` atomically and removes all but the newest two."""
    arrays = {f"shared/{name}": array for name, array in checkpoint.shared.items()}
    arrays |= {f"strategy/{name}": array for name, array in checkpoint.strategy.items()}
    for site, kept in checkpoint.kept.items():
        arrays |= {f"site/{site}/{name}": array for name, array in kept.items()}
    metadata = {
        "schema": _SCHEMA,
        "round": checkpoint.round,
        "study": checkpoint.study,
        "fingerprint": checkpoint.fingerprint,
        "manifest": checkpoint.manifest.to_json(),
        "sites": checkpoint.sites,
        "kept": sorted(checkpoint.kept),
        "strategy": checkpoint.strategy_metadata,
        "event": checkpoint.event,
    }
    path = folder / f"round-{checkpoint.round:06d}.safetensors"
    write_arrays(path, arrays, metadata)
    for old in sorted(folder.glob(_PATTERN))[:-_KEPT]:
        old.unlink()
    return path


def latest_checkpoint(folder: Path, study: str) -> Checkpoint | None:
    """The newest checkpoint in `folder`, verified; None where there is none.

    A newest one that cannot be used is refused, never passed over in silence: going on from an older one is a
    decision of whoever removes the file.

    Args:
        folder: Where `save_checkpoint` writes.
        study: Digest of the study that the checkpoint must belong to.

    Raises:
        DataError: It is cut off, changed, or no checkpoint.
        ConfigurationError: It belongs to another study.
    """
    paths = sorted(folder.glob(_PATTERN))
    if not paths:
        return None
    path = paths[-1]
    try:
        arrays, metadata = read_arrays(path)
    except DataError as error:
        hint = f"; remove it to go on from {paths[-2].name}" if len(paths) > 1 else ""
        raise DataError(f"{error}{hint}") from None
    try:
        checkpoint = _rebuild(arrays, metadata)
    except (KeyError, TypeError, ValueError, FedpromptError) as error:
        raise DataError(
            f"{path}: expected a checkpoint of this version, got another file ({error})"
        ) from None
    if checkpoint.study != study:
        raise ConfigurationError(
            f"{path}: expected a checkpoint of study {study[:12]}, got one of study {checkpoint.study[:12]}"
        )
    return checkpoint


def _rebuild(arrays: Arrays, metadata: dict[str, Any]) -> Checkpoint:
    if metadata["schema"] != _SCHEMA:
        raise RunError(f"schema {metadata['schema']}, expected {_SCHEMA}")
    manifest = Manifest.from_json(metadata["manifest"])
    checkpoint = Checkpoint(
        round=int(metadata["round"]),
        study=str(metadata["study"]),
        fingerprint=str(metadata["fingerprint"]),
        manifest=manifest,
        sites=list(metadata["sites"]),
        shared=_under("shared/", arrays),
        kept={site: _under(f"site/{site}/", arrays) for site in metadata["kept"]},
        strategy=_under("strategy/", arrays),
        strategy_metadata=dict(metadata["strategy"]),
        event=dict(metadata["event"]),
    )
    manifest.select(Scope.SHARED).check(checkpoint.shared)
    for kept in checkpoint.kept.values():
        manifest.select(Scope.SITE).check(kept)
    return checkpoint


def _under(prefix: str, arrays: Arrays) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
