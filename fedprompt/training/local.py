"""One site's local round: a pure function of model, objective, batches, arrays and settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedprompt.config import Study
from fedprompt.errors import RunError
from fedprompt.manifest import Arrays
from fedprompt.models import PromptedModel
from fedprompt.training.precision import Precision

__all__ = ["Batch", "Objective", "Trained", "load_arrays", "train_round", "trained_arrays"]

Batch = list[tuple[int, int]]  # case and view of each of its entries
Objective = Callable[[Batch], dict[str, Tensor]]  # the parts of the loss, each weighted already


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
    model: PromptedModel,
    objective: Objective,
    batches: list[Batch],
    study: Study,
    *,
    round: int,
    optimiser: Arrays,
    anchored: list[str],
    precision: Precision,
) -> Trained:
    """Trains the parameters of `model` in place over `batches`.

    Args:
        model: Loaded with the round's arrays.
        objective: Gives the parts of the loss of a batch.
        batches: (case, view) pairs per step.
        study: Settings of the optimiser.
        round: From 1 to `study.rounds.count`; drives the learning rate.
        optimiser: AdamW's state after the last round of this site, empty at first.
        anchored: Names of the tensors that fedprox pulls to their received values.
        precision: Arithmetic of the forward pass.

    Raises:
        RunError: The loss is not finite.
    """
    adamw = _adamw(model, study, round)
    _restore(adamw, model, optimiser)
    scaler = precision.scaler()
    parameters = dict(model.named_parameters())
    anchors = {name: parameters[name].detach().clone() for name in anchored}
    values: dict[str, list[float]] = {}
    for batch in batches:
        with precision.autocast():
            parts = objective(batch)
        if anchors and study.strategy.name == "fedprox":
            distance = torch.stack([(parameters[n] - a).square().sum() for n, a in anchors.items()]).sum()
            parts["proximal"] = study.strategy.mu / 2 * distance
        total = torch.stack([part.float() for part in parts.values()]).sum()
        if not torch.isfinite(total):
            raise RunError(
                f"round {round}: expected a finite loss, got {float(total.detach())}",
                public="the training loss is not finite",
            )
        adamw.zero_grad()
        scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        scaler.step(adamw)
        scaler.update()
        for name, value in {**parts, "total": total}.items():
            values.setdefault(name, []).append(float(value.detach()))
    return Trained(
        arrays=trained_arrays(model),
        optimiser=_state(adamw, model),
        loss={name: sum(found) / len(found) for name, found in values.items()},
        cases=len({case for batch in batches for case, _ in batch}),
    )


def _adamw(model: PromptedModel, study: Study, round: int) -> torch.optim.AdamW:
    """One group per learning rate and decay; weights of layers decay, all else (maps, tokens, biases) not."""
    settings = study.training
    rate = settings.learning_rate * (1 - (round - 1) / study.rounds.count) ** 0.9
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and name.endswith("weight")
            key = (rate * model.rate_of(name), settings.weight_decay if decays else 0.0)
            groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [{"params": group, "lr": lr, "weight_decay": decay} for (lr, decay), group in groups.items()]
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
