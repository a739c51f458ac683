"""Backbones whose encoder comes from `transformers`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from fedprompt.backbones.base import Backbone, Features, Geometry, Modulate, Preprocessing
from fedprompt.backbones.encoder_files import (
    Encoder,
    locate,
    read_encoder,
    read_preprocessing,
    write_encoder,
)
from fedprompt.backbones.pyramid import PyramidDecoder

__all__ = ["Encoder", "HubBackbone", "read_encoder", "read_preprocessing"]


class HubBackbone(Backbone):
    """An encoder of `transformers` and, where `classes` is given, a light decoder on its features.

    A family sets the class attributes and implements `_geometry` and `encode`.

    Args:
        encoder: The network as transformers loads it; always in eval mode.
        preprocessing: Of its images.
        classes: Of the decoder, with the background; None: no decoder.
        decoder_widths: Channels of the decoder levels, deep to shallow.
    """

    encoder_folder: ClassVar[bool] = True
    model_types: ClassVar[tuple[str, ...]]  # what transformers calls the family in config.json
    model_class: ClassVar[str]  # name of the class in transformers
    load_options: ClassVar[Mapping[str, Any]] = {}
    unused: ClassVar[tuple[str, ...]] = ()  # beginnings of names that a weights file may lack
    unused_by_decoder: ClassVar[tuple[str, ...]] = ()  # the same where there is a decoder
    usual: ClassVar[Preprocessing]  # where a folder has no preprocessor_config.json
    decoder_widths: ClassVar[tuple[int, ...]] = (32, 32, 32, 32)
    encoder: Encoder
    decoder: PyramidDecoder | None

    def __init__(
        self,
        encoder: Encoder,
        preprocessing: Preprocessing,
        classes: int | None = None,
        decoder_widths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.encoder.eval()
        self.preprocessing = preprocessing
        self.classes = classes
        self.decoder = None
        widths = tuple(decoder_widths or self.decoder_widths)
        self.geometry = self._geometry(() if classes is None else widths)
        if classes is not None:
            self.decoder = PyramidDecoder(self.geometry.channels, self.geometry.strides, widths)
            self.head = nn.Conv2d(widths[-1], classes, 1)

    @classmethod
    def from_pretrained(cls, source: Path | str, classes: int | None = None, **options: Any) -> Self:
        """The encoder of a local transformers folder or of a hub id, with a new decoder where `classes`.

        Raises:
            ConfigurationError: There is nothing of that name, or it is of another family.
            DataError: Its weights are damaged, incomplete or pickled.
            RunError: It is a hub id that is not in the local cache, and the hub cannot be reached.
        """
        folder = locate(source)
        encoder = read_encoder(cls, folder, decoder=classes is not None)
        return cls(encoder, read_preprocessing(folder, cls.usual), classes, **options)

    @abstractmethod
    def _geometry(self, decoder_channels: tuple[int, ...]) -> Geometry:
        """Shapes of the encoder's features; `decoder_channels` are empty without a decoder."""

    def decode(self, features: Features, modulate: Modulate | None = None) -> Tensor:
        if self.decoder is None:
            return super().decode(features, modulate)
        decoded: Tensor = self.decoder(features, modulate)
        return decoded

    def train(self, mode: bool = True) -> Self:
        """Sets the decoder's mode; the encoder keeps its stored statistics."""
        super().train(mode)
        self.encoder.eval()
        return self

    def config(self) -> dict[str, object]:
        return {"classes": self.classes, "decoder_widths": list(self.geometry.decoder_channels) or None}

    @classmethod
    def rebuild(cls, config: Mapping[str, Any], encoder: Path) -> Self:
        return cls.from_pretrained(encoder, **config)

    def save_encoder(self, folder: Path) -> None:
        write_encoder(self.encoder, self.preprocessing, folder)
