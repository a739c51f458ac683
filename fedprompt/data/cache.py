"""What the frozen part of a network computes for an image, kept in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FeatureCache", "FeatureKey"]


@dataclass(frozen=True, slots=True)
class FeatureKey:
    """All that the features of one image depend on.

    Attributes:
        fingerprint: Of the backbone.
        stage: Which of its outputs.
        sha256: Hash of the image file's bytes.
        transform: What was done to the image before: size, view, seed.
    """

    fingerprint: str
    stage: str
    sha256: str
    transform: str


class FeatureCache:
    """A bounded, thread-safe memory of features; what was used longest ago leaves first.

    Args:
        limit: Bytes that may be kept. Features that alone are larger are returned but not kept.

    Attributes:
        hits: Calls answered from memory, or by a computation that another thread had under way.
        misses: Calls that computed.
        nbytes: Bytes kept now.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.hits = 0
        self.misses = 0
        self.nbytes = 0
        self._lock = Lock()
        self._kept: OrderedDict[FeatureKey, tuple[Tensor, ...]] = OrderedDict()
        self._under_way: dict[FeatureKey, Future[tuple[Tensor, ...]]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: FeatureKey, compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The features of `key`, computed by the first caller alone; others that come meanwhile wait for it.

        An exception of `compute` reaches all of these callers, and nothing is kept. The tensors are shared
        between callers and must not be changed in place.
        """
        with self._lock:
            if key in self._kept:
                self.hits += 1
                self._kept.move_to_end(key)
                return self._kept[key]
            other = self._under_way.get(key)
            if other is None:
                self.misses += 1
                mine: Future[tuple[Tensor, ...]] = Future()
                self._under_way[key] = mine
            else:
                self.hits += 1
        if other is not None:
            return other.result()
        try:
            features = tuple(_compact(tensor) for tensor in compute())
        except BaseException as error:
            with self._lock:
                del self._under_way[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._under_way[key]
            self._keep(key, features)
        mine.set_result(features)
        return features

    def _keep(self, key: FeatureKey, features: tuple[Tensor, ...]) -> None:
        size = _size(features)
        if size > self.limit:
            return
        self._kept[key] = features
        self.nbytes += size
        while self.nbytes > self.limit:
            _, leaving = self._kept.popitem(last=False)
            self.nbytes -= _size(leaving)


def _compact(tensor: Tensor) -> Tensor:
    """Without graph, and as a copy where it is a view that would keep a larger tensor alive."""
    tensor = tensor.detach()
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def _size(features: tuple[Tensor, ...]) -> int:
    return sum(tensor.nbytes for tensor in features)
