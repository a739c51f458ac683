"""A network as another group would bring it: MobileNetV2 from `transformers`, a decoder with BatchNorm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import MobileNetV2Config, MobileNetV2Model

__all__ = ["MobileNetSegmenter"]


class MobileNetSegmenter(nn.Module):
    """U-shaped decoder on MobileNetV2; logits (B, classes, H, W) for images (B, 3, H, W).

    Args:
        classes: Number of classes with the background.
        width: Channels of every decoder level.
        depth_multiplier: Of MobileNetV2.
    """

    def __init__(self, classes: int, width: int = 32, depth_multiplier: float = 0.35) -> None:
        super().__init__()
        config = MobileNetV2Config(
            depth_multiplier=depth_multiplier, finegrained_output=True, hidden_act="relu6"
        )
        self.encoder = MobileNetV2Model(config, add_pooling_layer=False)
        self.encoder.conv_1x1 = nn.Identity()
        self._taps = _last_blocks(self.encoder)
        channels = [self.encoder.layer[block].reduce_1x1.convolution.out_channels for block in self._taps]
        self.lateral = nn.ModuleList(nn.Conv2d(inputs, width, 1) for inputs in channels)
        self.fuse = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            )
            for _ in channels
        )
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.encoder.conv_stem(images)
        features = []
        for block, layer in enumerate(self.encoder.layer):
            x = layer(x)
            if block in self._taps:
                features.append(x)
        y = self.fuse[-1](self.lateral[-1](features[-1]))
        for level in reversed(range(len(features) - 1)):
            skip = self.lateral[level](features[level])
            y = self.fuse[level](_resized(y, skip.shape[-2:]) + skip)
        return _resized(self.head(y), images.shape[-2:])


def _resized(x: Tensor, size: torch.Size) -> Tensor:
    return nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _last_blocks(encoder: MobileNetV2Model) -> tuple[int, ...]:
    """Index of the last block at each of the strides 4, 8, 16 and 32."""
    stride, last = 2, {}
    for block, layer in enumerate(encoder.layer):
        stride *= layer.conv_3x3.convolution.stride[0]
        last[stride] = block
    return tuple(last[stride] for stride in (4, 8, 16, 32))
