"""Scopes and manifests: the list of a model's tensors that drives wire, checkpoints and privacy code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from fedprompt.errors import RunError

__all__ = ["Arrays", "Manifest", "Scope", "TensorSpec", "arrays_digest"]

Arrays = dict[str, np.ndarray]


class Scope(StrEnum):
    """Who may see a tensor."""

    SHARED = "shared"  # aggregated by the server
    SITE = "site"  # kept by the server per site, never averaged into the shared prompts
    PERSONAL = "personal"  # never leaves the site
    CONSTANT = "constant"  # the same everywhere, never trained
    EPHEMERAL = "ephemeral"  # lives for one image or stream


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor: name as in the model's state, shape, numpy dtype name and scope."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scope: Scope

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Raw bytes of the tensor."""
        return self.size * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Manifest:
    """The tensors of a prompted model in a fixed order."""

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.tensors]
        if len(set(names)) != len(names):
            doubled = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"manifest names a tensor twice: {', '.join(doubled)}")

    def __iter__(self) -> Iterator[TensorSpec]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def select(self, *scopes: Scope) -> Manifest:
        """The tensors of the given scopes, in order."""
        return Manifest(tuple(spec for spec in self.tensors if spec.scope in scopes))

    def names(self) -> list[str]:
        """Names in order."""
        return [spec.name for spec in self.tensors]

    def size(self) -> int:
        """Number of elements of all tensors."""
        return sum(spec.size for spec in self.tensors)

    def nbytes(self) -> int:
        """Raw bytes of all tensors."""
        return sum(spec.nbytes for spec in self.tensors)

    def rescoped(self, changes: Mapping[Scope, Scope]) -> Manifest:
        """A manifest in which every tensor of a scope in `changes` has the scope it maps to."""
        return Manifest(
            tuple(replace(spec, scope=changes.get(spec.scope, spec.scope)) for spec in self.tensors)
        )

    def check(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Refuses arrays that are not exactly this manifest's: names, shapes, dtypes, finite values.

        Raises:
            RunError: Names the first tensor that differs, what was expected and what came.
        """
        missing = [name for name in self.names() if name not in arrays]
        if missing:
            raise RunError(f"tensor {missing[0]!r} is missing ({len(missing)} in all)", public=_MISMATCH)
        extra = sorted(arrays.keys() - set(self.names()))
        if extra:
            raise RunError(f"tensor {extra[0]!r} is not in the manifest", public=_MISMATCH)
        for spec in self.tensors:
            array = arrays[spec.name]
            if tuple(array.shape) != spec.shape:
                raise RunError(
                    f"tensor {spec.name!r}: expected shape {spec.shape}, got {tuple(array.shape)}",
                    public=_MISMATCH,
                )
            if str(array.dtype) != spec.dtype:
                raise RunError(
                    f"tensor {spec.name!r}: expected dtype {spec.dtype}, got {array.dtype}", public=_MISMATCH
                )
            if not np.isfinite(array).all():
                raise RunError(
                    f"tensor {spec.name!r}: expected finite values, got NaN or infinity",
                    public="a trained tensor is not finite",
                )

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values for JSON."""
        return [
            {"name": s.name, "shape": list(s.shape), "dtype": s.dtype, "scope": s.scope.value}
            for s in self.tensors
        ]

    @classmethod
    def from_json(cls, values: list[dict[str, Any]]) -> Manifest:
        """The manifest that `to_json` gave."""
        return cls(
            tuple(TensorSpec(v["name"], tuple(v["shape"]), v["dtype"], Scope(v["scope"])) for v in values)
        )

    def digest(self) -> str:
        """SHA-256 over names, shapes, dtypes and scopes."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


_MISMATCH = "the arrays are not those of the study's manifest"


def arrays_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        digest.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
