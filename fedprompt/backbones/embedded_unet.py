"""The backbone that ships with the package: a U-Net with BatchNorm of fewer than a million parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from fedprompt.backbones.base import Backbone, Features, Geometry, Modulate, Preprocessing

__all__ = ["EmbeddedUNet"]

WIDTHS = (16, 24, 48, 96, 144)
DECODER_WIDTHS = (64, 32, 16)


class EmbeddedUNet(Backbone):
    """U-Net (Ronneberger et al. 2015) with a wide encoder and a thin decoder that ends at stride 2.

    The encoder runs once per image, the decoder in every step of prompt training: so the encoder holds most
    of the parameters, and the last doubling of resolution is left to the interpolation of the logits.

    Args:
        classes: Number of classes with the background.
        widths: Channels of the encoder at strides 1, 2, 4, ...; `encode` returns all but the first.
        decoder_widths: Channels of the decoder levels, deep to shallow; one less than the returned features.
    """

    name: ClassVar[str] = "embedded-unet"

    def __init__(
        self,
        classes: int = 3,
        widths: Sequence[int] = WIDTHS,
        decoder_widths: Sequence[int] = DECODER_WIDTHS,
    ) -> None:
        super().__init__()
        if len(decoder_widths) != len(widths) - 2:
            raise ValueError(f"expected {len(widths) - 2} decoder widths, got {len(decoder_widths)}")
        self.classes = classes
        self.widths = tuple(widths)
        self.geometry = Geometry(
            channels=self.widths[1:],
            strides=tuple(2**level for level in range(1, len(widths))),
            decoder_channels=tuple(decoder_widths),
            pooled=self.widths[-1],
            multiple=2 ** (len(widths) - 1),
        )
        self.preprocessing = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), size=128)
        self.stages = nn.ModuleList(
            _convolutions(inputs, outputs, 3 if level == len(widths) - 1 else 2)
            for level, (inputs, outputs) in enumerate(zip((3, *widths), widths, strict=False))
        )
        self.reduce = nn.ModuleList()
        self.fuse = nn.ModuleList()
        below = self.widths[-1]
        for skip, width in zip(self.widths[-2:0:-1], decoder_widths, strict=True):
            self.reduce.append(nn.Conv2d(below, width, 1))
            self.fuse.append(_convolutions(width + skip, width, 2))
            below = width
        self.head = nn.Conv2d(below, classes, 1)

    def encode(self, images: Tensor, stop: int | None = None) -> Features:  # noqa: ARG002 - no blocks
        x = images.contiguous(memory_format=torch.channels_last)
        features = []
        for level, stage in enumerate(self.stages):
            x = stage(x if level == 0 else nn.functional.max_pool2d(x, 2))
            features.append(x)
        return tuple(features[1:])

    def decode(self, features: Features, modulate: Modulate | None = None) -> Tensor:
        # Convolutions of this width run twice as fast on a CPU when the channels lie last in memory.
        *skips, x = (feature.contiguous(memory_format=torch.channels_last) for feature in features)
        for level, (reduce, fuse) in enumerate(zip(self.reduce, self.fuse, strict=True)):
            skip = skips[-1 - level]
            x = nn.functional.interpolate(
                reduce(x), size=skip.shape[-2:], mode="bilinear", align_corners=False
            )
            x = fuse(torch.cat([x, skip], dim=1))
            if modulate is not None:
                x = modulate(level, x)
        return x

    def config(self) -> dict[str, object]:
        return {
            "classes": self.classes,
            "widths": list(self.widths),
            "decoder_widths": list(self.geometry.decoder_channels),
        }

    @classmethod
    def rebuild(cls, config: Mapping[str, Any], encoder: Path) -> Self:  # noqa: ARG003 - all in one file
        return cls(**config)


def _convolutions(inputs: int, outputs: int, count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += [
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
        inputs = outputs
    return nn.Sequential(*layers)
