"""A study's prompt bundle as a frozen network: what an unseen site takes."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from fedprompt.adaptation.network import Network
from fedprompt.adaptation.statistics import SourceStatistics
from fedprompt.artifacts import read_arrays, read_json
from fedprompt.backbones import fingerprint, load_backbone
from fedprompt.backbones.storage import EMBEDDED
from fedprompt.config import Annotation, BackboneSettings, Study, load_study, study_from_mapping
from fedprompt.errors import ConfigurationError, DataError, RunError
from fedprompt.manifest import Arrays, Manifest, Scope, arrays_digest
from fedprompt.models import PromptedSegmenter
from fedprompt.training.local import load_arrays

__all__ = ["STATISTICS", "PromptedLogits", "bundle_folder", "load_bundle", "prompted_network"]

STATISTICS = "statistics.safetensors"  # of the source features, where a study has collected them

_DESCRIPTION = "bundle.json"
_SHARED = "shared.safetensors"
_SCHEMA = 1
_LEAST = 1e-12  # probability whose logarithm is taken for smaller ones


class _Backbone(BaseModel):
    name: str
    fingerprint: str


class _Description(BaseModel):
    """What is read of bundle.json; keys may be added to it."""

    model_config = ConfigDict(extra="ignore")

    schema_: int = Field(alias="schema")
    study: str
    digest: str
    round: int
    strategy: str
    task: str
    classes: tuple[str, ...]
    image_size: int
    prompts: dict[str, Any]
    manifest: list[dict[str, Any]]
    backbone: _Backbone
    seed: int = 0  # bundles of the first version had no seed; only personal tensors are drawn from it
    annotation: Annotation = Annotation.FULL


class PromptedLogits(nn.Module):
    """A prompted segmenter from images to logits, so that their softmax is the model's prediction.

    Args:
        model: The segmenter; it is the only child.
    """

    def __init__(self, model: PromptedSegmenter) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) to logarithms of the probabilities (B, classes, H, W)."""
        state = self.model.encode(images)
        probabilities = self.model(state).probabilities().float()
        full = F.interpolate(probabilities, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return full.clamp_min(_LEAST).log()


def load_bundle(folder: Path, *, backbone: Path | None = None) -> tuple[Network, SourceStatistics | None]:
    """Reads a prompt bundle: shared tensors as they were trained, everything else at its initial value.

    An unseen site has no personal prompts, and it draws no masks: unless the bundle says otherwise, its
    sparsity prompt is that of full masks, all zeros, which tells the fusion nothing.

    Args:
        folder: `prompts/` of a run directory, a copy of it, or the run directory.
        backbone: Folder of the frozen backbone. Without it, the folder that the `study.toml` beside the
            bundle names, or the backbone that ships with the package.

    Returns:
        The network, on the GPU where there is one, and the source statistics where the bundle has some.

    Raises:
        ConfigurationError: There is no bundle or no backbone, the backbone is not the study's, or the study
            is not about segmentation or shares nothing.
        DataError: A file is damaged, foreign, or does not belong to the others.
    """
    place = bundle_folder(folder)
    description = _description(place / _DESCRIPTION)
    shared = _shared(place, description)
    study = _study(place / _DESCRIPTION, description)
    settings = _settings(place, description, backbone)
    frozen = load_backbone(settings, task=study.task, classes=len(study.classes))
    frozen.check_size(study.image.size)
    model = PromptedSegmenter(frozen, study, description.annotation)
    _check_tensors(place / _DESCRIPTION, description, model)
    load_arrays(model, shared)
    model.requires_grad_(False).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    network = _network(model, study, description.backbone.fingerprint)
    statistics = place / STATISTICS
    if not statistics.exists():
        return network, None
    return network, SourceStatistics.load(statistics, network.fingerprint)


def prompted_network(model: PromptedSegmenter, study: Study, *, backbone: str | None = None) -> Network:
    """A model in memory as a network: the frozen backbone is shared, prompts and heads are copied.

    Training may go on in the model; the network keeps what its prompts were at this moment.

    Args:
        model: Loaded with the tensors to use.
        study: Of the model.
        backbone: Fingerprint of the frozen backbone; computed from its weights where it is not given.
    """
    kept = {} if model.trains_backbone else {id(model.backbone): model.backbone}
    frozen = copy.deepcopy(model, kept).requires_grad_(False).eval()
    return _network(frozen, study, backbone or fingerprint(model.backbone))


def bundle_folder(folder: Path) -> Path:
    """The folder of the bundle: `folder` itself, or `prompts/` in it where it is a run directory.

    Raises:
        ConfigurationError: There is none.
    """
    for place in (folder, folder / "prompts"):
        if (place / _DESCRIPTION).is_file():
            return place
    found = "a run that has not come to its end" if (folder / "study.toml").exists() else "neither"
    if not folder.is_dir():
        found = "a file" if folder.exists() else "no such folder"
    raise ConfigurationError(
        f"{folder}: expected a prompt bundle ({_DESCRIPTION} and {_SHARED}) or a run directory with one in "
        f"prompts/, got {found}"
    )


def _network(model: PromptedSegmenter, study: Study, backbone: str) -> Network:
    preprocessing = model.backbone.preprocessing
    return Network(
        running_statistics=False,
        module=PromptedLogits(model).eval(),
        classes=study.classes,
        mean=preprocessing.mean,
        std=preprocessing.std,
        size=(study.image.size, study.image.size),
        fingerprint=_fingerprint(model, study, backbone),
    )


def _fingerprint(model: PromptedSegmenter, study: Study, backbone: str) -> str:
    """SHA-256 over the backbone's fingerprint and all tensors of prompts and heads, and what they are for."""
    facts = {
        "backbone": fingerprint(model.backbone) if model.trains_backbone else backbone,
        "classes": study.classes,
        "size": study.image.size,
        "prompts": study.prompts.model_dump(mode="json", exclude_none=True),
        "tensors": arrays_digest(
            {
                name: tensor.numpy(force=True)
                for name, tensor in model.state_dict().items()
                if not name.startswith("backbone.")
            }
        ),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _description(path: Path) -> _Description:
    stored = read_json(path)
    found = stored.get("schema") if isinstance(stored, dict) else None
    if found != _SCHEMA:
        raise DataError(f"{path}: expected a prompt bundle of schema {_SCHEMA}, got schema {found!r}")
    try:
        return _Description.model_validate(stored)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {where}: {first['msg']}; the file was damaged or edited") from None


def _study(path: Path, description: _Description) -> Study:
    """The study as far as its model depends on it."""
    if description.task != "segmentation":
        raise ConfigurationError(
            f"{path}: expected a bundle of a segmentation study, as adaptation is for masks, "
            f"got one of {description.task}"
        )
    values = {
        "name": description.study,
        "task": description.task,
        "classes": list(description.classes),
        "seed": description.seed,
        "image": {"size": description.image_size},
        "backbone": description.backbone.model_dump(),
        "prompts": description.prompts,
        "strategy": {"name": description.strategy},
    }
    try:
        return study_from_mapping(values, str(path))
    except ConfigurationError as error:
        raise DataError(f"{error}; the file was damaged or edited") from None


def _shared(place: Path, description: _Description) -> Arrays:
    """The shared tensors, checked against the manifest of the bundle."""
    path = place / _SHARED
    arrays, origin = read_arrays(path)
    expected = (description.digest, description.round)
    if (origin.get("digest"), origin.get("round")) != expected:
        raise DataError(
            f"{path}: expected the tensors of round {description.round} of study {description.digest[:12]}, "
            f"as {_DESCRIPTION} says, got those of round {origin.get('round')} of "
            f"{str(origin.get('digest'))[:12]}"
        )
    try:
        Manifest.from_json(description.manifest).select(Scope.SHARED).check(arrays)
    except (KeyError, TypeError, ValueError, RunError) as error:
        raise DataError(f"{path}: expected the tensors of {_DESCRIPTION}, got others ({error})") from None
    if not arrays:
        raise ConfigurationError(
            f"{path}: expected shared tensors, got none: with strategy {description.strategy} they stay at "
            "their sites"
        )
    return arrays


def _settings(place: Path, description: _Description, given: Path | None) -> BackboneSettings:
    """Where the backbone is, and which one it must be."""
    name, mark = description.backbone.name, description.backbone.fingerprint
    folder = given
    if folder is None and (place.parent / "study.toml").is_file():
        named = load_study(place.parent / "study.toml").backbone.folder
        folder = named if named is not None and named.is_dir() else None
    if folder is None and not (EMBEDDED / name).is_dir():
        raise ConfigurationError(
            f"{place}: expected a folder with backbone {name} of fingerprint {mark[:12]} (--backbone "
            "FOLDER), as its weights do not come with the package; got none"
        )
    try:
        return BackboneSettings(name=name, folder=folder, fingerprint=mark)
    except ValidationError:
        raise DataError(f"{place / _DESCRIPTION}: backbone.fingerprint: got {mark!r}, no SHA-256") from None


def _check_tensors(path: Path, description: _Description, model: PromptedSegmenter) -> None:
    """Refuses a bundle whose tensors are not those of the prompts that it describes."""
    expected = {(spec.name, spec.shape, spec.dtype) for spec in model.manifest()}
    found = {(spec.name, spec.shape, spec.dtype) for spec in Manifest.from_json(description.manifest)}
    for name, shape, _ in sorted(expected ^ found):
        raise DataError(
            f"{path}: expected the tensors of the prompts that it names, got others (such as {name} {shape})"
        )
