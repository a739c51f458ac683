"""MONAI's 2-D SwinUNETR as a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from monai.networks.nets import swin_unetr as monai
from torch import Tensor, nn

from fedprompt.backbones.base import Backbone, Features, Geometry, Modulate, Preprocessing

__all__ = ["SwinUNETR"]

GROUPS = 4


class SwinUNETR(Backbone):
    """Swin transformer encoder with a residual convolutional decoder (Hatamizadeh et al. 2022).

    Normalised by groups, as `fedprompt.backbones.monai_unet` explains.

    Args:
        classes: Number of classes with the background.
        width: Channels at strides 1 and 2, which double from there to stride 32; a multiple of 12.
    """

    name: ClassVar[str] = "swin-unetr"

    def __init__(self, classes: int = 2, width: int = 24) -> None:
        super().__init__()
        self.classes = classes
        self.width = width
        self.geometry = Geometry(
            channels=(width, width, 2 * width, 4 * width, 8 * width, 16 * width),
            strides=(1, 2, 4, 8, 16, 32),
            decoder_channels=(8 * width, 4 * width, 2 * width, width, width),
            pooled=16 * width,
            multiple=32,
        )
        self.preprocessing = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), size=128)
        network: Any = monai.SwinUNETR(
            in_channels=3,
            out_channels=classes,
            feature_size=width,
            norm_name=("group", {"num_groups": GROUPS}),
            spatial_dims=2,
        )
        self.head = network.out.conv.conv
        network.out = nn.Identity()  # the head must not be stored twice
        self.network: Any = network

    def encode(self, images: Tensor, stop: int | None = None) -> Features:  # noqa: ARG002 - none for tokens
        network = self.network
        states = network.swinViT(images, network.normalize)
        return (
            network.encoder1(images),
            network.encoder2(states[0]),
            network.encoder3(states[1]),
            network.encoder4(states[2]),
            states[3],
            network.encoder10(states[4]),
        )

    def decode(self, features: Features, modulate: Modulate | None = None) -> Tensor:
        network = self.network
        *skips, x = features
        blocks = (network.decoder5, network.decoder4, network.decoder3, network.decoder2, network.decoder1)
        for level, block in enumerate(blocks):
            x = block(x, skips[-1 - level])
            if modulate is not None:
                x = modulate(level, x)
        return x

    def config(self) -> dict[str, object]:
        return {"classes": self.classes, "width": self.width}

    @classmethod
    def rebuild(cls, config: Mapping[str, Any], encoder: Path) -> Self:  # noqa: ARG003 - all in one file
        return cls(**config)
