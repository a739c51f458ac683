"""MONAI's residual 2-D UNet as a backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

from fedprompt.backbones.base import Backbone, Features, Geometry, Modulate, Preprocessing

__all__ = ["MonaiUNet"]

CHANNELS = (16, 32, 64, 128, 256)
GROUPS = 4


class MonaiUNet(Backbone):
    """U-Net with residual units (Kerfoot et al. 2019), as `monai.networks.nets.UNet` builds it.

    Normalised by groups: MONAI's instance normalisation would take the mean of each channel away, and with it
    what a prompt adds to a whole channel; and it cannot be computed on a feature of one pixel. The network
    ends with as many channels as it begins with, and a head of its own reads them.

    Args:
        classes: Number of classes with the background.
        channels: Of the encoder at strides 2, 4, 8, ...; multiples of 4. The last one is the bottom layer, at
            the stride of the one before.
    """

    name: ClassVar[str] = "monai-unet"

    def __init__(self, classes: int = 2, channels: Sequence[int] = CHANNELS) -> None:
        super().__init__()
        self.classes = classes
        self.channels = tuple(channels)
        levels = len(self.channels) - 1
        strides = tuple(2 ** (level + 1) for level in range(levels))
        self.geometry = Geometry(
            channels=self.channels,
            strides=(*strides, strides[-1]),
            decoder_channels=(*self.channels[-3::-1], self.channels[0]),
            pooled=self.channels[-1],
            multiple=strides[-1],
        )
        self.preprocessing = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), size=128)
        network = UNet(
            spatial_dims=2,
            in_channels=3,
            out_channels=self.channels[0],
            channels=self.channels,
            strides=(2,) * levels,
            num_res_units=2,
            norm=("group", {"num_groups": GROUPS}),
        )
        self.down, self.up = _unrolled(network.model)
        self.head = nn.Conv2d(self.channels[0], classes, 1)

    def encode(self, images: Tensor, stop: int | None = None) -> Features:  # noqa: ARG002 - no blocks
        x = images
        features = []
        for down in self.down:
            x = down(x)
            features.append(x)
        return tuple(features)

    def decode(self, features: Features, modulate: Modulate | None = None) -> Tensor:
        *skips, x = features
        for level, up in enumerate(self.up):
            x = up(torch.cat([skips[-1 - level], x], dim=1))
            if modulate is not None:
                x = modulate(level, x)
        return x

    def config(self) -> dict[str, object]:
        return {"classes": self.classes, "channels": list(self.channels)}

    @classmethod
    def rebuild(cls, config: Mapping[str, Any], encoder: Path) -> Self:  # noqa: ARG003 - all in one file
        return cls(**config)


def _unrolled(block: nn.Module) -> tuple[nn.ModuleList, nn.ModuleList]:
    """MONAI's nested blocks (down, skip connection around the next block, up) as one way down and one up.

    Returns:
        The down parts with the bottom layer, shallow to deep; the up parts, deep to shallow.
    """
    down, up = nn.ModuleList(), nn.ModuleList()
    while isinstance(block, nn.Sequential):
        first, skip, last = block
        down.append(first)
        up.insert(0, last)
        block = skip.submodule  # type: ignore[assignment]
    down.append(block)
    return down, up
