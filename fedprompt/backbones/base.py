"""What every frozen segmentation backbone offers: geometry, preprocessing, encode, decode and a head."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

__all__ = [
    "Features",
    "Geometry",
    "Preprocessing",
    "SegmentationBackbone",
    "fingerprint",
    "freeze",
    "weights",
]

Features = tuple[Tensor, ...]
Modulate = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Geometry:
    """Shapes at which prompts may enter.

    Attributes:
        channels: Channels of each feature that `encode` returns, shallow to deep.
        strides: Stride of each of these features relative to the image.
        decoder_channels: Channels of each decoder level in the order in which `decode` visits them, deep to
            shallow. The last one is what the head reads.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    decoder_channels: tuple[int, ...]


@dataclass(frozen=True)
class Preprocessing:
    """Channel mean and standard deviation for images in 0 to 1, as the encoder was trained."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class SegmentationBackbone(nn.Module, ABC):
    """A network that is frozen as a whole: encoder, decoder and head.

    `encode` is everything before the first prompted stage; its output is cached per image. Prompts may change
    the deepest feature between `encode` and `decode`, and every decoder level through `modulate`.
    """

    name: ClassVar[str]
    encoder_folder: ClassVar[bool] = False  # whether the encoder lies apart, in the format of transformers
    classes: int
    geometry: Geometry
    preprocessing: Preprocessing
    head: nn.Conv2d

    @abstractmethod
    def encode(self, images: Tensor) -> Features:
        """Preprocessed images (B, 3, H, W) to features, shallow to deep; H and W are multiples of 32."""

    @abstractmethod
    def decode(self, features: Features, modulate: Modulate | None = None) -> Tensor:
        """Features to the last decoder feature (B, C, h, w); `modulate(level, x)` gets every output."""

    @abstractmethod
    def config(self) -> dict[str, object]:
        """JSON values that, with the weights, rebuild this backbone."""

    @classmethod
    @abstractmethod
    def rebuild(cls, config: Mapping[str, Any], encoder: Path) -> Self:
        """An untrained network from what `config()` gave; reads the folder `encoder` where `encoder_folder`.

        Raises:
            KeyError, TypeError, ValueError: The values are not what `config()` gives.
            DataError: The encoder is missing or damaged.
        """

    def save_encoder(self, folder: Path) -> None:
        """Writes the encoder into `folder` where `encoder_folder`; its tensors are named `encoder.*`."""
        raise NotImplementedError(f"{self.name} keeps its encoder among its other weights")

    def preprocess(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in 0 to 1 to what `encode` expects."""
        mean = torch.tensor(self.preprocessing.mean, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(self.preprocessing.std, device=images.device).view(1, 3, 1, 1)
        return (images - mean) / std

    def forward(self, images: Tensor) -> Tensor:
        """Preprocessed images (B, 3, H, W) to logits (B, classes, H, W): the untouched frozen network."""
        logits: Tensor = self.head(self.decode(self.encode(images)))
        return nn.functional.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


def freeze(module: nn.Module) -> None:
    """Turns gradients off and normalisation layers to their stored statistics, for good."""
    module.requires_grad_(False)
    module.eval()


def weights(module: nn.Module) -> dict[str, Tensor]:
    """All tensors that a frozen network computes with, by name.

    BatchNorm's step counters are left out: they steer training alone.
    """
    return {
        name: tensor
        for name, tensor in module.state_dict().items()
        if not name.endswith(".num_batches_tracked")
    }


def fingerprint(backbone: SegmentationBackbone) -> str:
    """SHA-256 over all weights and buffers (name, dtype, shape, bytes) and the configuration."""
    digest = hashlib.sha256()
    description = {
        "name": backbone.name,
        "classes": backbone.classes,
        "geometry": asdict(backbone.geometry),
        "preprocessing": asdict(backbone.preprocessing),
        "config": backbone.config(),
    }
    digest.update(json.dumps(description, sort_keys=True).encode())
    for name, tensor in sorted(weights(backbone).items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
