"""A frozen network as adaptation sees it: how images enter, and what its outputs mean."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn

from fedprompt.errors import ConfigurationError

__all__ = ["Activation", "Network"]

Activation = Literal["softmax", "sigmoid"]


@dataclass(frozen=True, eq=False)
class Network:
    """Any frozen segmentation network: one of ours with prompts, or one from somewhere else.

    Its weights are never changed, and the module itself is never run: adaptation works on a copy of the
    module tree that holds the same tensors, so that training or another stream may use it at the same time.

    Args:
        module: Normalised images (B, channels, H, W) to logits (B, outputs, H, W).
        classes: Class names with the background first. With softmax one output per class; with sigmoid one
            per class but the background.
        mean: Per channel, of the normalisation of images in 0 to 1; its length is the number of channels.
        std: Per channel.
        size: Height and width to which images are resized; None takes them as they are.
        running_statistics: BatchNorm layers keep the statistics of the source. Not so under prompts: they
            were trained on a frozen backbone that keeps those of its own training.
        activation: What turns logits into probabilities.
        fingerprint: SHA-256 that names the network; computed from the module where it is not given.
    """

    module: nn.Module
    classes: tuple[str, ...]
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    size: tuple[int, int] | None = None
    activation: Activation = "softmax"
    running_statistics: bool = True
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.module, nn.Module):
            raise ConfigurationError(f"network: expected a torch module, got {type(self.module).__name__}")
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise ConfigurationError(
                f"network: expected two or more different class names, got {list(self.classes)}"
            )
        if len(self.mean) != len(self.std) or not self.mean or any(value <= 0 for value in self.std):
            raise ConfigurationError(
                f"network: expected a mean and a positive std per channel, got {self.mean} and {self.std}"
            )
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", _fingerprint(self))

    @property
    def channels(self) -> int:
        """Channels of its images."""
        return len(self.mean)

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        tensors = chain(self.module.parameters(), self.module.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def normalised(self, images: Tensor) -> Tensor:
        """Images (B, channels, H, W) in 0 to 1 to what the module expects."""
        mean = images.new_tensor(self.mean).view(1, -1, 1, 1)
        return (images - mean) / images.new_tensor(self.std).view(1, -1, 1, 1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (B, outputs, H, W) to probabilities (B, classes, H, W).

        With sigmoid the background has what no other class claims: one minus the largest of them.

        Raises:
            ConfigurationError: The module gave another number of outputs than the classes ask for.
        """
        expected = len(self.classes) - (self.activation == "sigmoid")
        if logits.ndim != 4 or logits.shape[1] != expected:
            raise ConfigurationError(
                f"network: expected logits (B, {expected}, H, W) for {len(self.classes)} classes with "
                f"{self.activation}, got {tuple(logits.shape)}"
            )
        if self.activation == "softmax":
            return logits.float().softmax(dim=1)
        claimed = logits.float().sigmoid()
        return torch.cat([1 - claimed.amax(dim=1, keepdim=True), claimed], dim=1)


def _fingerprint(network: Network) -> str:
    digest = hashlib.sha256()
    facts = [type(network.module).__qualname__, network.classes, network.mean, network.std]
    digest.update(json.dumps([*facts, network.size, network.activation]).encode())
    for name, tensor in sorted(network.module.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            array = tensor.detach().float().cpu().contiguous().numpy()
            digest.update(json.dumps([name, str(tensor.dtype), list(array.shape)]).encode())
            digest.update(array.tobytes())
    return digest.hexdigest()
