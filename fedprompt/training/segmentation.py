"""The loss of a segmentation step under weak annotations (after FedLPPA, IEEE TMI 2024)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fedprompt.config import Study
from fedprompt.models import Branches, PromptedSegmenter
from fedprompt.training import losses
from fedprompt.training.domains import adapter_loss
from fedprompt.training.local import Batch
from fedprompt.training.views import View, batched

__all__ = ["SegmentationObjective"]

_KEEP = 0.7  # share of channels that the auxiliary head sees in a training step


class SegmentationObjective:
    """Partial cross-entropy, gated CRF, mixed pseudo-labels and prompt contrast of a batch.

    Args:
        model: In training.
        view: Gives view `v` of case `i`.
        study: Weights of the parts.
        round: From 1 to `study.rounds.count`; drives the ramp-up.
        peers_row: Mean data-aware row of the other sites (1, g, g), if the strategy sends one.
        generator: Randomness of this round (on the CPU).
    """

    def __init__(
        self,
        model: PromptedSegmenter,
        view: Callable[[int, int], View],
        study: Study,
        *,
        round: int,
        peers_row: Tensor | None,
        generator: torch.Generator,
    ) -> None:
        self._model = model
        self._view = view
        self._weights = study.loss
        self._pseudo = study.loss.pseudo_label * _ramp(round, study)
        self._peers_row = peers_row
        self._generator = generator

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted parts of the loss."""
        views = [self._view(case, view) for case, view in batch]
        weights = self._weights
        state = batched(self._model, views)
        branches = self._model(state, keep=self._channel_mask(views), peers_row=self._peers_row)
        main, auxiliary = branches.main.float().softmax(dim=1), branches.auxiliary.float().softmax(dim=1)
        parts = {"partial_ce": _partial_ce(branches, torch.stack([v.target for v in views]))}
        if weights.crf:
            parts["crf"] = weights.crf * _crf(main, torch.stack([v.guide for v in views]))
        if self._pseudo:
            share = float(torch.rand((), generator=self._generator))
            labels = losses.mixed_pseudo_labels(main, auxiliary, share)
            dice = losses.soft_dice(main, labels) + losses.soft_dice(auxiliary, labels)
            parts["pseudo_label"] = self._pseudo * dice / 2
        prompted = branches.prompted
        if weights.contrast and prompted.fused is not None and prompted.fused_peers is not None:
            contrast = losses.prompt_contrast(prompted.fused, prompted.fused_peers)
            parts["contrast"] = weights.contrast * contrast
        if prompted.domains is not None:
            parts["adapter"] = adapter_loss(prompted.domains, views)
        return parts

    def _channel_mask(self, views: list[View]) -> Tensor | None:
        channels = self._model.perturbed_channels
        if not channels:
            return None
        drawn = torch.rand(len(views), channels, 1, 1, generator=self._generator) < _KEEP
        return (drawn.float() / _KEEP).to(views[0].target.device)


def _partial_ce(branches: Branches, annotation: Tensor) -> Tensor:
    size = annotation.shape[-2:]
    both = [
        losses.partial_cross_entropy(
            F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False), annotation
        )
        for logits in (branches.main, branches.auxiliary)
    ]
    return (both[0] + both[1]) / 2


def _crf(probabilities: Tensor, guide: Tensor) -> Tensor:
    if probabilities.shape[-1] > guide.shape[-1]:
        probabilities = F.adaptive_avg_pool2d(probabilities, guide.shape[-1])
    elif probabilities.shape[-1] < guide.shape[-1]:
        guide = F.adaptive_avg_pool2d(guide, probabilities.shape[-1])
    return losses.gated_crf(probabilities, losses.crf_kernels(guide))


def _ramp(round: int, study: Study) -> float:
    length = study.loss.ramp_up * study.rounds.count
    return 1.0 if length == 0 else min(1.0, (round - 1) / length)
