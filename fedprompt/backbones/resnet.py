"""A frozen ResNet from `transformers` with a light feature pyramid as decoder."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from fedprompt.backbones.base import Preprocessing
from fedprompt.backbones.stages import StagedBackbone

__all__ = ["ResNet"]


class ResNet(StagedBackbone):
    """ResNet (He et al. 2016); its classifier read the mean of the last of four stages."""

    name: ClassVar[str] = "resnet"
    model_types: ClassVar[tuple[str, ...]] = ("resnet",)
    model_class: ClassVar[str] = "ResNetModel"
    usual: ClassVar[Preprocessing] = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224)

    def _stem(self) -> tuple[nn.Module, int]:
        return self.encoder.embedder, 8 if self.encoder.config.downsample_in_first_stage else 4
