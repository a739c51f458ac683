"""A frozen network whose layers can be watched: channel statistics of what enters its normalisation layers.

The network is never changed. Its module tree is copied with the same tensors inside, so that a copy costs no
memory, and training or another stream may use the original at the same time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fedprompt.errors import ConfigurationError

__all__ = ["Blend", "LayerStatistics", "Moments", "WatchedNetwork", "affine_layers", "shared_copy"]


class Moments(NamedTuple):
    """Of one layer's input over the positions of one image: mean and variance per channel (C,)."""

    mean: Tensor
    variance: Tensor


LayerStatistics = dict[str, Moments]
Blend = Callable[[str, Moments, Moments], Moments]
"""Layer name, source and image statistics to the statistics with which a BatchNorm layer normalises."""


class WatchedNetwork:
    """A copy of a network, with the same tensors, that tells what enters its normalisation layers.

    Args:
        module: Any network; it is not touched.

    Attributes:
        names: The watched layers in the order in which the first forward met them; empty before.
        batch_norm: Source statistics of the BatchNorm layers by name, as they lie in the network.
        positions: Of each watched layer's input at the last observation.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = shared_copy(module)
        self.names: tuple[str, ...] = ()
        self.batch_norm: LayerStatistics = {}
        self.positions: dict[str, int] = {}
        self._observed: LayerStatistics | None = None
        self._blend: Blend | None = None
        self._last = ""
        self._chosen: frozenset[str] = frozenset()
        for name, layer in watchable(self.module):
            if isinstance(layer, _BatchNorm) and layer.running_mean is not None:
                assert layer.running_var is not None  # noqa: S101 - for the type checker
                self.batch_norm[name] = Moments(layer.running_mean, layer.running_var)
                replaced = _Normalisation(name, layer, self)
                _set(self.module, name, replaced)
            else:
                layer.register_forward_pre_hook(_hook(name, _channel_dim(layer), self))
        self.watchable = tuple(name for name, _ in watchable(self.module))

    def __call__(self, images: Tensor, *, blend: Blend | None = None) -> Tensor:
        """One forward; BatchNorm layers normalise with what `blend` says, else with their own statistics."""
        return self._run(images, blend, observe=False, last="")[0]

    def observe(
        self, images: Tensor, names: Sequence[str] = (), *, blend: Blend | None = None
    ) -> tuple[Tensor, LayerStatistics]:
        """One forward that also gives the statistics of watched layers' inputs, with gradient.

        Args:
            images: Normalised.
            names: Of the layers; all without them.
            blend: As for a call.
        """
        self._chosen = frozenset(names)
        try:
            logits, observed = self._run(images, blend, observe=True, last="")
        finally:
            self._chosen = frozenset()
        if not self.names:
            self.names = tuple(observed)
        return logits, observed

    def observe_until(self, images: Tensor, last: str, *, blend: Blend | None = None) -> LayerStatistics:
        """As `observe`, but what comes after the watched layer `last` is never computed."""
        try:
            _, observed = self._run(images, blend, observe=True, last=last)
        except _Reached as reached:
            return reached.observed
        return observed

    def _run(
        self, images: Tensor, blend: Blend | None, *, observe: bool, last: str
    ) -> tuple[Tensor, LayerStatistics]:
        self._observed, self._blend, self._last = ({} if observe else None), blend, last
        try:
            logits: Tensor = self.module(images)
            return logits, self._observed or {}
        finally:
            self._observed, self._blend = None, None

    def _wants(self, name: str) -> bool:
        return self._observed is not None and (not self._chosen or name in self._chosen)

    def _seen(self, name: str, found: Moments, positions: int) -> None:
        """A layer that is run twice counts the first time."""
        if self._observed is not None:
            self._observed.setdefault(name, found)
            self.positions[name] = positions
            if name == self._last:
                raise _Reached(self._observed)


class _Reached(Exception):
    def __init__(self, observed: LayerStatistics) -> None:
        super().__init__()
        self.observed = observed


class _Normalisation(nn.Module):
    """Stands for a BatchNorm layer in eval mode; holds its tensors."""

    def __init__(self, name: str, layer: _BatchNorm, watch: WatchedNetwork) -> None:
        super().__init__()
        assert layer.running_mean is not None and layer.running_var is not None  # noqa: S101, PT018
        self.name, self.eps, self.watch = name, layer.eps, watch
        self.source = Moments(layer.running_mean, layer.running_var)
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        watch, used = self.watch, self.source
        if watch._blend is not None or watch._wants(self.name):
            found = moments(x, 1)
            if watch._blend is not None:
                used = watch._blend(
                    self.name, self.source, Moments(found.mean.detach(), found.variance.detach())
                )
            watch._seen(self.name, found, x.numel() // x.shape[1])
        return F.batch_norm(x, used.mean, used.variance, self.weight, self.bias, False, 0.0, self.eps)


def moments(x: Tensor, dim: int) -> Moments:
    """Mean and variance of x per index of dimension `dim`, over all the others."""
    if dim == 1 and x.shape[0] == 1 and x.is_contiguous():
        rows = x.reshape(x.shape[1], -1)  # a view: the reduction runs along memory
    else:
        rows = x.movedim(dim, 0).flatten(1)
    mean, square = _FirstTwo.apply(rows.float())  # type: ignore[no-untyped-call]
    return Moments(mean, (square - mean.square()).clamp(min=0))


class _FirstTwo(torch.autograd.Function):
    """Mean of rows and of their squares; backward in one pass over memory."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(rows)
        count = rows.shape[1]
        return rows.mean(1), torch.linalg.vector_norm(rows, dim=1).square() / count

    @staticmethod
    def backward(ctx: Any, mean: Tensor, square: Tensor) -> Tensor:
        (rows,) = ctx.saved_tensors
        count = rows.shape[1]
        return torch.addcmul((mean / count)[:, None], rows, (2 / count * square)[:, None])


