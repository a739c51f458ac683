"""What the frozen part of a network computes for an image, kept in memory and on disk."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from fedprompt.data.feature_file import in_memory_order
from fedprompt.data.feature_store import FeatureStore

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["FeatureCache", "FeatureKey"]

_MAPS = 4096  # files mapped at once; Linux allows a process 65 530 maps of all kinds


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

    @property
    def fields(self) -> list[str]:
        """The four attributes in order."""
        return [self.fingerprint, self.stage, self.sha256, self.transform]

    @property
    def name(self) -> str:
        """SHA-256 over the four attributes: the name of a file."""
        return hashlib.sha256(json.dumps(self.fields).encode()).hexdigest()


class FeatureCache:
    """A bounded, thread-safe memory of features; what was used longest ago leaves first.

    With a folder there is a second level: what is computed is also written there, and a later process, or
    this one after the features left its memory, gets them back as memory maps. Their pages belong to the
    operating system's page cache, which gives them up when memory is short, so they do not count as kept
    bytes. The features derive from patients' images: the folder belongs to the site, is readable for its user
    alone, and can be deleted at any time. See `FeatureStore`.

    Args:
        limit: Bytes that may be kept in memory. Features that alone are larger are returned but not kept.
        folder: Of the second level; None keeps features in memory alone.
        disk_limit: Bytes that the files in the folder may take.
        device: Where features that come from the folder are put; if that is not the CPU, they are copies
            and count as kept bytes.

    Attributes:
        hits: Calls answered from memory, from the folder, or by what another thread had under way.
        mapped: Those of them that mapped a file.
        misses: Calls that computed.
        nbytes: Bytes kept in memory now.
    """

    def __init__(
        self,
        limit: int,
        *,
        folder: Path | None = None,
        disk_limit: int = 64 << 30,
        device: torch.device | str = "cpu",
    ) -> None:
        self.limit = limit
        self.hits = 0
        self.mapped = 0
        self.misses = 0
        self.nbytes = 0
        self._device = device
        self._store = None if folder is None else FeatureStore(folder, disk_limit)
        self._lock = Lock()
        self._kept: OrderedDict[FeatureKey, tuple[Tensor, ...]] = OrderedDict()
        self._maps: OrderedDict[FeatureKey, tuple[Tensor, ...]] = OrderedDict()
        self._under_way: dict[FeatureKey, Future[tuple[Tensor, ...]]] = {}

    def __len__(self) -> int:
        return len(self._kept) + len(self._maps)

    def get(self, key: FeatureKey, compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The features of `key`, computed by the first caller alone; others that come meanwhile wait for it.

        An exception of `compute` reaches all of these callers, and nothing is kept. The tensors are shared
        between callers and must not be changed in place.
        """
        with self._lock:
            found = self._find(key)
            other = self._under_way.get(key)
            if found is not None or other is not None:
                self.hits += 1
            else:
                mine: Future[tuple[Tensor, ...]] = Future()
                self._under_way[key] = mine
        if found is not None:
            if self._store is not None:
                self._store.touch(key)
            return found
        if other is not None:
            return other.result()
        try:
            features = self._load(key)
            if features is None:
                features = self._compute(key, compute)
        except BaseException as error:
            with self._lock:
                del self._under_way[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._under_way[key]
        mine.set_result(features)
        return features

    def _find(self, key: FeatureKey) -> tuple[Tensor, ...] | None:
        for level in (self._kept, self._maps):
            if key in level:
                level.move_to_end(key)
                return level[key]
        return None

    def _load(self, key: FeatureKey) -> tuple[Tensor, ...] | None:
        """From the folder."""
        maps = None if self._store is None else self._store.load(key)
        if maps is None:
            return None
        features = tuple(tensor.to(self._device) for tensor in maps)
        with self._lock:
            self.hits += 1
            self.mapped += 1
            if all(moved is tensor for moved, tensor in zip(features, maps, strict=True)):
                self._maps[key] = features
                if len(self._maps) > _MAPS:
                    self._maps.popitem(last=False)
            else:
                self._keep(key, features)
        return features

    def _compute(self, key: FeatureKey, compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        with self._lock:
            self.misses += 1
        features = tuple(_compact(tensor) for tensor in compute())
        left = set() if self._store is None else self._store.save(key, features)
        with self._lock:
            if left:  # the disk gets its room back only when nothing maps the files any more
                for each in [each for each in self._maps if each.name in left]:
                    del self._maps[each]
            self._keep(key, features)
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
    whole = tensor.untyped_storage().nbytes() == tensor.nbytes and in_memory_order(tensor).is_contiguous()
    return tensor if whole else tensor.clone()


def _size(features: tuple[Tensor, ...]) -> int:
    return sum(tensor.nbytes for tensor in features)
