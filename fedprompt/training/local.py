"""One site's local round: a pure function of model, views, arrays and settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedprompt.backbones.base import Features
from fedprompt.config import Study
from fedprompt.errors import RunError
from fedprompt.manifest import Arrays
from fedprompt.models import Branches, PromptedSegmenter
from fedprompt.training import losses

__all__ = ["Trained", "View", "load_arrays", "train_round", "trained_arrays"]

_KEEP = 0.7  # share of channels that the auxiliary head sees in a training step


@dataclass(frozen=True)
class View:
    """One augmented view of a case, ready for a step.

    Attributes:
        features: Encoder features (1, C, h, w) each, or the preprocessed image alone when the encoder trains.
        annotation: (S, S) int64, 255 unlabelled.
        guide: Image (3, g, g) in 0 to 1 for the gated CRF.
    """

    features: Features
    annotation: Tensor
    guide: Tensor


@dataclass(frozen=True)
class Trained:
    """What a local round gives: trained arrays, optimiser state, mean of each loss part, cases used."""

    arrays: Arrays
    optimiser: Arrays
    loss: dict[str, float]
    cases: int


def load_arrays(model: nn.Module, arrays: Arrays) -> None:
    """Copies arrays into the parameters of the same names."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, array in arrays.items():
            parameters[name].copy_(torch.from_numpy(array))


def trained_arrays(model: nn.Module) -> Arrays:
    """Copies of all parameters that train, by name."""
    return {
        name: parameter.detach().cpu().numpy().copy()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def train_round(
    model: PromptedSegmenter,
    view: Callable[[int, int], View],
    batches: list[list[tuple[int, int]]],
    study: Study,
    *,
    round: int,
    optimiser: Arrays,
    peers_row: np.ndarray | None,
    anchored: list[str],
    generator: torch.Generator,
) -> Trained:
    """Trains the parameters of `model` in place over `batches`.

    Args:
        model: Loaded with the round's arrays.
        view: Gives view `v` of case `i`.
        batches: (case, view) pairs per step.
        study: Settings of losses and optimiser.
        round: From 1 to `study.rounds.count`; drives the learning rate and the ramp-up.
        optimiser: AdamW's state after the last round of this site, empty at first.
        peers_row: Mean data-aware row of the other sites (1, g, g), if the strategy sends one.
        anchored: Names of the tensors that fedprox pulls to their received values.
        generator: Randomness of this round (on the CPU).

    Raises:
        RunError: The loss is not finite.
    """
    adamw = _adamw(model, study, round)
    _restore(adamw, model, optimiser)
    parameters = dict(model.named_parameters())
    anchors = {name: parameters[name].detach().clone() for name in anchored}
    row = None if peers_row is None else torch.from_numpy(peers_row).to(model.head.weight.device)
    sums: dict[str, float] = {}
    for batch in batches:
        parts = _step_losses(model, [view(i, v) for i, v in batch], study, round, row, generator)
        if anchors and study.strategy.name == "fedprox":
            distance = torch.stack([(parameters[n] - a).square().sum() for n, a in anchors.items()]).sum()
            parts["proximal"] = study.strategy.mu / 2 * distance
        total = torch.stack(list(parts.values())).sum()
        if not torch.isfinite(total):
            raise RunError(
                f"round {round}: expected a finite loss, got {float(total.detach())}",
                public="the training loss is not finite",
            )
        adamw.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        adamw.step()
        for name, value in {**parts, "total": total}.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
    return Trained(
        arrays=trained_arrays(model),
        optimiser=_state(adamw, model),
        loss={name: value / len(batches) for name, value in sums.items()},
        cases=len({case for batch in batches for case, _ in batch}),
    )


def _step_losses(
    model: PromptedSegmenter,
    views: list[View],
    study: Study,
    round: int,
    peers_row: Tensor | None,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    weights = study.loss
    features = tuple(torch.cat(maps) for maps in zip(*(v.features for v in views), strict=True))
    annotation = torch.stack([v.annotation for v in views])
    if model.trains_backbone:
        features = model.backbone.encode(features[0])
    branches = model(features, keep=_channel_mask(model, len(views), generator), peers_row=peers_row)
    main, auxiliary = branches.main.softmax(dim=1), branches.auxiliary.softmax(dim=1)
    parts = {"partial_ce": _partial_ce(branches, annotation)}
    if weights.crf:
        parts["crf"] = weights.crf * _crf(main, torch.stack([v.guide for v in views]))
    pseudo = weights.pseudo_label * _ramp(round, study)
    if pseudo:
        share = float(torch.rand((), generator=generator))
        labels = losses.mixed_pseudo_labels(main, auxiliary, share)
        dice = losses.soft_dice(main, labels) + losses.soft_dice(auxiliary, labels)
        parts["pseudo_label"] = pseudo * dice / 2
    if weights.contrast and branches.fused is not None and branches.fused_peers is not None:
        parts["contrast"] = weights.contrast * losses.prompt_contrast(branches.fused, branches.fused_peers)
    return parts


def _partial_ce(branches: Branches, annotation: Tensor) -> Tensor:
    size = annotation.shape[-2:]
    both = [
        losses.partial_cross_entropy(
            F.interpolate(logits, size=size, mode="bilinear", align_corners=False), annotation
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


def _channel_mask(model: PromptedSegmenter, batch: int, generator: torch.Generator) -> Tensor:
    weight = model.head.weight
    drawn = torch.rand(batch, weight.shape[1], 1, 1, generator=generator) < _KEEP
    return (drawn.to(weight.dtype) / _KEEP).to(weight.device)


def _ramp(round: int, study: Study) -> float:
    length = study.loss.ramp_up * study.rounds.count
    return 1.0 if length == 0 else min(1.0, (round - 1) / length)


def _adamw(model: PromptedSegmenter, study: Study, round: int) -> torch.optim.AdamW:
    settings = study.training
    rate = settings.learning_rate * (1 - (round - 1) / study.rounds.count) ** 0.9
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_prompt = name.endswith((".map", ".row"))
        (free if is_prompt or parameter.ndim < 2 else decayed).append(parameter)
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": free, "weight_decay": 0.0}],
        lr=rate,
    )


def _state(adamw: torch.optim.AdamW, model: nn.Module) -> Arrays:
    arrays: Arrays = {}
    for name, parameter in model.named_parameters():
        for key, value in adamw.state.get(parameter, {}).items():
            arrays[f"{key}/{name}"] = value.detach().cpu().numpy().copy()
    return arrays


def _restore(adamw: torch.optim.AdamW, model: nn.Module, arrays: Arrays) -> None:
    parameters = dict(model.named_parameters())
    for key_and_name, array in arrays.items():
        key, name = key_and_name.split("/", 1)
        adamw.state[parameters[name]][key] = torch.from_numpy(array.copy()).to(
            "cpu" if key == "step" else parameters[name].device
        )
