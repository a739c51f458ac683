"""The two files of a federation: a study (TOML, owned by its lead) and a site (TOML, owned by the hospital).

Every table is a frozen pydantic model that refuses unknown keys; this module imports neither torch nor flwr,
so that files are checked in milliseconds.
"""

from __future__ import annotations

import hashlib
import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedprompt.config_errors import sentences
from fedprompt.errors import ConfigurationError

__all__ = [
    "Annotation",
    "BackboneSettings",
    "DataAwareOptions",
    "FedAdamOptions",
    "FedAvgOptions",
    "FedLPPAOptions",
    "FedProxOptions",
    "FullFinetuneOptions",
    "FusionOptions",
    "LocalOptions",
    "LossSettings",
    "ModulationOptions",
    "PromptSettings",
    "RoundSettings",
    "Site",
    "SparsityOptions",
    "StrategyOptions",
    "Study",
    "StudySite",
    "TrainingSettings",
    "UniversalOptions",
    "load_site",
    "load_study",
    "study_from_mapping",
]

SITE_ID = r"^[a-z0-9][a-z0-9-]{0,62}$"


class Annotation(StrEnum):
    """How the masks of a site are drawn."""

    FULL = "full"
    SCRIBBLE = "scribble"
    NOISY_SCRIBBLE = "noisy-scribble"
    POINT = "point"
    BLOCK = "block"
    BOX = "box"


