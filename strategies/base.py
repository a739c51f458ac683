"""What a strategy is: it holds the server's tensors, takes updates and says what each site gets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedprompt.manifest import Arrays, Manifest
from strategies.averaging import capped_weights, weighted_mean

__all__ = ["MOST_SITES_IN_FACTS", "Strategy", "Update"]

MOST_SITES_IN_FACTS = 64  # facts per site (and pair of sites) go into an event only up to this number


@dataclass(frozen=True)
class Update:
    """What one site sent in one round, already checked against the manifest.

    Attributes:
        site: Id of the site.
        cases: Cases that it trains on; its weight before the cap.
        shared: Trained tensors of scope `shared`.
        kept: Trained tensors of scope `site`.
    """

    site: str
    cases: int
    shared: Arrays
    kept: Arrays


class Strategy(ABC):
    """Aggregation of prompts: pure numpy, float32 in and out, independent of the order of updates.

    Attributes:
        shared: The tensors that every site receives. The object is replaced, never changed in place.
        kept: Per site id its own tensors of scope `site` as it last sent them. A site that is absent, or
            left, keeps its entry.
    """

    def __init__(self, max_weight: float) -> None:
        self.max_weight = max_weight
        self.shared: Arrays = {}
        self.kept: dict[str, Arrays] = {}
        self._first_kept: Arrays = {}

    def start(self, manifest: Manifest, shared: Arrays, kept: Arrays) -> None:
        """Begins a study with the initial tensors; `kept` is what every site starts from."""
        del manifest
        self.shared, self.kept, self._first_kept = dict(shared), {}, dict(kept)

    def restore(
        self,
        manifest: Manifest,
        shared: Arrays,
        kept: Mapping[str, Arrays],
        arrays: Arrays,
        metadata: Mapping[str, Any],
    ) -> None:
        """Goes on from a checkpoint: `shared`, `kept` and what `state` gave."""
        del arrays, metadata
        self.start(manifest, shared, {})
        self.kept = {site: dict(kept[site]) for site in sorted(kept)}

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """All else that a checkpoint must hold: arrays and JSON values."""
        return {}, {}

    def outgoing(self, site: str) -> tuple[Arrays, Arrays, Arrays]:
        """What `site` receives: shared tensors, its tensors of scope `site`, and what it learns of its peers.

        The first is the same object for all sites of a round. A site without an entry of its own gets the
        mean over all sites, or the initial tensors where there is none yet.
        """
        return self.shared, self.kept.get(site) or self._newcomer(), {}

    def aggregate(self, round: int, updates: Sequence[Update]) -> dict[str, Any]:
        """Takes the updates of a round; returns facts for its event.

        Raises:
            ValueError: No update, or two of the same site.
        """
        ordered = sorted(updates, key=lambda update: update.site)
        sites = [update.site for update in ordered]
        if not sites or len(set(sites)) != len(sites):
            raise ValueError(f"round {round}: expected one update of each of some sites, got {sites}")
        self.kept |= {update.site: update.kept for update in ordered if update.kept}
        return self._aggregate(ordered)

    @abstractmethod
    def _aggregate(self, updates: Sequence[Update]) -> dict[str, Any]:
        """`aggregate` after the checks: updates sorted by site, `kept` brought up to date."""

    def _mean(self, updates: Sequence[Update]) -> tuple[Arrays, dict[str, Any]]:
        """Mean of the shared tensors with capped weights, and the weights as facts."""
        weights = capped_weights({update.site: update.cases for update in updates}, self.max_weight)
        mean = weighted_mean([update.shared for update in updates], list(weights.values()))
        few = len(weights) <= MOST_SITES_IN_FACTS
        return mean, {"weights": {site: round(w, 6) for site, w in weights.items()}} if few else {}

    def _newcomer(self) -> Arrays:
        """The tensors of scope `site` of a site that has sent none."""
        if not self.kept:
            return self._first_kept
        known = [self.kept[site] for site in sorted(self.kept)]
        return weighted_mean(known, np.full(len(known), 1 / len(known)).tolist())
