"""Statistics of the source's features: what a network without BatchNorm layers is aligned to.

They are sums over images and positions, per layer and channel: no image and no value of a single image can be
read from those of a whole data set, but those of very few images come near to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor

from fedprompt.adaptation.layers import LayerStatistics, Moments, WatchedNetwork
from fedprompt.adaptation.network import Network
from fedprompt.artifacts import read_arrays, write_arrays
from fedprompt.errors import DataError
from fedprompt.manifest import Arrays

__all__ = ["LEAST", "Source", "SourceStatistics", "collect_statistics", "merged"]

LEAST = 8  # images: fewer say too little about how images differ, and too much about each of them

_KIND = "source-statistics"
_SCHEMA = 1
_BETWEEN = 0.3  # variance between images' means over the whole variance, where nobody measured it
_BETWEEN_LOGS = 0.3  # variance of the logarithm of an image's variance, likewise


class Source(NamedTuple):
    """One layer's channels (C,) over the images of the source.

    Attributes:
        mean: Over all positions of all images.
        variance: Over all positions of all images.
        between: Variance of an image's mean.
        between_logs: Variance of the logarithm of an image's variance.
    """

    mean: Tensor
    variance: Tensor
    between: Tensor
    between_logs: Tensor

    @classmethod
    def of_batch_norm(cls, kept: Moments) -> Source:
        """From running statistics, which do not tell images apart: an assumption stands in for that."""
        logs = torch.full_like(kept.variance, _BETWEEN_LOGS)
        return cls(kept.mean, kept.variance, _BETWEEN * kept.variance, logs)


@dataclass(frozen=True, eq=False)
class SourceStatistics:
    """Of a network's watched layers over the images of the source.

    Attributes:
        layers: By name, in the order of the network.
        images: How many there were.
        fingerprint: Of the network that saw them.
    """

    layers: dict[str, Source]
    images: int
    fingerprint: str

    def on(self, device: torch.device) -> Self:
        """The same on another device."""
        moved = {n: Source(*(t.to(device) for t in source)) for n, source in self.layers.items()}
        return type(self)(moved, self.images, self.fingerprint)

    def save(self, path: Path) -> None:
        """Writes one file, whole or not at all."""
        arrays: Arrays = {
            f"{field}/{name}": getattr(source, field).cpu().numpy()
            for name, source in self.layers.items()
            for field in Source._fields
        }
        metadata = {
            "kind": _KIND,
            "schema": _SCHEMA,
            "images": self.images,
            "network": self.fingerprint,
            "layers": list(self.layers),
        }
        write_arrays(path, arrays, metadata)

    @classmethod
    def load(cls, path: Path, fingerprint: str | None = None) -> Self:
        """Reads what `save` wrote.

        Args:
            path: The file.
            fingerprint: Of the network that they are to be used with; None takes any.

        Raises:
            DataError: The file is missing, damaged, something else, or of another network.
        """
        arrays, stored = read_arrays(path)
        if (stored.get("kind"), stored.get("schema")) != (_KIND, _SCHEMA):
            raise DataError(f"{path}: expected source statistics of schema {_SCHEMA}, got another file")
        if fingerprint is not None and stored.get("network") != fingerprint:
            raise DataError(
                f"{path}: expected statistics of network {fingerprint[:12]}, got those of "
                f"{str(stored.get('network'))[:12]}"
            )
        try:
            layers = {
                name: Source(*(torch.from_numpy(arrays[f"{field}/{name}"]) for field in Source._fields))
                for name in stored["layers"]
            }
            _check(layers)
            return cls(layers, int(stored["images"]), str(stored["network"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: expected whole source statistics, got others ({error})") from None


def collect_statistics(network: Network, images: Iterable[Tensor]) -> SourceStatistics:
    """Runs the network over images (channels, H, W) in 0 to 1 of the source and keeps the sums.

    Raises:
        DataError: There are fewer than `LEAST` images, or a feature is not finite.
    """
    watched = WatchedNetwork(network.module)
    sums: dict[str, _Sums] = {}
    count = 0
    for image in images:
        count += 1
        batch = network.normalised(image.to(network.device, torch.float32)[None])
        with torch.no_grad():
            _, observed = watched.observe(batch)
        _add(sums, observed)
    if count < LEAST:
        raise DataError(f"source statistics: expected at least {LEAST} images, got {count}")
    layers = {name: total.source(count) for name, total in sums.items()}
    try:
        _check(layers)
    except ValueError as error:
        raise DataError(f"source statistics: expected finite features, got others ({error})") from None
    return SourceStatistics(layers, count, network.fingerprint)


def merged(parts: Sequence[SourceStatistics]) -> SourceStatistics:
    """Statistics over the images of all parts, such as the sites of a study; exact up to rounding but for
    `between_logs`, which leaves out how the parts differ from each other.

    Raises:
        DataError: There is none, or they are of different networks.
    """
    if not parts:
        raise DataError("source statistics: expected at least one to merge, got none")
    if len({(part.fingerprint, tuple(part.layers)) for part in parts}) > 1:
        marks = sorted({part.fingerprint[:12] for part in parts})
        raise DataError(f"source statistics: expected those of one network, got {', '.join(marks)}")
    count = sum(part.images for part in parts)
    layers = {}
    for name in parts[0].layers:
        sources = [part.layers[name] for part in parts]
        shares = [part.images / count for part in parts]
        mean = _weighted(shares, [s.mean for s in sources])
        offsets = _weighted(shares, [(s.mean - mean).square() for s in sources])
        variance, between, logs = (
            _weighted(shares, [getattr(s, field) for s in sources])
            for field in ("variance", "between", "between_logs")
        )
        layers[name] = Source(mean, variance + offsets, between + offsets, logs)
    return SourceStatistics(layers, count, parts[0].fingerprint)


@dataclass(eq=False)
class _Sums:
    """Float64 sums over images: of mean, squared mean, variance, its logarithm and the square of that."""

    mean: Tensor
    mean_square: Tensor
    within: Tensor
    log: Tensor
    log_square: Tensor

    def source(self, count: int) -> Source:
        mean, square, within, log, log_square = (getattr(self, f.name) / count for f in fields(self))
        between = (square - mean.square()).clamp(min=0)
        logs = (log_square - log.square()).clamp(min=0)
        return Source(*(value.float() for value in (mean, within + between, between, logs)))


def _add(sums: dict[str, _Sums], observed: LayerStatistics) -> None:
    for name, found in observed.items():
        mean, variance = found.mean.double(), found.variance.double()
        log = (variance + 1e-12).log()
        values = (mean, mean.square(), variance, log, log.square())
        if name not in sums:
            sums[name] = _Sums(*(torch.zeros_like(value) for value in values))
        for field, value in zip(fields(_Sums), values, strict=True):
            getattr(sums[name], field.name).add_(value)


def _weighted(shares: list[float], values: list[Tensor]) -> Tensor:
    total = sum(share * value.double() for share, value in zip(shares, values, strict=True))
    assert isinstance(total, Tensor)  # noqa: S101 - for the type checker
    return total.float()


def _check(layers: Mapping[str, Source]) -> None:
    if not layers:
        raise ValueError("no layers")
    for name, source in layers.items():
        shapes = {tuple(tensor.shape) for tensor in source}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise ValueError(f"layer {name} has shapes {sorted(shapes)}")
        for tensor in source:
            if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"layer {name} is not finite float32")
