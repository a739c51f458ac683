"""Backbones on disk: a folder with `backbone.json`, `weights.safetensors` and, for some, `encoder/`.

`encoder/` is in the format of transformers. The folder is self-contained: a site without a network reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedprompt.artifacts import read_arrays, read_json, write_arrays, write_json
from fedprompt.backbones.base import SegmentationBackbone, fingerprint, freeze, weights
from fedprompt.backbones.registry import backbone_class
from fedprompt.config import BackboneSettings
from fedprompt.errors import ConfigurationError, DataError

__all__ = ["DESCRIPTION", "EMBEDDED", "load_backbone", "load_folder", "save_backbone"]

EMBEDDED = Path(__file__).parent / "weights"  # one folder per backbone that ships with the package
DESCRIPTION = "backbone.json"
WEIGHTS = "weights.safetensors"
ENCODER = "encoder"
SCHEMA = 1
_PICKLES = ("*.pt", "*.pth", "*.bin", "*.ckpt", "*.pkl")


def load_backbone(settings: BackboneSettings, *, classes: int) -> SegmentationBackbone:
    """The frozen backbone that a study names, from its folder or from the package.

    Raises:
        ConfigurationError: There is no such backbone or folder, or it is not the one that the study names
            (registry name, number of classes, fingerprint).
        DataError: Its files are damaged, foreign or not safe to read.
    """
    backbone_class(settings.name)
    folder = settings.folder or EMBEDDED / settings.name
    if settings.folder is None and not folder.is_dir():
        raise ConfigurationError(
            f"backbone {settings.name}: no weights come with the package; expected backbone.folder to name a "
            "folder written by `fedprompt backbone pretrain`"
        )
    backbone = load_folder(folder)
    if backbone.name != settings.name:
        raise ConfigurationError(f"{folder}: expected backbone {settings.name}, got {backbone.name}")
    if backbone.classes != classes:
        raise ConfigurationError(
            f"{folder}: expected a backbone with the {classes} classes of the study, "
            f"got one with {backbone.classes}"
        )
    if settings.fingerprint is not None and fingerprint(backbone) != settings.fingerprint:
        raise ConfigurationError(
            f"{folder}: expected a backbone with fingerprint {settings.fingerprint}, "
            f"got {fingerprint(backbone)}"
        )
    return backbone


def load_folder(folder: Path) -> SegmentationBackbone:
    """The frozen backbone that `save_backbone` wrote; errors as in `load_backbone`."""
    if not folder.is_dir():
        raise ConfigurationError(
            f"{folder}: expected a folder written by `fedprompt backbone pretrain`, got none"
        )
    if not (folder / WEIGHTS).is_file():
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            raise DataError(
                f"{folder / pickles[0]}: expected {WEIGHTS}, got a pickle, which can run code and is refused"
            )
    description = folder / DESCRIPTION
    stored = read_json(description)
    if not isinstance(stored, dict) or stored.get("schema") != SCHEMA:
        raise DataError(
            f"{description}: expected a backbone description of schema {SCHEMA}, got another file"
        )
    family = backbone_class(str(stored.get("name")))
    arrays = read_arrays(folder / WEIGHTS)[0]
    try:
        with torch.random.fork_rng(devices=[]):  # random initial weights, which the file's replace
            backbone = family.rebuild(stored["config"], folder / ENCODER)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{description}: expected the configuration of {family.name}, got {error}") from None
    _fill(backbone, arrays, folder / WEIGHTS)
    freeze(backbone)
    if fingerprint(backbone) != stored.get("fingerprint"):
        raise DataError(
            f"{description}: expected weights with fingerprint {stored.get('fingerprint')}, "
            f"got {fingerprint(backbone)}: the files of this folder do not belong together"
        )
    return backbone


def save_backbone(backbone: SegmentationBackbone, folder: Path, provenance: Mapping[str, Any]) -> None:
    """Writes a folder that `load_backbone` reads; `backbone.json` comes last and completes it.

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


def _own_weights(backbone: SegmentationBackbone) -> dict[str, torch.Tensor]:
    """The tensors that the weights file holds: all, or all but those of an encoder with its own folder."""
    return {
        name: tensor
        for name, tensor in weights(backbone).items()
        if not (backbone.encoder_folder and name.startswith("encoder."))
    }


def _fill(backbone: SegmentationBackbone, arrays: Mapping[str, np.ndarray], file: Path) -> None:
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
