"""What every frozen backbone offers: geometry, preprocessing, features in stages, pooling, decoding."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from fedprompt.errors import ConfigurationError

if TYPE_CHECKING:
    from fedprompt.backbones.attention import Tokens

__all__ = [
    "Backbone",
    "Features",
    "Geometry",
    "Modulate",
    "Preprocessing",
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
        channels: Channels of each feature that `encode` returns; the last one is the deepest.
        strides: Stride of each of these features relative to the image; 0 for a feature without positions.
        decoder_channels: Channels of each decoder level in the order in which `decode` visits them, deep to
            shallow; the last one is what the head reads. Empty without a decoder.
        pooled: Length of the vector that `pool` gives.
        blocks: Transformer blocks that tokens may enter; 0 where there are none.
        width: Length of a token.
        heads: Attention heads per block.
        multiple: Sides of images must be multiples of this.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    decoder_channels: tuple[int, ...] = ()
    pooled: int = 0
    blocks: int = 0
    width: int = 0
    heads: int = 0
    multiple: int = 32


@dataclass(frozen=True)
class Preprocessing:
    """How images in 0 to 1 become what the encoder was trained on.

    Attributes:
        mean: Per channel.
        std: Per channel.
        size: Side in pixels of the images of its training.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int


class Backbone(nn.Module, ABC):
    """A network that is frozen as a whole: an encoder and, for segmentation, a decoder with a head.

    `encode` is everything before the first prompted stage; its output is cached per image. With `stop`, it
    ends in front of that transformer block, and `resume` goes on from there, with prompt tokens. Prompts may
    also change the deepest feature, and every decoder level through `modulate`.

    Attributes:
        classes: Of the head, with the background; None without a decoder.
        head: Reads the last decoder feature; None without a decoder.
    """

    name: ClassVar[str]
    encoder_folder: ClassVar[bool] = False  # whether the encoder lies apart, in the format of transformers
    classes: int | None
    geometry: Geometry
    preprocessing: Preprocessing
    head: nn.Conv2d | None

    def __init__(self) -> None:
        super().__init__()
        self.classes = None
        self.head = None

    @abstractmethod
    def encode(self, images: Tensor, stop: int | None = None) -> Features:
        """Preprocessed images (B, 3, H, W) to features (B, C, h, w), shallow to deep.

        Args:
            images: H and W are multiples of `geometry.multiple`.
            stop: End in front of this transformer block, 0 to `geometry.blocks - 1`: gives one tensor, the
                hidden state.
        """

    def resume(self, state: Features, start: int, tokens: Tokens | None = None) -> Features:
        """The hidden state in front of block `start` to features, as `encode` gives without `stop`.

        Args:
            state: What `encode(images, stop=start)` gave.
            start: Index of the next block.
            tokens: Prompt tokens by the block that they enter.
        """
        raise NotImplementedError(f"{self.name} has no transformer blocks")

    def pool(self, features: Features) -> Tensor:
        """Features to one vector per image (B, geometry.pooled): here the mean of the deepest feature."""
        return features[-1].mean(dim=(2, 3))

    def decode(self, features: Features, modulate: Modulate | None = None) -> Tensor:
        """Features to the last decoder feature (B, C, h, w); `modulate(level, x)` gets every output."""
        raise NotImplementedError(f"this {self.name} has no decoder")

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

    def check_size(self, side: int) -> None:
        """Raises `ConfigurationError` where images of this side do not fit the encoder."""
        if side % self.geometry.multiple:
            raise ConfigurationError(
                f"image.size: backbone {self.name} expected a multiple of {self.geometry.multiple} "
                f"(it was trained at {self.preprocessing.size}), got {side}"
            )

    def forward(self, images: Tensor) -> Tensor:
        """Preprocessed images (B, 3, H, W) to logits (B, classes, H, W): the untouched frozen network."""
        if self.head is None:
            raise NotImplementedError(f"this {self.name} has no decoder")
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


def fingerprint(backbone: Backbone) -> str:
    """SHA-256 over all weights and buffers (name, dtype, shape, bytes) and the configuration."""
    digest = hashlib.sha256()
    description = {
        "name": backbone.name,
        "preprocessing": asdict(backbone.preprocessing),
        "config": backbone.config(),
    }
    digest.update(json.dumps(description, sort_keys=True).encode())
    for name, tensor in sorted(weights(backbone).items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
