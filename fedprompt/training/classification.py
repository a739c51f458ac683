"""The loss of a classification step: logit-adjusted cross-entropy, and mixup with aligned domain prompts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedprompt.config import Study
from fedprompt.models import PromptedClassifier
from fedprompt.training.classification_losses import logit_adjusted_cross_entropy
from fedprompt.training.domains import adapter_loss
from fedprompt.training.local import Batch
from fedprompt.training.views import View, batched

__all__ = ["ClassificationObjective"]


class ClassificationObjective:
    """Cross-entropy with the adapter's mixture of domains, and with mixed images under mixed prompts.

    Mixup (PLDG, IEEE TMI 2024) mixes the hidden states in front of the first prompted block, the one-hot
    domains and the labels of two images by the same share. In the reference the prompts keep the order of the
    unmixed batch, so that four of five images see the prompt of another domain.

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
        self._mixup = study.prompts.domain.mixup if study.prompts.domain else 0.0
        self._log_prior = log_prior
        self._peers_row = peers_row
        self._rng = rng

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted parts of the loss."""
        views = [self._view(case, view) for case, view in batch]
        state = batched(self._model, views)
        labels = torch.stack([v.target for v in views])
        scores = self._model(state, peers_row=self._peers_row)
        parts = {"cross_entropy": self._cross_entropy(scores.logits, labels)}
        domains = scores.prompted.domains
        if domains is not None:
            parts["adapter"] = adapter_loss(domains, views)
            if self._mixup and len(views) > 1:
                parts["mixup"] = self._mixed(state[0], labels, views, domains.shape[1])
        return parts

    def _mixed(self, state: Tensor, labels: Tensor, views: list[View], domains: int) -> Tensor:
        share = float(self._rng.beta(self._mixup, self._mixup))
        order = torch.from_numpy(self._rng.permutation(len(views))).to(labels.device)

        def mixed(values: Tensor) -> Tensor:
            return share * values + (1 - share) * values[order]

        own = torch.tensor([v.domain for v in views], device=labels.device)
        weights = mixed(F.one_hot(own, domains).float())
        logits = self._model((mixed(state),), domain_weights=weights).logits
        return self._cross_entropy(logits, mixed(F.one_hot(labels, self._classes).float()))

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        return logit_adjusted_cross_entropy(logits.float(), target, self._log_prior, self._balance)
