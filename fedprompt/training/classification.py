"""The loss of a classification step: logit-adjusted cross-entropy, and mixup with aligned domain prompts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedprompt.backbones.base import Features
from fedprompt.config import Study
from fedprompt.models import PromptedClassifier
from fedprompt.prompts import DomainPrompt
from fedprompt.training.classification_losses import logit_adjusted_cross_entropy
from fedprompt.training.domains import adapter_loss
from fedprompt.training.local import Batch
from fedprompt.training.views import View, batched

__all__ = ["ClassificationObjective", "thinned"]


class ClassificationObjective:
    """Cross-entropy with the adapter's mixture of domains; in every other step, of mixed images and prompts.

    Mixup (PLDG, IEEE TMI 2024) mixes the hidden states in front of the first prompted block, the one-hot
    domains and the labels of two images by the same share. In the reference the prompts keep the order of the
    unmixed batch, so that four of five images see the prompt of another domain.

    With token prompts a step sees a random share of the patches (PatchDropout, WACV 2023): it costs less, and
    what a pooled feature says must not hang on single patches.

    Args:
        model: In training.
        view: Gives view `v` of case `i`.
        study: Weights of the parts.
        log_prior: Logarithm of the site's class frequencies (classes,).
        peers_row: Mean data-aware row of the other sites (1, g, g), if the strategy sends one.
        rng: Randomness of this round.
    """

    def __init__(
        self,
        model: PromptedClassifier,
        view: Callable[[int, int], View],
        study: Study,
        *,
        log_prior: Tensor,
        peers_row: Tensor | None,
        rng: np.random.Generator,
    ) -> None:
        self._model = model
        self._view = view
        self._classes = len(study.classes)
        self._balance = study.loss.balance
        tokens = study.prompts.tokens or study.prompts.domain
        # The fusion convolves the grid of patches, which must be whole.
        self._keep = tokens.keep if tokens and not study.prompts.fusion else 1.0
        self._mixup = study.prompts.domain.mixup if study.prompts.domain else 0.0
        self._log_prior = log_prior
        self._peers_row = peers_row
        self._rng = rng
        self._steps = 0

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted parts of the loss."""
        views = [self._view(case, view) for case, view in batch]
        state = batched(self._model, views)
        labels = torch.stack([v.target for v in views])
        if self._keep < 1:
            leading: int = self._model.backbone.leading  # type: ignore[assignment]
            state = (thinned(state[0], leading, self._keep, self._rng), *state[1:])
        self._steps += 1
        if self._mixup and self._steps % 2 == 0 and len(views) > 1:
            return {"mixup": self._mixed(state, labels, views)}
        scores = self._model(state, peers_row=self._peers_row)
        parts = {"cross_entropy": self._cross_entropy(scores.logits, labels)}
        if scores.prompted.domains is not None:
            parts["adapter"] = adapter_loss(scores.prompted.domains, views)
        return parts

    def _mixed(self, state: Features, labels: Tensor, views: list[View]) -> Tensor:
        share = float(self._rng.beta(self._mixup, self._mixup))
        order = torch.from_numpy(self._rng.permutation(len(views))).to(labels.device)

        def mixed(values: Tensor) -> Tensor:
            return share * values + (1 - share) * values[order]

        domain: DomainPrompt = self._model.prompts["domain"]  # type: ignore[assignment]
        own = torch.tensor([v.domain for v in views], device=labels.device)
        weights = mixed(F.one_hot(own, domain.domains).float())
        logits = self._model((mixed(state[0]), *state[1:]), domain_weights=weights).logits
        return self._cross_entropy(logits, mixed(F.one_hot(labels, self._classes).float()))

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        return logit_adjusted_cross_entropy(logits.float(), target, self._log_prior, self._balance)


def thinned(hidden: Tensor, leading: int, keep: float, rng: np.random.Generator) -> Tensor:
    """A hidden state (B, N, D) with a random square number of its patches, about the share `keep` of them.

    Args:
        hidden: `leading` rows that are kept, such as the class token, then a square grid of patches.
        leading: Number of rows in front of the patches.
        keep: Share of the patches, above 0.
        rng: Draws other patches for every image.
    """
    patches = hidden.shape[1] - leading
    side = max(1, round(keep**0.5 * patches**0.5))
    drawn = np.stack([rng.permutation(patches)[: side * side] for _ in range(len(hidden))])
    rows = torch.from_numpy(np.sort(drawn, axis=1)).to(hidden.device) + leading
    chosen = hidden.gather(1, rows[..., None].expand(-1, -1, hidden.shape[2]))
    return torch.cat([hidden[:, :leading], chosen], dim=1)
