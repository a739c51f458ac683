"""A frozen MobileNetV2 from `transformers` with a light feature pyramid as decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedprompt.backbones.base import Features, Geometry, Preprocessing
from fedprompt.backbones.hub import Encoder, HubBackbone
from fedprompt.errors import ConfigurationError

__all__ = ["MobileNetV2"]

STRIDES = (4, 8, 16, 32)


class MobileNetV2(HubBackbone):
    """MobileNetV2 (Sandler et al. 2018); its decoder is a feature pyramid of about 50 k parameters.

    With a decoder `encode` returns the last block of each resolution from stride 4 to 32. Without one it
    returns the last 1x1 convolution alone, whose mean is what the original classifier read; a decoder has no
    use for it, so that it is left out there.
    """

    name: ClassVar[str] = "mobilenet-v2"
    model_types: ClassVar[tuple[str, ...]] = ("mobilenet_v2",)
    model_class: ClassVar[str] = "MobileNetV2Model"
    unused_by_decoder: ClassVar[tuple[str, ...]] = ("conv_1x1.",)
    usual: ClassVar[Preprocessing] = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 224)

    def __init__(
        self,
        encoder: Encoder,
        preprocessing: Preprocessing,
        classes: int | None = None,
        decoder_widths: Sequence[int] | None = None,
    ) -> None:
        if encoder.config.output_stride != STRIDES[-1]:
            raise ConfigurationError(
                f"mobilenet-v2: expected an encoder of output stride 32, got {encoder.config.output_stride}"
            )
        if classes is not None:
            encoder.conv_1x1 = nn.Identity()  # 0.4 M parameters
        super().__init__(encoder, preprocessing, classes, decoder_widths)

    def _geometry(self, decoder_channels: tuple[int, ...]) -> Geometry:
        if not decoder_channels:
            pooled = self.encoder.conv_1x1.convolution.out_channels
            return Geometry((pooled,), STRIDES[-1:], pooled=pooled, multiple=STRIDES[-1])
        blocks = (self.encoder.layer[block] for block in _last_blocks(self.encoder))
        channels = tuple(block.reduce_1x1.convolution.out_channels for block in blocks)
        return Geometry(channels, STRIDES, decoder_channels, pooled=channels[-1], multiple=STRIDES[-1])

    def encode(self, images: Tensor, stop: int | None = None) -> Features:  # noqa: ARG002 - no blocks
        x = self.encoder.conv_stem(images.contiguous(memory_format=torch.channels_last))
        last = _last_blocks(self.encoder)
        features = []
        for block, layer in enumerate(self.encoder.layer):
            x = layer(x)
            if block in last:
                features.append(x)
        return tuple(features) if self.decoder is not None else (self.encoder.conv_1x1(x),)


def _last_blocks(encoder: Encoder) -> tuple[int, ...]:
    """Index of the last block at each of the strides 4, 8, 16 and 32."""
    stride, last = 2, {}
    for block, layer in enumerate(encoder.layer):
        stride *= layer.conv_3x3.convolution.stride[0]
        last[stride] = block
    return tuple(last[stride] for stride in STRIDES)
