"""Backbones on disk: a folder of ours, a folder of `transformers`, or a model of the hub.

A folder of ours has `backbone.json`, `weights.safetensors` and, for some, `encoder/` in the format of
transformers. It is self-contained: a site without a network reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedprompt.artifacts import read_arrays, read_json, write_arrays, write_json
from fedprompt.backbones.base import Backbone, fingerprint, freeze, weights
from fedprompt.backbones.download import hub_folder
from fedprompt.backbones.hub import HubBackbone
from fedprompt.config import BackboneSettings
from fedprompt.errors import ConfigurationError, DataError
from fedprompt.families import FAMILIES, Task, backbone_class, family, misfit

__all__ = [
    "DESCRIPTION",
    "EMBEDDED",
    "encoder_source",
    "hub_family",
    "load_backbone",
    "load_folder",
    "provenance_of",
    "save_backbone",
]

EMBEDDED = Path(__file__).parent / "weights"  # one folder per backbone that ships with the package
DESCRIPTION = "backbone.json"
WEIGHTS = "weights.safetensors"
ENCODER = "encoder"
SCHEMA = 2
_FOREIGN = "config.json"  # of transformers
_PICKLES = ("*.pt", "*.pth", "*.bin", "*.ckpt", "*.pkl")


def load_backbone(settings: BackboneSettings, *, task: Task, classes: int) -> Backbone:
    """The frozen backbone that a study names: from the package, its folder or the hub.

    Args:
        settings: The study's.
        task: The study's; segmentation needs a decoder, unless the family decodes by class prompts.
        classes: The study's, with the background; what a decoder must have in segmentation.

    Raises:
        ConfigurationError: There is no such backbone or folder, it cannot do the task, or it is not the one
            that the study names (registry name, number of classes, fingerprint).
        DataError: Its files are damaged, foreign or not safe to read.
        RunError: The hub cannot be reached.
    """
    problem = misfit(settings.name, task, ())
    if problem is not None:
        raise ConfigurationError(problem)
    place, source = _place(settings)
    backbone = load_folder(place, settings.name, source)
    if task == "segmentation" and "class_prompts" not in family(settings.name).prompts[task]:
        _check_decoder(backbone, classes, source)
    found = fingerprint(backbone) if settings.fingerprint is not None else None
    if found != settings.fingerprint:
        raise ConfigurationError(
            f"{source}: expected a backbone with fingerprint {settings.fingerprint}, got {found}"
        )
    return backbone


def load_folder(folder: Path, name: str | None = None, source: str | None = None) -> Backbone:
    """The frozen backbone of a folder, ours or of transformers.

    Args:
        folder: What `save_backbone` wrote, or a model of transformers.
        name: Registry name that it must have; without one, what the folder says.
        source: What errors call the folder; its path by default.

    Raises:
        ConfigurationError: There is no such folder, or it holds another backbone.
        DataError: Its files are damaged, foreign or not safe to read.
    """
    source = source or str(folder)
    if not folder.is_dir():
        state = "a file" if folder.exists() else "none"
        raise ConfigurationError(f"{source}: expected a folder with a backbone, got {state}")
    ours = (folder / DESCRIPTION).is_file()
    if not ours and not (folder / _FOREIGN).is_file():
        _refuse_pickles(folder, source)
        raise DataError(
            f"{source}: expected {DESCRIPTION} (written by `fedprompt backbone pretrain` or `fetch`) or "
            f"{_FOREIGN} (written by transformers), got neither"
        )
    with torch.random.fork_rng(devices=[]):  # random initial weights, which the files' replace
        backbone = _described(folder, name) if ours else _foreign(folder, name, source)
    freeze(backbone)
    if ours:
        stored = read_json(folder / DESCRIPTION).get("fingerprint")
        if fingerprint(backbone) != stored:
            raise DataError(
                f"{folder / DESCRIPTION}: expected weights with fingerprint {stored}, got "
                f"{fingerprint(backbone)}: the files of this folder do not belong together"
            )
    return backbone


def save_backbone(backbone: Backbone, folder: Path, provenance: Mapping[str, Any]) -> None:
    """Writes a folder that `load_folder` reads; `backbone.json` comes last and completes it.

    Args:
        backbone: What to write.
        folder: Made where it is missing.
        provenance: JSON values: how the weights came about.
    """
    if backbone.encoder_folder:
        backbone.save_encoder(folder / ENCODER)
    write_arrays(
        folder / WEIGHTS, {name: tensor.numpy(force=True) for name, tensor in _own_weights(backbone).items()}
    )
    write_json(
        folder / DESCRIPTION,
        {
            "schema": SCHEMA,
            "name": backbone.name,
            "fingerprint": fingerprint(backbone),
            "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
            "config": backbone.config(),
            "provenance": dict(provenance),
        },
    )


def provenance_of(folder: Path) -> dict[str, Any] | None:
    """What `save_backbone` was told of a folder's weights; None for a folder of transformers."""
    if not (folder / DESCRIPTION).is_file():
        return None
    found = read_json(folder / DESCRIPTION).get("provenance")
    return dict(found) if isinstance(found, dict) else None


def encoder_source(name: str, source: Path | str) -> Path:
    """The folder in the format of transformers behind a hub id (text), a folder of ours, or a foreign one.

    Args:
        name: Registry name that a folder of ours must have.
        source: Where to look.

    Raises:
        ConfigurationError: A folder of ours holds another backbone, or one without such an encoder.
        DataError, RunError: As in `load_backbone`.
    """
    folder = hub_folder(source) if isinstance(source, str) else source
    if not (folder / DESCRIPTION).is_file():
        return folder
    backbone = load_folder(folder, name)  # so a damaged encoder is noticed before it is trained on
    if not backbone.encoder_folder:
        raise ConfigurationError(f"{folder}: expected an encoder of transformers, got backbone {name}")
    return folder / ENCODER


