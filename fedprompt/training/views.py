"""One augmented view of a case, ready for a training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedprompt.backbones.base import Features
from fedprompt.models import PromptedModel

__all__ = ["View", "batched"]


@dataclass(frozen=True)
class View:
    """One augmented view of a case.

    Attributes:
        features: What the model's `encode` gave, batch of one; the preprocessed image where encoders train.
        target: Segmentation: annotation (S, S) int64, 255 unlabelled. Classification: class number (), int64.
        guide: Segmentation: image (3, g, g) in 0 to 1 for the gated CRF.
        domain: Pseudo-domain of the case; 0 where the study has no domain prompts.
    """

    features: Features
    target: Tensor
    guide: Tensor
    domain: int = 0


def batched(model: PromptedModel, views: Sequence[View]) -> Features:
    """What the model's forward takes, for a batch of views."""
    state = tuple(torch.cat(maps) for maps in zip(*(v.features for v in views), strict=True))
    return model.encode(state[0]) if model.trains_backbone else state
