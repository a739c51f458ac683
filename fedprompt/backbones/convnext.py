"""A frozen ConvNeXt from `transformers` with a light feature pyramid as decoder."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from fedprompt.backbones.base import Features, Preprocessing
from fedprompt.backbones.stages import StagedBackbone

__all__ = ["ConvNeXt"]


class ConvNeXt(StagedBackbone):
    """ConvNeXt (Liu et al. 2022) and ConvNeXt V2 (Woo et al. 2023)."""

    name: ClassVar[str] = "convnext"
    model_types: ClassVar[tuple[str, ...]] = ("convnext", "convnextv2")
    model_class: ClassVar[str] = "AutoModel"  # of the two classes the one that the folder names
    usual: ClassVar[Preprocessing] = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224)

    def _stem(self) -> tuple[nn.Module, int]:
        return self.encoder.embeddings, self.encoder.config.patch_size

    def pool(self, features: Features) -> Tensor:
        """The mean of the last stage, normalised, as the classifier read it (B, geometry.pooled)."""
        pooled: Tensor = self.encoder.layernorm(super().pool(features))
        return pooled
