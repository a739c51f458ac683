"""A frozen MobileNetV2 from `transformers` with a light feature pyramid as decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from fedprompt.backbones.base import Features, Geometry, Modulate, Preprocessing, SegmentationBackbone
from fedprompt.errors import ConfigurationError, DataError

__all__ = ["MobileNetV2"]

Encoder = Any  # transformers.MobileNetV2Model, which takes a second to import and is hardly typed

DECODER_WIDTHS = (32, 32, 32, 32)
STRIDES = (4, 8, 16, 32)


class MobileNetV2(SegmentationBackbone):
    """MobileNetV2 (Sandler et al. 2018) with a feature pyramid (Lin et al. 2017) of about 50 k parameters.

    `encode` returns the last block of each resolution from stride 4 to 32. The pyramid projects each to a few
    channels, adds what comes from below and smooths it with one convolution; logits are made at stride 4.

    Args:
        encoder: The network as transformers loads it; kept in eval mode, its last 1x1 convolution is unused.
        classes: Number of classes with the background.
        decoder_widths: Channels of the four decoder levels, deep to shallow.
    """

    name: ClassVar[str] = "mobilenet-v2"
    encoder_folder: ClassVar[bool] = True
    encoder: Encoder

    def __init__(
        self, encoder: Encoder, classes: int = 2, decoder_widths: Sequence[int] = DECODER_WIDTHS
    ) -> None:
        super().__init__()
        if encoder.config.output_stride != STRIDES[-1]:
            raise ValueError(f"expected an encoder of output stride 32, got {encoder.config.output_stride}")
        if len(decoder_widths) != len(STRIDES):
            raise ValueError(f"expected {len(STRIDES)} decoder widths, got {len(decoder_widths)}")
        self.classes = classes
        self.encoder = encoder
        self.encoder.conv_1x1 = nn.Identity()  # 0.4 M parameters for classification alone
        self.encoder.eval()
        self._last_blocks = _last_blocks(encoder)
        channels = tuple(
            encoder.layer[block].reduce_1x1.convolution.out_channels for block in self._last_blocks
        )
        self.geometry = Geometry(channels, STRIDES, tuple(decoder_widths))
        self.preprocessing = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        self.lateral = nn.ModuleList()
        self.from_below = nn.ModuleList()
        self.smooth = nn.ModuleList()
        for level, (inputs, width) in enumerate(zip(reversed(channels), decoder_widths, strict=True)):
            self.lateral.append(nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)))
            below = decoder_widths[level - 1] if level else width
            self.from_below.append(nn.Identity() if below == width else nn.Conv2d(below, width, 1))
            self.smooth.append(
                nn.Sequential(
                    nn.Conv2d(width, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                )
            )
        self.head = nn.Conv2d(decoder_widths[-1], classes, 1)

    @classmethod
    def from_encoder(cls, source: Path | str, classes: int, **options: Any) -> Self:
        """A new decoder on the encoder of a local transformers folder or of a hub id.

        Raises:
            ConfigurationError: There is nothing of that name, or it is no MobileNetV2.
            DataError: Its weights are damaged, incomplete or pickled.
        """
        return cls(_read_encoder(source), classes, **options)

    def encode(self, images: Tensor) -> Features:
        x = self.encoder.conv_stem(images.contiguous(memory_format=torch.channels_last))
        features = []
        for block, layer in enumerate(self.encoder.layer):
            x = layer(x)
            if block in self._last_blocks:
                features.append(x)
        return tuple(features)

    def decode(self, features: Features, modulate: Modulate | None = None) -> Tensor:
        x: Tensor | None = None
        for level, feature in enumerate(reversed(features)):
            # Convolutions of this width run twice as fast on a CPU when the channels lie last in memory.
            side = self.lateral[level](feature.contiguous(memory_format=torch.channels_last))
            if x is not None:
                side = side + nn.functional.interpolate(
                    self.from_below[level](x), size=side.shape[-2:], mode="bilinear", align_corners=False
                )
            x = self.smooth[level](torch.relu(side))
            if modulate is not None:
                x = modulate(level, x)
        assert x is not None  # noqa: S101 - there are always four features
        return x

    def train(self, mode: bool = True) -> Self:
        """Sets the decoder's mode; the encoder keeps its stored statistics."""
        super().train(mode)
        self.encoder.eval()
        return self

    def config(self) -> dict[str, object]:
        return {"classes": self.classes, "decoder_widths": list(self.geometry.decoder_channels)}

    @classmethod
    def rebuild(cls, config: Mapping[str, Any], encoder: Path) -> Self:
        return cls(_read_encoder(encoder), **config)

    def save_encoder(self, folder: Path) -> None:
        self.encoder.save_pretrained(folder)


def _last_blocks(encoder: Encoder) -> tuple[int, ...]:
    """Index of the last block at each of the strides 4, 8, 16 and 32."""
    stride, last = 2, {}
    for block, layer in enumerate(encoder.layer):
        stride *= layer.conv_3x3.convolution.stride[0]
        last[stride] = block
    return tuple(last[stride] for stride in STRIDES)


def _read_encoder(source: Path | str) -> Encoder:
    import transformers
    from safetensors import SafetensorError

    if isinstance(source, Path) and not source.is_dir():
        raise ConfigurationError(f"{source}: expected a folder with a MobileNetV2 encoder, got none")
    library: Any = transformers
    log = library.utils.logging
    verbosity = log.get_verbosity()
    log.set_verbosity_error()  # it reports at length what is left out on purpose
    log.disable_progress_bar()
    try:
        kind = library.AutoConfig.from_pretrained(source)
        if kind.model_type != "mobilenet_v2":
            raise ConfigurationError(
                f"{source}: expected an encoder of type mobilenet_v2, got {kind.model_type}"
            )
        encoder, report = library.MobileNetV2Model.from_pretrained(
            source,
            add_pooling_layer=False,
            use_safetensors=True,  # never a pickle
            output_loading_info=True,
            dtype=torch.float32,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        cause = str(error).strip().splitlines()[0]
        raise DataError(
            f"{source}: expected a MobileNetV2 encoder with safetensors weights, got: {cause}"
        ) from None
    finally:
        log.set_verbosity(verbosity)
    # transformers fills what a file lacks with random numbers; a backbone must not.
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("conv_1x1."))
    if missing:
        raise DataError(f"{source}: expected all weights of a MobileNetV2, got none for {missing[0]}")
    return encoder
