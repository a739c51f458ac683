"""Convolutional encoders of `transformers` that are a stem and stages: one feature per stage."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from fedprompt.backbones.base import Features, Geometry
from fedprompt.backbones.hub import HubBackbone

__all__ = ["StagedBackbone"]


class StagedBackbone(HubBackbone):
    """An encoder of stages, each of half the resolution of the one before.

    With a decoder `encode` returns all stages; without one the last stage alone. A family implements `_stem`.
    """

    @abstractmethod
    def _stem(self) -> tuple[nn.Module, int]:
        """What comes before the stages, and the stride of the first stage relative to the image."""

    def _geometry(self, decoder_channels: tuple[int, ...]) -> Geometry:
        channels = tuple(self.encoder.config.hidden_sizes)
        first = self._stem()[1]
        strides = tuple(first * 2**stage for stage in range(len(channels)))
        kept = slice(None) if decoder_channels else slice(-1, None)
        return Geometry(
            channels[kept], strides[kept], decoder_channels, pooled=channels[-1], multiple=strides[-1]
        )

    def encode(self, images: Tensor, stop: int | None = None) -> Features:  # noqa: ARG002 - no blocks
        x = self._stem()[0](images)
        features = []
        for stage in self.encoder.encoder.stages:
            x = stage(x)
            features.append(x)
        return tuple(features) if self.decoder is not None else (x,)
