"""What every prompt declares: where it enters the frozen backbone and who may see its tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedprompt.manifest import Scope

__all__ = ["InjectionPoint", "Prompt", "resized"]


class InjectionPoint(StrEnum):
    """Where a prompt enters a frozen backbone."""

    IMAGE = "image"
    TOKENS = "tokens"
    FEATURES = "features"
    DECODER = "decoder"
    TEXT = "text"


class Prompt(nn.Module, ABC):
    """A small tensor module on a frozen backbone.

    Class attributes:
        scope: Scope of its tensors unless `scopes` or a strategy says otherwise.
        scopes: Scope of the tensors whose name begins with a key.
        injection: Where it enters.
        rates: Factor of the study's learning rate for the tensors whose name begins with a key.
    """

    scope: ClassVar[Scope]
    scopes: ClassVar[Mapping[str, Scope]] = {}
    injection: ClassVar[InjectionPoint]
    rates: ClassVar[Mapping[str, float]] = {}

    @abstractmethod
    def reset(self, generator: torch.Generator) -> None:
        """Draws the initial values. With all prompts at them, the model equals the frozen backbone."""

    def rate_of(self, name: str) -> float:
        """Factor of the study's learning rate for the tensor `name` of this module."""
        return next((rate for start, rate in self.rates.items() if name.startswith(start)), 1.0)

    def scope_of(self, name: str) -> Scope:
        """Scope of the tensor `name` of this module."""
        return next((scope for start, scope in self.scopes.items() if name.startswith(start)), self.scope)


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Prompt maps (C, g, g) to (C, h, w), bilinear: a prompt fits any input size."""
    if maps.shape[-2:] == size:
        return maps
    return nn.functional.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
