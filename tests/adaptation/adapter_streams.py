"""Streams through adapters on one small network, and what is equal about them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import pytest
import torch
from disc_networks import darkened, disc_images, disc_network, reddened, same_result, streamed
from torch import Tensor

from fedprompt.adaptation import METHODS, Adapted, Adapter
from fedprompt.artifacts import arrays_to_bytes

__all__ = ["EVERY", "OURS", "equal", "shifting", "state_bytes", "undisturbed"]

EVERY = pytest.mark.parametrize("method", list(METHODS))
OURS = ("low-frequency", "multi-scale")


def shifting(count: int = 22, change: int = 12) -> Tensor:
    """A stream that changes its scanner, both times to one that is not the source's."""
    return torch.cat(
        [darkened(disc_images(change, seed=31)[0]), reddened(disc_images(count - change, seed=32)[0])]
    )


@lru_cache(maxsize=32)
def undisturbed(method: str, count: int, change: int) -> tuple[tuple[Adapted, ...], bytes]:
    """The results of such a stream from its first image to its last, and the state at its end."""
    adapter = Adapter(disc_network(), method)
    return tuple(streamed(adapter, shifting(count, change))), state_bytes(adapter)


def equal(one: Sequence[Adapted], other: Sequence[Adapted]) -> bool:
    """Bit by bit."""
    return all(same_result(a, b) for a, b in zip(one, other, strict=True))


def state_bytes(adapter: Adapter) -> bytes:
    """As it is written to disk."""
    return arrays_to_bytes(*adapter.state())
