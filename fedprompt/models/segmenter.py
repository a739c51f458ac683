"""A frozen segmentation backbone with prompts at its deepest feature and along its decoder, and two heads."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedprompt.backbones.base import Features, SegmentationBackbone
from fedprompt.config import Annotation, PromptSettings, StrategyOptions
from fedprompt.manifest import Manifest, Scope, TensorSpec
from fedprompt.prompts import (
    DataAwarePrompt,
    DecoderModulation,
    Prompt,
    SparsityPrompt,
    TriPromptFusion,
    UniversalPrompt,
)

__all__ = ["Branches", "PromptedSegmenter", "study_manifest"]


@dataclass(frozen=True)
class Branches:
    """What one forward gives.

    Attributes:
        main: Logits (B, classes, h, w) of the main head at decoder resolution.
        auxiliary: Logits (B, classes, h, w) of the auxiliary head.
        fused: Pooled fused prompt feature (B, width), or None without fusion.
        fused_peers: The same with the peers' row instead of the own one, no gradient; None without peers.
    """

    main: Tensor
    auxiliary: Tensor
    fused: Tensor | None
    fused_peers: Tensor | None

    def probabilities(self) -> Tensor:
        """Mean of both branches' class probabilities (B, classes, h, w): the prediction of the model."""
        return (self.main.softmax(dim=1) + self.auxiliary.softmax(dim=1)) / 2


class PromptedSegmenter(nn.Module):
    """Backbone, prompts and two heads (main and auxiliary; FedLPPA's second decoder reduced to a head).

    With every prompt at its initial value both branches compute exactly what the frozen backbone computes.

    Args:
        backbone: Frozen, in eval mode; shared between models of one process.
        settings: Which prompts, with which options.
        annotation: The site's annotation kind, for the sparsity prompt.
        seed: Seed of the initial values; equal at all sites of a study.
        trains_backbone: Take a copy of the backbone that trains too (the full fine-tuning baseline);
            BatchNorm keeps its statistics.
    """

    def __init__(
        self,
        backbone: SegmentationBackbone,
        settings: PromptSettings,
        annotation: Annotation,
        seed: int,
        *,
        trains_backbone: bool = False,
    ) -> None:
        super().__init__()
        self.trains_backbone = trains_backbone
        self.backbone = copy.deepcopy(backbone).requires_grad_(True) if trains_backbone else backbone
        self.backbone.head.requires_grad_(False)  # the two heads below stand for it
        self.prompts = nn.ModuleDict(_build(settings, annotation, backbone))
        self.head = copy.deepcopy(backbone.head).requires_grad_(True)
        self.auxiliary_head = copy.deepcopy(backbone.head).requires_grad_(True)
        generator = torch.Generator().manual_seed(seed)
        for prompt in self.prompts.values():
            prompt.reset(generator)  # type: ignore[operator]

    def forward(
        self, features: Features, *, keep: Tensor | None = None, peers_row: Tensor | None = None
    ) -> Branches:
        """From encoder features to both branches.

        Args:
            features: What `backbone.encode` gave, batched.
            keep: Channel mask (B, C, 1, 1) on what the auxiliary head reads: it tells the branches apart in
                training. None in evaluation.
            peers_row: Mean data-aware row of the other sites (1, g, g) for the prompt contrast.
        """
        deepest, fused, fused_peers = self._fused(features[-1], peers_row)
        modulation = self.prompts["modulation"] if "modulation" in self.prompts else None  # noqa: SIM401
        decoded = self.backbone.decode((*features[:-1], deepest), modulation)
        perturbed = decoded if keep is None else decoded * keep
        return Branches(self.head(decoded), self.auxiliary_head(perturbed), fused, fused_peers)

    def manifest(self) -> Manifest:
        """Every trained tensor and every constant, with the scope that its prompt or head declares."""
        specs = []
        for kind, prompt in self.prompts.items():
            assert isinstance(prompt, Prompt)  # noqa: S101 - for the type checker
            tensors = dict(prompt.named_parameters()) | dict(prompt.named_buffers())
            specs += [_spec(f"prompts.{kind}.{name}", t, prompt.scope) for name, t in tensors.items()]
        for prefix, module, scope in (
            ("head", self.head, Scope.SHARED),
            ("auxiliary_head", self.auxiliary_head, Scope.SITE),
            ("backbone", self.backbone, Scope.SHARED),
        ):
            specs += [
                _spec(f"{prefix}.{name}", parameter, scope)
                for name, parameter in module.named_parameters()
                if parameter.requires_grad
            ]
        return Manifest(tuple(specs))

    def _fused(
        self, feature: Tensor, peers_row: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if "fusion" not in self.prompts:
            return feature, None, None
        fusion = self.prompts["fusion"]
        assert isinstance(fusion, TriPromptFusion)  # noqa: S101 - for the type checker
        fused = fusion.fuse(feature, self._maps(feature))
        fused_peers = None
        if peers_row is not None:
            with torch.no_grad():
                fused_peers = fusion.fuse(feature, self._maps(feature, peers_row)).mean(dim=(2, 3))
        return feature + fusion(fused), fused.mean(dim=(2, 3)), fused_peers

    def _maps(self, feature: Tensor, row: Tensor | None = None) -> Tensor:
        size = (feature.shape[-2], feature.shape[-1])
        maps = [feature.new_zeros(0, *size)]
        for kind in ("universal", "data_aware", "sparsity"):
            if kind not in self.prompts:
                continue
            prompt = self.prompts[kind]
            maps.append(prompt(size, row) if kind == "data_aware" else prompt(size))
        return torch.cat(maps)


def study_manifest(model: PromptedSegmenter, strategy: StrategyOptions) -> Manifest:
    """The model's manifest with what a strategy makes of the declared scopes.

    fedavg, fedprox, fedadam and full-finetune share all that trains; with local nothing leaves; fedlppa keeps
    the declared scopes, or demotes `site` to `personal`.
    """
    declared = model.manifest()
    if strategy.name == "fedlppa":
        return declared.rescoped({Scope.SITE: Scope(strategy.site_scope)})
    if strategy.name == "local":
        return declared.rescoped({Scope.SITE: Scope.PERSONAL, Scope.SHARED: Scope.PERSONAL})
    return declared.rescoped({Scope.SITE: Scope.SHARED})


def _build(
    settings: PromptSettings, annotation: Annotation, backbone: SegmentationBackbone
) -> dict[str, Prompt]:
    prompts: dict[str, Prompt] = {}
    if settings.universal:
        prompts["universal"] = UniversalPrompt(settings.universal)
    if settings.data_aware:
        prompts["data_aware"] = DataAwarePrompt(settings.data_aware)
    if settings.sparsity:
        prompts["sparsity"] = SparsityPrompt(settings.sparsity, annotation)
    if settings.fusion:
        maps = (settings.universal, UniversalPrompt), (settings.data_aware, DataAwarePrompt)
        channels = sum(kind.channels for options, kind in maps if options)
        channels += SparsityPrompt.channels if settings.sparsity else 0
        prompts["fusion"] = TriPromptFusion(
            settings.fusion,
            feature_channels=backbone.geometry.channels[-1],
            prompt_channels=channels,
        )
    if settings.modulation:
        prompts["modulation"] = DecoderModulation(
            settings.modulation, decoder_channels=backbone.geometry.decoder_channels
        )
    return prompts


def _spec(name: str, tensor: Tensor, scope: Scope) -> TensorSpec:
    return TensorSpec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), scope)
