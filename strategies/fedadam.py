"""Adam on the server over the mean update of the sites (Reddi et al., 2021; Kingma and Ba, 2015)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedprompt.config import FedAdamOptions
from fedprompt.manifest import Arrays, Manifest
from strategies.base import Strategy, Update

__all__ = ["FedAdam"]


class FedAdam(Strategy):
    """Treats mean minus current value as a gradient of each shared tensor.

    Moments are float32 and part of a checkpoint; they start at zero for a tensor that appears later. Steps
    of the bias correction are counted per aggregated round: a skipped round does not change it.
    """

    def __init__(self, options: FedAdamOptions) -> None:
        super().__init__(options.max_weight)
        self._options = options
        self._first: Arrays = {}
        self._second: Arrays = {}
        self._steps = 0

    def start(self, manifest: Manifest, shared: Arrays, kept: Arrays) -> None:
        super().start(manifest, shared, kept)
        self._first, self._second, self._steps = {}, {}, 0

    def restore(
        self,
        manifest: Manifest,
        shared: Arrays,
        kept: Mapping[str, Arrays],
        arrays: Arrays,
        metadata: Mapping[str, Any],
    ) -> None:
        super().restore(manifest, shared, kept, arrays, metadata)
        self._first = {n.removeprefix("first/"): a for n, a in arrays.items() if n.startswith("first/")}
        self._second = {n.removeprefix("second/"): a for n, a in arrays.items() if n.startswith("second/")}
        self._steps = int(metadata["steps"])

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        first = {f"first/{name}": array for name, array in self._first.items()}
        second = {f"second/{name}": array for name, array in self._second.items()}
        return first | second, {"steps": self._steps}

    def _aggregate(self, updates: Sequence[Update]) -> dict[str, Any]:
        mean, facts = self._mean(updates)
        self._steps += 1
        self.shared = {name: self._step(name, target) for name, target in mean.items()}
        return facts

    def _step(self, name: str, target: np.ndarray) -> np.ndarray:
        options = self._options
        current = self.shared.get(name, target).astype(np.float64)
        zeros = np.zeros_like(target)
        delta = target - current
        first = options.beta_1 * self._first.get(name, zeros) + (1 - options.beta_1) * delta
        second = options.beta_2 * self._second.get(name, zeros) + (1 - options.beta_2) * delta**2
        self._first[name], self._second[name] = _single(first), _single(second)
        rate = (
            options.server_learning_rate
            * np.sqrt(1 - options.beta_2**self._steps)
            / (1 - options.beta_1**self._steps)
        )
        moved = current + rate * self._first[name] / (np.sqrt(self._second[name]) + options.tau)
        return _single(moved)


def _single(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, dtype=np.float32)
