"""FedLPPA: FedAvg for what is shared, and for each site its own mixture of the auxiliary heads.

After "FedLPPA: Learning Personalized Prompt and Aggregation for Federated Weakly-supervised Medical Image
Segmentation" (Lin et al., IEEE TMI 2024), but the data-aware row is kept per site instead of averaged, and
the affinity comes from the rows alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedprompt.config import FedLPPAOptions
from fedprompt.manifest import Arrays, Manifest, Scope
from strategies.averaging import mixture
from strategies.base import MOST_SITES_IN_FACTS, Strategy, Update

__all__ = ["FedLPPA", "affinity", "normalised_entropy"]

_ROW = "data_aware"  # the tensor of scope `site` with this in its name is the row; the others are mixed


def affinity(rows: np.ndarray, temperature: float, self_floor: float) -> np.ndarray:
    """How much each site takes from each: softmax over the cosines of the rows, with a floor on its own.

    Each row loses its own mean first, so that a common level is no similarity. A row without any variation
    (the first round) has cosine 0 to all, itself too, and so spreads evenly above the floor.

    Args:
        rows: (sites, cells), any floating dtype.
        temperature: Divides the cosines; small values sharpen.
        self_floor: Least value on the diagonal, 0 to 1; the rest of a site's weights shrinks to make room.

    Returns:
        (sites, sites) float64, rows sum to 1.
    """
    centred = rows - rows.mean(axis=1, keepdims=True, dtype=np.float64)
    norms = np.sqrt(np.square(centred).sum(axis=1))
    directions = centred / np.where(norms > 0, norms, 1)[:, None]
    cosines = np.einsum("ic,jc->ij", directions, directions)
    powers = np.exp((cosines - cosines.max(axis=1, keepdims=True)) / temperature)
    weights: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    if len(rows) == 1:
        return weights
    own = np.maximum(np.diagonal(weights), self_floor)
    others = weights * (1 - np.eye(len(rows)))
    total = others.sum(axis=1)
    scaled: np.ndarray = others * np.where(total > 0, (1 - own) / np.where(total > 0, total, 1), 0)[:, None]
    np.fill_diagonal(scaled, np.where(total > 0, own, 1))
    return scaled


def normalised_entropy(weights: np.ndarray) -> float:
    """Mean entropy of the rows of `weights` (sites, sites) over that of an even spread: 0 to 1."""
    if len(weights) == 1:
        return 0.0
    terms = np.where(weights > 0, weights * np.log(np.where(weights > 0, weights, 1)), 0)
    return float(-terms.sum(axis=1).mean() / np.log(len(weights)))


class FedLPPA(Strategy):
    """Rows go back to their owners unchanged, auxiliary heads as a mixture by affinity, the rest is averaged.

    A site without a row (late joiner) gets the mean row and the plain mean of the heads. Where the manifest
    has no tensor of scope `site` (all demoted to `personal`) this is FedAvg.
    """

    def __init__(self, options: FedLPPAOptions) -> None:
        super().__init__(options.max_weight)
        self._options = options
        self._row: str | None = None
        self._sites: list[str] = []
        self._stacks: dict[str, np.ndarray] = {}
        self._affinity = np.zeros((0, 0))

    def start(self, manifest: Manifest, shared: Arrays, kept: Arrays) -> None:
        super().start(manifest, shared, kept)
        rows = [name for name in manifest.select(Scope.SITE).names() if _ROW in name]
        self._row = rows[0] if rows else None
        self._refresh()

    def restore(
        self,
        manifest: Manifest,
        shared: Arrays,
        kept: Mapping[str, Arrays],
        arrays: Arrays,
        metadata: Mapping[str, Any],
    ) -> None:
        super().restore(manifest, shared, kept, arrays, metadata)
        self._refresh()

    def outgoing(self, site: str) -> tuple[Arrays, Arrays, Arrays]:
        if self._row is None or not self._sites:
            return super().outgoing(site)
        count = len(self._sites)
        if site not in self.kept:
            newcomer = self._newcomer()
            return self.shared, newcomer, {self._row: newcomer[self._row]}
        own = self._sites.index(site)
        mixed = {name: mixture(stack, self._affinity[own]) for name, stack in self._stacks.items()}
        mixed[self._row] = self.kept[site][self._row]
        if count == 1:
            return self.shared, mixed, {}
        others = np.full(count, 1 / (count - 1))
        others[own] = 0
        return self.shared, mixed, {self._row: mixture(self._stacks[self._row], others)}

    def _aggregate(self, updates: Sequence[Update]) -> dict[str, Any]:
        self.shared, facts = self._mean(updates)
        self._refresh()
        if self._row is None:
            return facts
        facts["affinity_entropy"] = round(normalised_entropy(self._affinity), 6)
        if len(self._sites) <= MOST_SITES_IN_FACTS:
            facts["affinity"] = {
                site: {other: round(float(w), 6) for other, w in zip(self._sites, weights, strict=True)}
                for site, weights in zip(self._sites, self._affinity, strict=True)
            }
        return facts

    def _refresh(self) -> None:
        """Brings stacks and affinity up to date with the kept tensors of all sites, sorted by id."""
        self._sites = sorted(self.kept) if self._row is not None else []
        if self._row is None or not self._sites:
            return
        names = sorted(self.kept[self._sites[0]])
        self._stacks = {name: np.stack([self.kept[site][name] for site in self._sites]) for name in names}
        rows = self._stacks[self._row].reshape(len(self._sites), -1)
        self._affinity = affinity(rows, self._options.temperature, self._options.self_floor)