def shared_copy(module: nn.Module) -> nn.Module:
    """The module tree copied, its tensors not: frozen, in eval mode, without the original noticing.

    Raises:
        ConfigurationError: The module holds something that cannot be copied.
    """
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer
    try:
        copied = copy.deepcopy(module, memo)
    except (TypeError, RuntimeError, ValueError) as error:
        raise ConfigurationError(
            f"network: expected a module that can be copied, got {type(module).__name__} ({error})"
        ) from None
    return copied.eval()


def affine_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Normalisation layers of a watched network that have a gain and a shift, by name."""
    for name, layer in module.named_modules():
        if _normalises(layer) and all(getattr(layer, kind, None) is not None for kind in ("weight", "bias")):
            yield name, layer


def watchable(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Normalisation layers by name; where there are none, convolutions and linear layers."""
    layers = [(n, m) for n, m in module.named_modules() if _normalises(m)]
    if not layers:
        kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
        layers = [(n, m) for n, m in module.named_modules() if isinstance(m, kinds)]
    yield from layers


def _normalises(layer: nn.Module) -> bool:
    kinds = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm, _Normalisation)
    return isinstance(layer, kinds)


def _channel_dim(layer: nn.Module) -> int:
    """Which dimension of a layer's input holds the channels."""
    if isinstance(layer, nn.LayerNorm):
        return 1 if getattr(layer, "data_format", "") == "channels_first" else -1
    return -1 if isinstance(layer, nn.Linear) else 1


def _hook(name: str, dim: int, watch: WatchedNetwork) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def see(layer: nn.Module, inputs: tuple[Any, ...]) -> None:  # noqa: ARG001 - torch's signature
        if watch._wants(name):
            x = inputs[0]
            watch._seen(name, moments(x, dim), x.numel() // x.shape[dim])

    return see


def _set(module: nn.Module, name: str, replaced: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, replaced)
