"""The sparsity prompt p_S of FedLPPA (IEEE TMI 2024): constant maps that tell how the masks are drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from fedprompt.config import Annotation, SparsityOptions
from fedprompt.manifest import Scope
from fedprompt.prompts.base import InjectionPoint, Prompt

__all__ = ["SparsityPrompt"]

_POSITION = {
    Annotation.SCRIBBLE: 0,
    Annotation.NOISY_SCRIBBLE: 0,
    Annotation.POINT: 1,
    Annotation.BLOCK: 2,
    Annotation.BOX: 3,
}


class SparsityPrompt(Prompt):
    """Maps (4, h, w): ones in the map of the annotation kind, zeros elsewhere; full masks have all zeros."""

    scope = Scope.CONSTANT
    injection = InjectionPoint.FEATURES
    channels = 4
    kind: Tensor

    def __init__(self, options: SparsityOptions, annotation: Annotation) -> None:  # noqa: ARG002
        super().__init__()
        kind = torch.zeros(4, 1, 1)
        if annotation in _POSITION:
            kind[_POSITION[annotation]] = 1.0
        self.register_buffer("kind", kind)

    def reset(self, generator: torch.Generator) -> None:
        """Nothing to draw: constant."""

    def forward(self, size: tuple[int, int]) -> Tensor:
        """The constant maps (4, h, w)."""
        return self.kind.expand(4, *size)
