"""The study file: owned by the lead of the consortium.

Every table is a frozen pydantic model that refuses unknown keys; nothing here imports torch or flwr, so that
files are checked in milliseconds.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedprompt.config.errors import parsed
from fedprompt.config.prompts import PromptSettings
from fedprompt.config.strategies import FedAvgOptions, FedLPPAOptions, StrategyOptions
from fedprompt.config.tables import SITE_ID, Folder, Kind, Table
from fedprompt.families import Task, misfit

__all__ = [
    "PHANTOM_CLASSES",
    "BackboneSettings",
    "ImageSettings",
    "LossSettings",
    "RoundSettings",
    "Study",
    "StudySite",
    "TrainingSettings",
]

PHANTOM_CLASSES: dict[Task, tuple[str, ...]] = {
    "segmentation": ("background", "rim", "cup"),
    "classification": ("nevus", "melanoma", "keratosis"),
}


class ImageSettings(Table):
    size: Annotated[int, Field(ge=32, le=2048)] = Field(
        128,
        description="Side in pixels to which images are resized; `fedprompt backbone show` tells what fits",
    )


class BackboneSettings(Table):
    """The frozen network: a registry name, and where its weights are unless they come with the package."""

    name: str = Field("embedded-unet", description="Registry name of the frozen backbone")
    folder: Folder | None = Field(
        None,
        description="Folder written by `fedprompt backbone pretrain` or `fetch`, or by transformers; "
        "relative to this file",
    )
    hub: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = Field(
        None, description="Hub id instead of a folder, as in google/vit-base-patch16-224"
    )
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="SHA-256 that every site's backbone must have"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Arithmetic of the frozen part on CUDA: bf16 where the device has it; CPUs use fp32",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.folder is not None and self.hub is not None:
            raise ValueError("expected one of folder and hub, got both")
        return self


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
    balance: Annotated[float, Field(ge=0, le=2)] = Field(
        1.0, description="Classification: strength of the adjustment of logits to a site's class frequencies"
    )
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
    task: Task = Field("segmentation", description="What is predicted: segmentation or classification")
    classes: Annotated[tuple[str, ...], Field(strict=False, min_length=2, max_length=64)] = Field(
        default_factory=lambda data: PHANTOM_CLASSES[data.get("task", "segmentation")],
        description="Class names. Segmentation: background first, a mask pixel holds the position, 255 is "
        "unlabelled; classification: the labels in cases.csv",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Seed of everything that is random")
    image: ImageSettings = ImageSettings()
    backbone: BackboneSettings = BackboneSettings()
    prompts: PromptSettings = Field(
        default_factory=lambda data: PromptSettings.suited(
            data.get("backbone", BackboneSettings()).name, data.get("task", "segmentation")
        )
    )
    strategy: StrategyOptions = Field(
        default_factory=lambda data: (
            FedLPPAOptions() if data.get("task") != "classification" else FedAvgOptions()
        )
    )
    rounds: RoundSettings = RoundSettings()
    training: TrainingSettings = TrainingSettings()
    loss: LossSettings = LossSettings()
    sites: dict[Annotated[str, Field(pattern=SITE_ID)], StudySite] = Field(
        default_factory=dict, description="Per site id: what the study knows of it"
    )

    @field_validator("classes")
    @classmethod
    def _distinct_classes(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        for name in classes:
            if not name.strip() or name != name.strip() or not name.isprintable():
                raise ValueError(f"expected names without blanks around them, got {name!r}")
        if len({name.casefold() for name in classes}) != len(classes):
            raise ValueError("class names must differ")
        return classes

    @model_validator(mode="after")
    def _possible(self) -> Self:
        problem = misfit(self.backbone.name, self.task, self.prompts.used()) or self.prompts.inconsistency()
        if problem:
            raise ValueError(problem)
        if self.backbone.name == "clip" and not self.prompts.used():
            raise ValueError(
                "prompts: expected some on clip, which has no head, got none: nothing would train"
            )
        if self.backbone.name in ("sam", "sam2") and self.prompts.class_prompts is None:
            raise ValueError(
                f"backbone {self.backbone.name} needs a [prompts.class-prompts] table: its decoder takes the "
                "classes from there"
            )
        if self.strategy.name == "fedlppa" and self.prompts.data_aware is None:
            raise ValueError(
                "strategy fedlppa needs a [prompts.data-aware] table: affinities come from its rows"
            )
        if self.sites and self.rounds.quorum > len(self.sites):
            raise ValueError(f"rounds.quorum is {self.rounds.quorum} but [sites] names {len(self.sites)}")
        return self

    def digest(self) -> str:
        """SHA-256 over all settings but paths: what server, sites and checkpoints must agree on."""
        text = self.model_dump_json(exclude={"backbone": {"folder", "hub"}})
        return hashlib.sha256(text.encode()).hexdigest()

    def changed(self, **tables: Any) -> Study:
        """A copy with some top-level fields replaced, validated again."""
        return parsed(Study, {**dict(self), **tables}, "study")

    def to_mapping(self) -> dict[str, Any]:
        """Plain values for a TOML writer; keys in kebab-case, settings that are not set left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
