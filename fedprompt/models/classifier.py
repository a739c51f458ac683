"""A frozen backbone with prompts and a linear head, or with class names where the backbone reads text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedprompt.backbones.base import Backbone, Features
from fedprompt.config import Annotation, Study
from fedprompt.manifest import Scope
from fedprompt.models.prompted import Prompted, PromptedModel

__all__ = ["PromptedClassifier", "Scores"]


@dataclass(frozen=True)
class Scores:
    """What one forward gives.

    Attributes:
        logits: (B, classes).
        prompted: The features they were read from, and what the prompts say about them.
    """

    logits: Tensor
    prompted: Prompted


class PromptedClassifier(PromptedModel):
    """Backbone, prompts and a head.

    The head reads the backbone's pooled feature, brought to mean 0 and deviation 1 per image, and starts at
    zero: a frozen backbone knows nothing of the study's classes. A CLIP-like backbone has no head: the
    pooled feature is compared with the text features of the classes, as in its zero-shot use.
    """

    head_rate = 0.1  # a linear head on frozen features overfits at the rate that prompts need
    fixed_text: Tensor

    def __init__(self, backbone: Backbone, study: Study, annotation: Annotation) -> None:
        super().__init__(backbone, study, annotation)
        self.reads_text = hasattr(backbone, "text_features")
        self.head_scopes = {}
        if not self.reads_text:
            self.head_scopes = {"head": Scope.SHARED}
            self.head = nn.Linear(backbone.geometry.pooled, len(study.classes))
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        elif "text" not in self.prompts:
            from fedprompt.prompts.text import fixed_text

            text = fixed_text(backbone, study.classes)  # type: ignore[arg-type]
            self.register_buffer("fixed_text", text, persistent=False)
        self.reset(study.seed)

    @property
    def stage(self) -> str:
        return "pooled" if self._reads_pooled else super().stage

    @property
    def _reads_pooled(self) -> bool:
        """Whether no prompt comes before the pooling, so that the pooled feature is what is cached."""
        return self.start is None and "fusion" not in self.prompts and not self.trains_backbone

    def encode(self, images: Tensor) -> Features:
        features = super().encode(images)
        return (self.backbone.pool(features),) if self._reads_pooled else features

    def forward(
        self, state: Features, *, domain_weights: Tensor | None = None, peers_row: Tensor | None = None
    ) -> Scores:
        """From what `encode` gave to logits; arguments as in `PromptedModel.prompted`."""
        if self._reads_pooled:
            prompted, pooled = Prompted(state), state[0]
        else:
            prompted = self.prompted(state, domain_weights=domain_weights, peers_row=peers_row)
            pooled = self.backbone.pool(prompted.features)
        if "generated" in self.prompts:
            pooled = self.prompts["generated"](pooled)
        return Scores(self._logits(pooled), prompted)

    def _logits(self, pooled: Tensor) -> Tensor:
        if self.reads_text:
            text = self.prompts["text"]() if "text" in self.prompts else self.fixed_text
            compared: Tensor = self.backbone.logits(pooled, text)  # type: ignore[operator]
            return compared
        logits: Tensor = self.head(F.layer_norm(pooled, pooled.shape[1:]))
        return logits

    def probabilities(self, state: Features) -> Tensor:
        """Class probabilities (B, classes), no gradient."""
        with torch.no_grad():
            scores: Scores = self(state)
            return scores.logits.float().softmax(dim=1)
