"""The mathematics of an average over sites: capped weights and a weighted mean. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedprompt.manifest import Arrays

__all__ = ["capped_weights", "mixture", "weighted_mean"]


def capped_weights(cases: Mapping[str, int], max_weight: float) -> dict[str, float]:
    """Each site's share of an average: in proportion to its cases, but at most `max_weight`.

    What a capped site loses goes to the others in proportion to their cases, until no share is above the cap
    (water-filling). Where the cap cannot hold (fewer than 1 / max_weight sites) all shares are equal.

    Args:
        cases: Number of cases per site; at least 1 each.
        max_weight: Largest share, above 0 and at most 1.

    Returns:
        Shares by site in sorted order; they sum to 1.

    Raises:
        ValueError: No site, a site without cases, or a cap outside its range.
    """
    if not cases or min(cases.values()) < 1:
        raise ValueError(f"cases: expected at least one site with at least 1 case each, got {dict(cases)}")
    if not 0 < max_weight <= 1:
        raise ValueError(f"max_weight: expected a value above 0 and at most 1, got {max_weight}")
    sites = sorted(cases)
    counts = np.array([cases[site] for site in sites], dtype=np.float64)
    if len(sites) * max_weight <= 1:
        return dict.fromkeys(sites, 1 / len(sites))
    capped = np.zeros(len(sites), dtype=bool)
    while True:
        left = 1 - max_weight * np.count_nonzero(capped)
        shares = np.where(capped, max_weight, counts * (left / counts[~capped].sum()))
        above = shares > max_weight
        if not above.any():
            return dict(zip(sites, shares.tolist(), strict=True))
        capped |= above


def mixture(stack: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum of `stack` (sites, ...) weighted by `weights` (sites,), added up in float64, as float32."""
    shares = np.asarray(weights, dtype=np.float64).reshape(-1, *[1] * (stack.ndim - 1))
    # a plain sum, not a matrix product: equal input gives equal bytes on any number of threads
    return np.asarray((stack * shares).sum(axis=0), dtype=np.float32)


def weighted_mean(arrays: Sequence[Arrays], weights: Sequence[float]) -> Arrays:
    """Tensor by tensor the weighted mean, added up in float64 in the order given, as float32.

    Args:
        arrays: One mapping per site in sorted order, all with the same names and shapes.
        weights: One share per site; they sum to 1.
    """
    mean: Arrays = {}
    for name in arrays[0] if arrays else ():
        total = np.zeros(arrays[0][name].shape, dtype=np.float64)
        for site, weight in zip(arrays, weights, strict=True):
            total += site[name] * np.float64(weight)
        mean[name] = total.astype(np.float32)
    return mean