def hub_family(folder: Path, source: str) -> type[HubBackbone]:
    """The family of a transformers folder, by the type in its config.json; `source` names it in errors."""
    stored = read_json(folder / _FOREIGN)
    kind = stored.get("model_type") if isinstance(stored, dict) else None
    known = [backbone_class(entry.name) for entry in FAMILIES.values() if "transformers" in entry.origins]
    families = [found for found in known if issubclass(found, HubBackbone)]
    for candidate in families:
        if kind in candidate.model_types:
            return candidate
    types = ", ".join(kind for candidate in families for kind in candidate.model_types)
    raise ConfigurationError(f"{source}: expected a model of a known type ({types}), got {kind}")


def _place(settings: BackboneSettings) -> tuple[Path, str]:
    """The folder that holds a study's backbone, and what errors call it."""
    if settings.hub is not None:
        return hub_folder(settings.hub), settings.hub
    if settings.folder is not None:
        return settings.folder, str(settings.folder)
    shipped = EMBEDDED / settings.name
    if not shipped.is_dir():
        keys = "backbone.folder or backbone.hub"
        if "transformers" not in family(settings.name).origins:
            keys = "backbone.folder"
        raise ConfigurationError(
            f"backbone {settings.name}: no weights come with the package; expected {keys} to say where they "
            "are (see `fedprompt backbone --help`)"
        )
    return shipped, f"backbone {settings.name}"


def _check_decoder(backbone: Backbone, classes: int, source: str) -> None:
    if backbone.classes is None:
        raise ConfigurationError(
            f"{source}: expected a backbone with a decoder of {classes} classes, as segmentation with "
            f"{backbone.name} needs, got an encoder alone; `fedprompt backbone pretrain --name "
            f"{backbone.name} --encoder ...` trains a decoder for it"
        )
    if backbone.classes != classes:
        raise ConfigurationError(
            f"{source}: expected a backbone with the {classes} classes of the study, "
            f"got one with {backbone.classes}"
        )


def _described(folder: Path, name: str | None) -> Backbone:
    """What a folder of ours holds, not yet frozen."""
    description = folder / DESCRIPTION
    stored = read_json(description)
    if not isinstance(stored, dict) or "schema" not in stored:
        raise DataError(f"{description}: expected a backbone description, got another file")
    if stored["schema"] != SCHEMA:
        raise DataError(
            f"{description}: expected a backbone description of schema {SCHEMA}, got {stored['schema']!r}: "
            "another version of fedprompt wrote it; run its `command` again"
        )
    if stored.get("name") not in list(FAMILIES):
        raise ConfigurationError(
            f"{description}: expected one of {', '.join(FAMILIES)}, got backbone {stored.get('name')!r}"
        )
    if name not in (None, stored["name"]):
        raise ConfigurationError(f"{folder}: expected backbone {name}, got {stored['name']}")
    if not (folder / WEIGHTS).is_file():
        _refuse_pickles(folder, str(folder))
    arrays = read_arrays(folder / WEIGHTS)[0]
    chosen = backbone_class(stored["name"])
    try:
        backbone = chosen.rebuild(stored["config"], folder / ENCODER)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{description}: expected the configuration of {chosen.name}, got {error}") from None
    _fill(backbone, arrays, folder / WEIGHTS)
    return backbone


def _foreign(folder: Path, name: str | None, source: str) -> Backbone:
    """The encoder of a transformers folder, not yet frozen."""
    found: type[Backbone] = hub_family(folder, source) if name is None else backbone_class(name)
    if "transformers" not in family(found.name).origins or not issubclass(found, HubBackbone):
        raise ConfigurationError(
            f"{source}: expected a folder written by `fedprompt backbone pretrain --name {name}`, "
            "got one of transformers"
        )
    return found.from_pretrained(folder)


def _refuse_pickles(folder: Path, source: str) -> None:
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise DataError(
            f"{source}: expected weights in safetensors, got the pickle {pickles[0]}, which can run code and "
            "is refused"
        )


def _own_weights(backbone: Backbone) -> dict[str, torch.Tensor]:
    """The tensors that the weights file holds: all, or all but those of an encoder with its own folder."""
    return {
        name: tensor
        for name, tensor in weights(backbone).items()
        if not (backbone.encoder_folder and name.startswith("encoder."))
    }


def _fill(backbone: Backbone, arrays: Mapping[str, np.ndarray], file: Path) -> None:
    """Copies a file's arrays into the network; refuses other names and shapes, NaN and infinity."""
    expected = _own_weights(backbone)
    for name in sorted(expected.keys() ^ arrays.keys()):
        state = "missing" if name in expected else "foreign"
        raise DataError(
            f"{file}: expected the weights of {backbone.name}, got a file where {name} is {state}"
        )
    with torch.no_grad():
        for name, tensor in expected.items():
            array = arrays[name]
            if array.shape != tuple(tensor.shape):
                raise DataError(f"{file}: {name}: expected shape {tuple(tensor.shape)}, got {array.shape}")
            if not np.isfinite(array).all():
                raise DataError(f"{file}: {name}: expected finite values, got NaN or infinity")
            tensor.copy_(torch.from_numpy(array))
