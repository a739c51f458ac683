"""Learned prompts per class for a SAM-like mask decoder: what a user would click and draw, trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedprompt.config import ClassPromptOptions
from fedprompt.manifest import Scope
from fedprompt.prompts.base import InjectionPoint, Prompt

__all__ = ["ClassPrompts"]


class ClassPrompts(Prompt):
    """Sparse tokens (K, P, width) and a dense embedding (K, width, g, g) of rank r for K foreground classes.

    Both are offsets and start at zero: the tokens to embeddings of points that the backbone spreads over the
    image, the dense embedding to that of "no mask". The dense one is a product of `channels` (K, r, width)
    and `maps` (K, r, g, g). A second set, `auxiliary_*`, makes the auxiliary branch: as there is no head to
    copy, it is what a site's auxiliary head is in FedLPPA (IEEE TMI 2024).

    Args:
        options: Tokens per class, grid and rank.
        classes: Foreground classes K.
        width: Of a token, and channels of the image embedding.
    """

    scope = Scope.SHARED
    scopes = {"auxiliary": Scope.SITE}  # noqa: RUF012
    injection = InjectionPoint.DECODER

    def __init__(self, options: ClassPromptOptions, *, classes: int, width: int) -> None:
        super().__init__()
        sparse, channels = (classes, options.count, width), (classes, options.rank, width)
        maps = (classes, options.rank, options.grid, options.grid)
        self.sparse = nn.Parameter(torch.zeros(sparse))
        self.channels = nn.Parameter(torch.zeros(channels))
        self.maps = nn.Parameter(torch.zeros(maps))
        self.auxiliary_sparse = nn.Parameter(torch.zeros(sparse))
        self.auxiliary_channels = nn.Parameter(torch.zeros(channels))
        self.auxiliary_maps = nn.Parameter(torch.zeros(maps))

    def reset(self, generator: torch.Generator) -> None:
        for name, tensor in self.named_parameters():
            if name.endswith("channels"):  # directions of length about one
                nn.init.normal_(tensor, std=tensor.shape[-1] ** -0.5, generator=generator)
            else:
                nn.init.zeros_(tensor)

    def forward(self, *, auxiliary: bool = False) -> tuple[Tensor, Tensor]:
        """Sparse tokens (K, P, width) and dense embeddings (K, width, g, g) of one of the branches."""
        if auxiliary:
            return self.auxiliary_sparse, _product(self.auxiliary_channels, self.auxiliary_maps)
        return self.sparse, _product(self.channels, self.maps)


def _product(channels: Tensor, maps: Tensor) -> Tensor:
    return torch.einsum("krc,kryx->kcyx", channels, maps)
