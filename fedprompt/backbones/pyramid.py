"""A light decoder for frozen encoders: a feature pyramid of some ten thousand parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedprompt.backbones.base import Features, Modulate

__all__ = ["PyramidDecoder"]


class PyramidDecoder(nn.Module):
    """Feature pyramid (Lin et al. 2017): every level projects a feature, adds what comes from below, smooths.

    Args:
        channels: Of the features, shallow to deep; those of stride 0 (no positions) are passed over.
        strides: Of the features.
        widths: Channels of the levels, deep to shallow. Levels beyond the features double the resolution.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        inputs = [c for c, stride in zip(channels, strides, strict=True) if stride][::-1]
        self._used = [index for index, stride in enumerate(strides) if stride][::-1]
        if len(widths) < len(inputs):
            raise ValueError(f"expected at least {len(inputs)} decoder widths, got {len(widths)}")
        self.lateral = nn.ModuleList()
        self.from_below = nn.ModuleList()
        self.smooth = nn.ModuleList()
        for level, width in enumerate(widths):
            if level < len(inputs):
                self.lateral.append(
                    nn.Sequential(nn.Conv2d(inputs[level], width, 1, bias=False), nn.BatchNorm2d(width))
                )
            below = widths[level - 1] if level else width
            self.from_below.append(nn.Identity() if below == width else nn.Conv2d(below, width, 1))
            self.smooth.append(
                nn.Sequential(
                    nn.Conv2d(width, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                )
            )

    def forward(self, features: Features, modulate: Modulate | None = None) -> Tensor:
        """Features to the last level (B, widths[-1], h, w); `modulate(level, x)` gets every output."""
        x: Tensor | None = None
        for level, smooth in enumerate(self.smooth):
            if level < len(self._used):
                # Convolutions of this width run twice as fast on a CPU when the channels lie last in memory.
                feature = features[self._used[level]].contiguous(memory_format=torch.channels_last)
                side = self.lateral[level](feature)
                if x is not None:
                    side = side + _resized(self.from_below[level](x), side.shape[-2], side.shape[-1])
            else:
                assert x is not None  # noqa: S101 - there is always a feature
                side = _resized(self.from_below[level](x), 2 * x.shape[-2], 2 * x.shape[-1])
            x = smooth(torch.relu(side))
            if modulate is not None:
                x = modulate(level, x)
        assert x is not None  # noqa: S101
        return x


def _resized(x: Tensor, height: int, width: int) -> Tensor:
    return nn.functional.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
