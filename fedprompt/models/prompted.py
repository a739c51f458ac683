"""A frozen backbone with the prompts that every task has in common: tokens, fusion, generated prompt."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from fedprompt.backbones.base import Backbone, Features
from fedprompt.config import Annotation, Study
from fedprompt.manifest import Manifest, Scope, TensorSpec
from fedprompt.prompts import Prompt, build_prompts
from fedprompt.prompts.domain import style

if TYPE_CHECKING:
    from fedprompt.prompts import DomainPrompt

__all__ = ["Prompted", "PromptedModel"]


@dataclass(frozen=True)
class Prompted:
    """Features after the prompts.

    Attributes:
        features: As the backbone's `encode` gives them, the deepest one prompted.
        fused: Pooled fused prompt feature (B, width), or None without fusion.
        fused_peers: The same with the peers' row instead of the own one, no gradient; None without peers.
        domains: Logits (B, K) of the adapter over the pseudo-domains; None without domain prompts.
    """

    features: Features
    fused: Tensor | None = None
    fused_peers: Tensor | None = None
    domains: Tensor | None = None


class PromptedModel(nn.Module):
    """Backbone and prompts; a task adds its heads.

    Args:
        backbone: Frozen, in eval mode; shared between models of one process.
        study: Names task, classes, prompts, seed; with strategy full-finetune a copy of the backbone trains
            too, and its normalisation layers keep their statistics.
        annotation: The site's annotation kind, for the sparsity prompt.

    Attributes:
        start: Index of the transformer block in front of which the model takes the hidden state; None where
            it takes the backbone's features.
        head_scopes: Scope of each module beside prompts and backbone that trains.
        head_rate: Factor of the study's learning rate for these modules.
    """

    head_scopes: dict[str, Scope]
    head_rate: ClassVar[float] = 1.0

    def __init__(self, backbone: Backbone, study: Study, annotation: Annotation) -> None:
        super().__init__()
        self.trains_backbone = study.strategy.name == "full-finetune"
        self.backbone = copy.deepcopy(backbone).requires_grad_(True) if self.trains_backbone else backbone
        if self.backbone.head is not None:
            self.backbone.head.requires_grad_(False)  # the heads of the task stand for it
        self.prompts = nn.ModuleDict(build_prompts(study, annotation, self.backbone))
        token_prompt = next((self.prompts[n] for n in ("tokens", "domain") if n in self.prompts), None)
        self.start: int | None = None if token_prompt is None else token_prompt.start  # type: ignore[assignment]

    def reset(self, seed: int) -> None:
        """Draws the initial values of all prompts; equal at all sites of a study."""
        generator = torch.Generator().manual_seed(seed)
        for prompt in self.prompts.values():
            prompt.reset(generator)  # type: ignore[operator]

    @property
    def stage(self) -> str:
        """Name of what `encode` gives: the same name, the same numbers for the same frozen backbone."""
        if self.trains_backbone:
            return "image"
        if "domain" in self.prompts:
            return f"block-{self.start}-style"
        return "encoder" if self.start is None else f"block-{self.start}"

    def encode(self, images: Tensor) -> Features:
        """Preprocessed images (B, 3, S, S) to what `forward` takes: everything before the first prompt.

        With domain prompts the styles of the images come behind it.
        """
        state = self.backbone.encode(images, stop=self.start)
        if "domain" not in self.prompts:
            return state
        early = self.backbone.encode(images, stop=self.prompts["domain"].style_block)  # type: ignore[arg-type]
        return (*state, style(early))

    def prompted(
        self, state: Features, *, domain_weights: Tensor | None = None, peers_row: Tensor | None = None
    ) -> Prompted:
        """Features after tokens and fusion.

        Args:
            state: What `encode` gave, batched.
            domain_weights: Mixture (B, K) of the pseudo-domains instead of the adapter's.
            peers_row: Mean data-aware row of the other sites (1, g, g) for the prompt contrast.
        """
        domains = None
        if self.start is None:
            features = state
        elif "domain" in self.prompts:
            domain: DomainPrompt = self.prompts["domain"]  # type: ignore[assignment]
            domains = domain.mix(state[1])
            weights = domains.softmax(dim=1) if domain_weights is None else domain_weights
            features = self.backbone.resume(state[:1], self.start, domain(weights))
        else:
            features = self.backbone.resume(state, self.start, self.prompts["tokens"]())
        if "fusion" not in self.prompts:
            return Prompted(features, domains=domains)
        deepest, fused, fused_peers = self._fused(features[-1], peers_row)
        return Prompted((*features[:-1], deepest), fused, fused_peers, domains)

    def rate_of(self, name: str) -> float:
        """Factor of the study's learning rate for a parameter of this model."""
        place, _, rest = name.partition(".")
        if place == "prompts":
            kind, _, tensor = rest.partition(".")
            prompt = self.prompts[kind]
            assert isinstance(prompt, Prompt)  # noqa: S101 - for the type checker
            return prompt.rate_of(tensor)
        return self.head_rate if place in self.head_scopes else 1.0

    def manifest(self) -> Manifest:
        """Every trained tensor and every constant, with the scope that its prompt or head declares."""
        return Manifest(tuple(self._specs()))

    def _specs(self) -> Iterator[TensorSpec]:
        for kind, prompt in self.prompts.items():
            assert isinstance(prompt, Prompt)  # noqa: S101 - for the type checker
            tensors = dict(prompt.named_parameters()) | dict(prompt.named_buffers())
            for name, tensor in tensors.items():
                yield _spec(f"prompts.{kind}.{name}", tensor, prompt.scope_of(name))
        for prefix, scope in {**self.head_scopes, "backbone": Scope.SHARED}.items():
            for name, parameter in getattr(self, prefix).named_parameters():
                if parameter.requires_grad:
                    yield _spec(f"{prefix}.{name}", parameter, scope)

    def _fused(
        self, feature: Tensor, peers_row: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        fusion = self.prompts["fusion"]
        fused: Tensor = fusion.fuse(feature, self._maps(feature))  # type: ignore[operator]
        fused_peers = None
        if peers_row is not None:
            with torch.no_grad():
                fused_peers = fusion.fuse(feature, self._maps(feature, peers_row)).mean(dim=(2, 3))  # type: ignore[operator]
        return feature + fusion(fused), fused.mean(dim=(2, 3)), fused_peers

    def _maps(self, feature: Tensor, row: Tensor | None = None) -> Tensor:
        size = (feature.shape[-2], feature.shape[-1])
        maps = [feature.new_zeros(0, *size)]
        for kind in ("universal", "data_aware", "sparsity"):
            if kind in self.prompts:
                prompt = self.prompts[kind]
                maps.append(prompt(size, row) if kind == "data_aware" else prompt(size))
        return torch.cat(maps)


def _spec(name: str, tensor: Tensor, scope: Scope) -> TensorSpec:
    return TensorSpec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), scope)