class Table(BaseModel):
    """Base of all tables: immutable, keys in kebab-case or snake_case, nothing unknown, no type converted."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        populate_by_name=True,
        alias_generator=lambda name: name.replace("_", "-"),
        allow_inf_nan=False,
    )


# TOML has strings and arrays where these are meant.
Kind = Annotated[Annotation, Field(strict=False)]
Folder = Annotated[Path, Field(strict=False)]
Millimetres = Annotated[float, Field(gt=0)]


class ImageSettings(Table):
    size: Annotated[int, Field(ge=32, le=1024, multiple_of=32)] = Field(
        128, description="Side in pixels to which every image is resized for the backbone"
    )


class BackboneSettings(Table):
    """The frozen network: a registry name for an embedded one, or a folder that `backbone pretrain` wrote."""

    name: str = Field("embedded-unet", description="Registry name of the frozen backbone")
    folder: Folder | None = Field(
        None, description="Folder written by `fedprompt backbone pretrain`; relative to this file"
    )
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="SHA-256 that every site's backbone must have"
    )


class UniversalOptions(Table):
    grid: Annotated[int, Field(ge=2, le=64)] = Field(8, description="Side of the universal map in cells")


class DataAwareOptions(Table):
    grid: Annotated[int, Field(ge=2, le=64)] = Field(
        8, description="Side of a site's data-aware row in cells"
    )


class SparsityOptions(Table):
    pass


class FusionOptions(Table):
    width: Annotated[int, Field(ge=8, le=256, multiple_of=8)] = Field(
        32, description="Channels of the fused prompt features"
    )


class ModulationOptions(Table):
    pass


class PromptSettings(Table):
    """The prompts of a study: all without a `[prompts]` table; with one, those that it names."""

    universal: UniversalOptions | None = Field(None, description="One map that all sites share")
    data_aware: DataAwareOptions | None = Field(None, description="One row per site, keyed by site id")
    sparsity: SparsityOptions | None = Field(None, description="Constant maps that tell the annotation kind")
    fusion: FusionOptions | None = Field(
        None, description="Tri-prompt dual-attention fusion at the deepest feature"
    )
    modulation: ModulationOptions | None = Field(
        None, description="Channel gain and shift on every decoder level"
    )

    @classmethod
    def all(cls) -> Self:
        """Every prompt with its default options."""
        return cls(
            universal=UniversalOptions(),
            data_aware=DataAwareOptions(),
            sparsity=SparsityOptions(),
            fusion=FusionOptions(),
            modulation=ModulationOptions(),
        )

    @model_validator(mode="after")
    def _maps_need_fusion(self) -> Self:
        maps = [n for n in ("universal", "data-aware", "sparsity") if getattr(self, n.replace("-", "_"))]
        if maps and self.fusion is None:
            raise ValueError(f"expected a [prompts.fusion] table, which injects {', '.join(maps)}; got none")
        return self


class StrategyBase(Table):
    max_weight: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="Largest share that one site may have in an average"
    )


class FedAvgOptions(StrategyBase):
    name: Literal["fedavg"] = "fedavg"


class FedProxOptions(StrategyBase):
    name: Literal["fedprox"] = "fedprox"
    mu: Annotated[float, Field(gt=0)] = Field(0.01, description="Weight of the proximal term")


class FedAdamOptions(StrategyBase):
    name: Literal["fedadam"] = "fedadam"
    server_learning_rate: Annotated[float, Field(gt=0)] = Field(
        0.01, description="Step of the server's Adam update"
    )
    beta_1: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="Decay of the first moment")
    beta_2: Annotated[float, Field(ge=0, lt=1)] = Field(0.99, description="Decay of the second moment")
    tau: Annotated[float, Field(gt=0)] = Field(1e-3, description="Degree of adaptivity")


class FedLPPAOptions(StrategyBase):
    name: Literal["fedlppa"] = "fedlppa"
    temperature: Annotated[float, Field(gt=0)] = Field(
        0.5, description="Temperature of the softmax over the affinities of the data-aware rows"
    )
    self_floor: Annotated[float, Field(ge=0, le=1)] = Field(
        0.3, description="Least share of a site's own auxiliary head in its mixture"
    )
    site_scope: Literal["site", "personal"] = Field(
        "site", description="'personal' keeps rows and auxiliary heads at the sites: nothing is mixed"
    )


class LocalOptions(StrategyBase):
    name: Literal["local"] = "local"


class FullFinetuneOptions(StrategyBase):
    name: Literal["full-finetune"] = "full-finetune"


StrategyOptions = Annotated[
    FedAvgOptions | FedProxOptions | FedAdamOptions | FedLPPAOptions | LocalOptions | FullFinetuneOptions,
    Field(discriminator="name"),
]


class RoundSettings(Table):
    count: Annotated[int, Field(ge=1, le=100_000)] = Field(15, description="Number of rounds")
    quorum: Annotated[int, Field(ge=1)] = Field(2, description="Least sites whose replies make a round")
    deadline: Annotated[float, Field(gt=0)] = Field(
        600.0, description="Seconds that a round waits for sites; late replies are left out of that round"
    )


class TrainingSettings(Table):
    steps: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        10, description="Local optimiser steps per round"
    )
    batch_size: Annotated[int, Field(ge=1, le=4096)] = Field(8, description="Cases per step")
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-2, description="Step size of AdamW")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.01, description="Decay of weights; prompts, gains, shifts and biases have none"
    )
    views: Annotated[int, Field(ge=1, le=64)] = Field(
        4, description="Augmented views per case, drawn once and cached (1: the image as it is)"
    )
    validation: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.2, description="Share of the train patients kept for validation where cases.csv has no val split"
    )


class LossSettings(Table):
    crf: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Weight of the gated CRF (0.1 in the paper; no gain on validation data here)"
    )
    pseudo_label: Annotated[float, Field(ge=0)] = Field(
        0.5, description="Weight of the mixed pseudo-label co-teaching, once ramped up"
    )
    contrast: Annotated[float, Field(ge=0)] = Field(0.1, description="Weight of the bounded prompt contrast")
    ramp_up: Annotated[float, Field(ge=0, le=1)] = Field(
        0.3, description="Share of the rounds over which the pseudo-label weight rises from 0"
    )


class StudySite(Table):
    annotation: Kind | None = Field(
        None, description="Annotation kind of this site, instead of what its site.toml says"
    )


class Study(Table):
    """One federated job: task, backbone, prompts, strategy and rounds."""

    name: Annotated[str, Field(pattern=SITE_ID)] = Field("phantoms", description="Name of the study")
    task: Literal["segmentation"] = Field("segmentation", description="What is predicted")
    classes: Annotated[tuple[str, ...], Field(strict=False, min_length=2, max_length=64)] = Field(
        ("background", "rim", "cup"),
        description="Class names; a mask pixel holds the position, 255 is unlabelled",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Seed of everything that is random")
    image: ImageSettings = ImageSettings()
    backbone: BackboneSettings = BackboneSettings()
    prompts: PromptSettings = Field(default_factory=PromptSettings.all)
    strategy: StrategyOptions = Field(default_factory=FedLPPAOptions)
    rounds: RoundSettings = RoundSettings()
    training: TrainingSettings = TrainingSettings()
    loss: LossSettings = LossSettings()
    sites: dict[Annotated[str, Field(pattern=SITE_ID)], StudySite] = Field(
        default_factory=dict, description="Per site id: what the study knows of it"
    )

    @field_validator("classes")
    @classmethod
    def _distinct_classes(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) != len(classes):
            raise ValueError("class names must differ")
        return classes

    @model_validator(mode="after")
    def _possible(self) -> Self:
        trained = self.prompts.fusion or self.prompts.modulation
        if trained is None and self.strategy.name != "full-finetune":
            raise ValueError("prompts must name at least fusion or modulation: nothing would be trained")
        if self.strategy.name == "fedlppa" and self.prompts.data_aware is None:
            raise ValueError(
                "strategy fedlppa needs a [prompts.data-aware] table: affinities come from its rows"
            )
        if self.sites and self.rounds.quorum > len(self.sites):
            raise ValueError(f"rounds.quorum is {self.rounds.quorum} but [sites] names {len(self.sites)}")
        return self

    def digest(self) -> str:
        """SHA-256 over all settings but paths: what server, sites and checkpoints must agree on."""
        text = self.model_dump_json(exclude={"backbone": {"folder"}})
        return hashlib.sha256(text.encode()).hexdigest()

    def changed(self, **tables: Any) -> Study:
        """A copy with some top-level fields replaced, validated again."""
        return study_from_mapping({**dict(self), **tables}, "study")

    def to_mapping(self) -> dict[str, Any]:
        """Plain values for a TOML writer; keys in kebab-case, settings that are not set left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Site(Table):
    """One hospital taking part."""

    id: Annotated[str, Field(pattern=SITE_ID)] = Field(description="Name of the site in every study")
    annotation: Kind = Field(Annotation.FULL, description="How the masks of this site are drawn")
    data: Folder = Field(Path(), description="Folder with cases.csv; relative to this file")
    pixel_spacing: Annotated[tuple[Millimetres, Millimetres], Field(strict=False)] | None = Field(
        None, description="Row and column spacing in mm for images that carry none"
    )


_Model = TypeVar("_Model", bound=Table)


def load_study(path: Path) -> Study:
    """Reads a study file; paths in it become absolute.

    Raises:
        ConfigurationError: The file is missing, is no TOML, or has a key or value that cannot be.
    """
    study = _parse(Study, _read(path), str(path))
    if study.backbone.folder is None:
        return study
    folder = (path.parent / study.backbone.folder).resolve()
    return study.model_copy(update={"backbone": study.backbone.model_copy(update={"folder": folder})})


def load_site(path: Path) -> Site:
    """Reads a site file; `data` becomes absolute. Raises `ConfigurationError` like `load_study`."""
    site = _parse(Site, _read(path), str(path))
    return site.model_copy(update={"data": (path.parent / site.data).resolve()})


def study_from_mapping(values: dict[str, Any], where: str) -> Study:
    """Validates a study from plain values; `where` names their origin in errors."""
    return _parse(Study, values, where)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not a TOML file ({error})") from None


def _parse(model: type[_Model], values: dict[str, Any], where: str) -> _Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(f"{where}: {sentences(model, error.errors())}") from None
