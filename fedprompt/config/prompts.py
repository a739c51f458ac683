"""The `[prompts]` tables of a study: one per prompt, its presence means that it is used."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator

from fedprompt.config.tables import Table
from fedprompt.families import Task, default_prompts

__all__ = [
    "ClassPromptOptions",
    "DataAwareOptions",
    "DomainOptions",
    "FusionOptions",
    "GeneratedOptions",
    "ModulationOptions",
    "PromptSettings",
    "SparsityOptions",
    "TextOptions",
    "TokenOptions",
    "UniversalOptions",
]


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


class GeneratedOptions(Table):
    width: Annotated[int, Field(ge=4, le=256)] = Field(
        32, description="Hidden width of the network that generates the prompt from the pooled feature"
    )


class TokenOptions(Table):
    count: Annotated[int, Field(ge=1, le=256)] = Field(8, description="Prompt tokens per block they enter")
    depth: Literal["deep", "shallow"] = Field(
        "deep", description="'deep': own tokens in each block; 'shallow': they enter once and travel on"
    )
    blocks: Annotated[int, Field(ge=1, le=256)] = Field(
        4, description="How many of the last transformer blocks see tokens; what lies before is cached"
    )
    keep: Annotated[float, Field(gt=0, le=1)] = Field(
        0.25, description="Classification: share of the patches, drawn anew, that a training step sees"
    )


class DomainOptions(Table):
    count: Annotated[int, Field(ge=1, le=256)] = Field(4, description="Prompt tokens per block they enter")
    blocks: Annotated[int, Field(ge=1, le=256)] = Field(
        4, description="How many of the last transformer blocks see tokens; what lies before is cached"
    )
    keep: Annotated[float, Field(gt=0, le=1)] = Field(
        0.25, description="Classification: share of the patches, drawn anew, that a training step sees"
    )
    domains: Annotated[int, Field(ge=1, le=16)] = Field(
        3, description="Pseudo-domains inside a site, found by clustering style features"
    )
    adapter: Annotated[int, Field(ge=4, le=256)] = Field(
        32, description="Hidden width of the adapter that mixes domains per image"
    )
    mixup: Annotated[float, Field(ge=0, le=10)] = Field(
        0.2, description="Parameter of the Beta distribution of mixup with aligned prompts; 0 turns it off"
    )


class TextOptions(Table):
    template: Annotated[str, Field(max_length=200)] = Field(
        "a photo of a {}.",
        description="Prompt text; {} is the class name, the words before it become the learnable context",
    )
    rank: Annotated[int, Field(ge=0, le=64)] = Field(
        0, description="Rank of a personal part of the context that stays at the site (FedPGP); 0: none"
    )

    @field_validator("template")
    @classmethod
    def _one_place(cls, template: str) -> str:
        before, place, after = template.partition("{}")
        if not place or not before.strip() or set("{}") & set(before + after):
            raise ValueError(f"expected words and one {{}} behind them for the class name, got {template!r}")
        return template


class ClassPromptOptions(Table):
    count: Annotated[int, Field(ge=1, le=64)] = Field(4, description="Sparse prompt tokens per class")
    grid: Annotated[int, Field(ge=2, le=64)] = Field(
        8, description="Side in cells of the map of a class's dense embedding"
    )
    rank: Annotated[int, Field(ge=1, le=16)] = Field(
        2, description="Rank of a class's dense embedding: channels times maps"
    )


class PromptSettings(Table):
    """The prompts of a study: those that suit task and backbone without a `[prompts]` table; else its own."""

    universal: UniversalOptions | None = Field(None, description="One map that all sites share")
    data_aware: DataAwareOptions | None = Field(None, description="One row per site, keyed by site id")
    sparsity: SparsityOptions | None = Field(None, description="Constant maps that tell the annotation kind")
    fusion: FusionOptions | None = Field(
        None, description="Tri-prompt dual-attention fusion at the deepest feature"
    )
    modulation: ModulationOptions | None = Field(
        None, description="Channel gain and shift on every decoder level"
    )
    generated: GeneratedOptions | None = Field(
        None, description="Gated affine map of the deepest feature, generated from the image"
    )
    tokens: TokenOptions | None = Field(None, description="Visual tokens in the last transformer blocks")
    domain: DomainOptions | None = Field(
        None, description="Visual tokens per pseudo-domain, mixed per image by an adapter"
    )
    text: TextOptions | None = Field(None, description="Learnable context before the class names")
    class_prompts: ClassPromptOptions | None = Field(
        None, description="Learned sparse tokens and dense embedding per class of a SAM-like decoder"
    )

    @classmethod
    def suited(cls, backbone: str, task: Task) -> Self:
        """The prompts that suit a backbone family and a task, with their default options."""
        return cls.model_validate({name: {} for name in default_prompts(backbone, task)})

    @classmethod
    def all(cls) -> Self:
        """The prompts of FedLPPA with their default options."""
        return cls.suited("embedded-unet", "segmentation")

    def used(self) -> tuple[str, ...]:
        """Names of the prompts that the study uses, in a fixed order."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)

    def inconsistency(self) -> str | None:
        """What two prompts need of one another and do not have, in one sentence."""
        maps = [n for n in ("universal", "data-aware", "sparsity") if getattr(self, n.replace("-", "_"))]
        if maps and self.fusion is None:
            return f"prompts: expected a [prompts.fusion] table, which injects {', '.join(maps)}; got none"
        if self.tokens and self.domain:
            return "prompts: expected one of [prompts.tokens] and [prompts.domain], got both"
        return None
