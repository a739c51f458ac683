"""The universal prompt p_U of FedLPPA (IEEE TMI 2024): one map that all sites share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedprompt.config import UniversalOptions
from fedprompt.manifest import Scope
from fedprompt.prompts.base import InjectionPoint, Prompt, resized

__all__ = ["UniversalPrompt"]


class UniversalPrompt(Prompt):
    """One trainable map (1, g, g), resized to the feature it joins."""

    scope = Scope.SHARED
    injection = InjectionPoint.FEATURES
    channels = 1

    def __init__(self, options: UniversalOptions) -> None:
        super().__init__()
        self.map = nn.Parameter(torch.zeros(1, options.grid, options.grid))

    def reset(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.map, std=0.02, generator=generator)

    def forward(self, size: tuple[int, int]) -> Tensor:
        """The map at feature size (1, h, w)."""
        return resized(self.map, size)
