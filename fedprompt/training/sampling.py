"""Which cases and views a local round visits: every case once before any comes again."""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["draw_batches", "round_seed"]


def round_seed(seed: int, site: str, number: int) -> int:
    """A 63-bit seed for one site and round, independent of the order in which sites train."""
    text = f"{seed}/{site}/{number}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def draw_batches(
    cases: int, views: int, steps: int, batch_size: int, rng: np.random.Generator
) -> list[list[tuple[int, int]]]:
    """Batches of (case, view): shuffled passes over the cases, a random view each time.

    A site with fewer cases than `batch_size` gets batches of all its cases.
    """
    size = min(batch_size, cases)
    order: list[int] = []
    while len(order) < steps * size:
        order += rng.permutation(cases).tolist()
    chosen = rng.integers(views, size=steps * size)
    pairs = [(order[i], int(chosen[i])) for i in range(steps * size)]
    return [pairs[i * size : (i + 1) * size] for i in range(steps)]
