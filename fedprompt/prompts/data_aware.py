"""The data-aware prompt p_D of FedLPPA (IEEE TMI 2024): one row per site, keyed by site id.

The reference keeps the bank of all rows in every client and averages it, which divides each site's step by
the number of sites. Here a site holds its own row alone; the server keeps the rows of all by site id.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedprompt.config import DataAwareOptions
from fedprompt.manifest import Scope
from fedprompt.prompts.base import InjectionPoint, Prompt, resized

__all__ = ["DataAwarePrompt"]


class DataAwarePrompt(Prompt):
    """The row of one site: a trainable map (1, g, g).

    It starts at zero at every site, so that a difference between two rows was learned from data and their
    affinity means something (random rows of the reference start at a cosine of 0.86).
    """

    scope = Scope.SITE
    injection = InjectionPoint.FEATURES
    channels = 1

    def __init__(self, options: DataAwareOptions) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.zeros(1, options.grid, options.grid))

    def reset(self, generator: torch.Generator) -> None:  # noqa: ARG002 - nothing random in zeros
        nn.init.zeros_(self.row)

    def forward(self, size: tuple[int, int], row: Tensor | None = None) -> Tensor:
        """The own row, or another one (1, g, g), at feature size (1, h, w)."""
        return resized(self.row if row is None else row, size)
