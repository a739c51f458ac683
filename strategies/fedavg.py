"""FedAvg over prompts, and the strategies that differ from it only in what is shared or how a site trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from strategies.base import Strategy, Update

__all__ = ["FedAvg", "FedProx", "FullFinetune", "Local"]


class FedAvg(Strategy):
    """Weighted mean of the shared tensors (McMahan et al., 2017) with capped weights."""

    def _aggregate(self, updates: Sequence[Update]) -> dict[str, Any]:
        self.shared, facts = self._mean(updates)
        return facts


class FedProx(FedAvg):
    """FedAvg on the server; the proximal term (Li et al., 2020) is part of the loss at the sites."""


class FullFinetune(FedAvg):
    """FedAvg over a manifest in which every tensor is shared, the backbone's too."""


class Local(Strategy):
    """Every tensor is personal: nothing travels and there is nothing to do but to count the rounds."""

    def _aggregate(self, updates: Sequence[Update]) -> dict[str, Any]:
        del updates
        return {}
