"""A frozen segmentation backbone with prompts and two branches."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fedprompt.backbones.base import Backbone, Features
from fedprompt.config import Annotation, Study
from fedprompt.manifest import Scope
from fedprompt.models.prompted import Prompted, PromptedModel

if TYPE_CHECKING:
    from fedprompt.prompts import ClassPrompts

__all__ = ["Branches", "PromptedSegmenter"]


@dataclass(frozen=True)
class Branches:
    """What one forward gives.

    Attributes:
        main: Logits (B, classes, h, w) of the main branch at decoder resolution.
        auxiliary: Logits (B, classes, h, w) of the auxiliary branch.
        prompted: The features they were read from, and what the prompts say about them.
    """

    main: Tensor
    auxiliary: Tensor
    prompted: Prompted

    def probabilities(self) -> Tensor:
        """Mean of both branches' class probabilities (B, classes, h, w): the prediction of the model."""
        return (self.main.softmax(dim=1) + self.auxiliary.softmax(dim=1)) / 2


class PromptedSegmenter(PromptedModel):
    """Backbone, prompts and two branches (main and auxiliary; FedLPPA's second decoder reduced).

    Where the backbone has a decoder the branches are two heads on it, copies of the frozen one. A SAM-like
    decoder has no head: there the branches are two sets of learned class prompts. With every prompt at its
    initial value both branches compute exactly what the frozen backbone computes.
    """

    def __init__(self, backbone: Backbone, study: Study, annotation: Annotation) -> None:
        super().__init__(backbone, study, annotation)
        self.head_scopes = {}
        if backbone.head is not None:
            self.head_scopes = {"head": Scope.SHARED, "auxiliary_head": Scope.SITE}
            self.head: nn.Conv2d = copy.deepcopy(backbone.head).requires_grad_(True)
            self.auxiliary_head: nn.Conv2d = copy.deepcopy(backbone.head).requires_grad_(True)
        self.reset(study.seed)

    @property
    def perturbed_channels(self) -> int:
        """Channels of what the auxiliary head reads; 0 where class prompts tell the branches apart."""
        return self.head.in_channels if self.head_scopes else 0

    def forward(
        self,
        state: Features,
        *,
        keep: Tensor | None = None,
        peers_row: Tensor | None = None,
        domain_weights: Tensor | None = None,
        points: Any = None,
        boxes: Any = None,
    ) -> Branches:
        """From what `encode` gave to both branches.

        Args:
            state: What `encode` gave, batched.
            keep: Channel mask (B, C, 1, 1) on what the auxiliary head reads: it tells the branches apart in
                training. None in evaluation.
            peers_row: Mean data-aware row of the other sites (1, g, g) for the prompt contrast.
            domain_weights: Mixture (B, K) of the pseudo-domains instead of the adapter's.
            points: Points of a user for a SAM-like decoder, as its `decode_masks` takes them.
            boxes: Boxes, likewise.
        """
        prompted = self.prompted(state, domain_weights=domain_weights, peers_row=peers_row)
        features = prompted.features
        if "generated" in self.prompts:
            features = (*features[:-1], self.prompts["generated"](features[-1]))
        if "class_prompts" in self.prompts:
            learned: ClassPrompts = self.prompts["class_prompts"]  # type: ignore[assignment]
            main, auxiliary = (
                self.backbone.decode_masks(features, *learned(auxiliary=side), points=points, boxes=boxes)  # type: ignore[operator]
                for side in (False, True)
            )
            return Branches(main, auxiliary, prompted)
        modulation = self.prompts["modulation"] if "modulation" in self.prompts else None  # noqa: SIM401
        decoded = self.backbone.decode(features, modulation)
        perturbed = decoded if keep is None else decoded * keep
        return Branches(self.head(decoded), self.auxiliary_head(perturbed), prompted)
