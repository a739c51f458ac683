"""A bank of prompts for a site that gets a new scanner: old images are gone, old performance stays.

After Zhu et al. (AAAI 2024): in a session the prompts are trained on one domain (the images of one scanner)
and then kept, frozen, as an entry of the bank; a domain-invariant prompt goes on evolving over the sessions.
Two differences. An image finds its entry by the style of the frozen backbone's early features, which costs no
training; and the invariant prompt is the running mean of the entries, not a graph attention over them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from fedprompt.artifacts import read_arrays, write_arrays
from fedprompt.backbones.base import Backbone, Features
from fedprompt.errors import ConfigurationError, DataError, RunError
from fedprompt.manifest import Arrays, Manifest, Scope, TensorSpec
from fedprompt.models import PromptedClassifier
from fedprompt.prompts.domain import style
from fedprompt.training.local import load_arrays

__all__ = ["DomainBank", "Entry", "image_styles", "predict"]

FILE = "bank.safetensors"
LEAST = 3  # images of a session: the fewest that say how far an image lies from the others

_KIND = "domain-bank"
_SCHEMA = 1
_SHRINKAGE = 0.2  # of a feature's variance to the mean variance of all features
_DEVIATIONS = 4.0  # above the mean distance of an entry's own images, from which on an image is far
_NEGLIGIBLE = 1e-3  # weight of an entry that is not worth a forward pass


@dataclass(frozen=True, eq=False)
class Entry:
    """What is kept of one session.

    Attributes:
        name: Of the scanner.
        arrays: Trained tensors by name.
        mean: Of every style feature over the session's train images (D,) float32.
        variance: Of every style feature, shrunk to the mean variance (D,) float32, positive.
        reach: Distance from which on an image is far from this entry.
        images: How many there were.
    """

    name: str
    arrays: Arrays
    mean: np.ndarray
    variance: np.ndarray
    reach: float
    images: int

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return self.mean.nbytes + self.variance.nbytes + sum(array.nbytes for array in self.arrays.values())

    def distances(self, styles: np.ndarray) -> np.ndarray:
        """Squared Mahalanobis distance per feature (N,) of style vectors (N, D); about 1 for its own."""
        return np.asarray((_offsets(self, styles) ** 2 / self.variance).mean(axis=1))

    def log_likelihoods(self, styles: np.ndarray) -> np.ndarray:
        """Of style vectors (N, D) under a Gaussian with diagonal covariance, up to a constant (N,)."""
        variance = self.variance.astype(np.float64)
        return np.asarray(-0.5 * (_offsets(self, styles) ** 2 / variance + np.log(variance)).sum(axis=1))


class DomainBank:
    """The prompts of a site's scanners, and which images they are for.

    What it tells about patients: it holds no image and no value of a single image, but of every session the
    mean and variance of each style feature, one distance, the number of images, and prompts that were trained
    on them. Whoever has it and an image can tell how well the image fits a session; a mean over few images is
    near to each of them. So it is personal: it stays on the site's disk, in a folder for its user alone.

    Args:
        backbone: Fingerprint of the backbone under which arrays and styles mean something.
        block: Styles are those of the hidden state in front of this transformer block.

    Attributes:
        entries: In the order of the sessions.
    """

    def __init__(self, backbone: str, *, block: int = 4) -> None:
        self.backbone = backbone
        self.block = block
        self.entries: tuple[Entry, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays kept; an entry of a small model has some ten thousand."""
        return sum(entry.nbytes for entry in self.entries)

    def add(self, name: str, arrays: Mapping[str, np.ndarray], styles: np.ndarray) -> None:
        """Keeps the outcome of one session; entries never change afterwards.

        Args:
            name: Of the scanner.
            arrays: All tensors that the session trained; the same names and shapes in every session.
            styles: Style vectors (N, D) of the session's train images as they are, without augmentation.

        Raises:
            ConfigurationError: There is an entry of this name.
            DataError: The session has too few images, or all look the same.
            RunError: The arrays are not those of the other entries, or not finite.
            ValueError: The styles are not of the length of the other entries', or not finite.
        """
        if any(entry.name == name for entry in self.entries):
            raise ConfigurationError(f"domain bank: expected the name of a new scanner, got {name!r} again")
        styles = self._checked(styles)
        if len(styles) < LEAST:
            raise DataError(f"domain bank: {name}: expected at least {LEAST} images, got {len(styles)}")
        variance = _shrunk(styles.var(axis=0, ddof=1)).astype(np.float32)
        if not variance.all():
            raise DataError(f"domain bank: {name}: expected images that differ, got {len(styles)} alike")
        distances = _left_out_distances(styles)
        self._append(
            Entry(
                name=name,
                arrays={key: np.array(array) for key, array in arrays.items()},
                mean=styles.mean(axis=0).astype(np.float32),
                variance=variance,
                reach=float(distances.mean() + _DEVIATIONS * distances.std(ddof=1)),
                images=len(styles),
            )
        )

    def start(self) -> Arrays:
        """The domain-invariant prompt: mean of the entries' arrays, every session with the same weight.

        A new session starts from it, and it answers for images that are far from every entry. Empty where
        there is no entry yet: the first session starts from the initial model.
        """
        if not self.entries:
            return {}
        means: Arrays = {}
        for name, array in self.entries[0].arrays.items():
            kept = [entry.arrays[name] for entry in self.entries]
            means[name] = np.mean(kept, axis=0, dtype=np.float64).astype(array.dtype)
        return means

    def route(self, styles: np.ndarray) -> np.ndarray:
        """Weights (N, entries) of the entries for style vectors (N, D); rows sum to 1.

        They are the posterior with equal priors: how many images a scanner had then does not say how many
        come from it now. With hundreds of features nearly all the weight is on one entry.
        """
        styles = self._checked(styles)
        scores = np.stack([entry.log_likelihoods(styles) for entry in self._some()], axis=1)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))

    def far(self, styles: np.ndarray) -> np.ndarray:
        """Which style vectors (N, D) are beyond the reach of every entry: bool (N,).

        An entry reaches as far as its own train images lie, each measured from the others, with a margin.
        This finds what is no image of the kind at all rather than a scanner that looks much like a known one.
        """
        styles = self._checked(styles)
        beyond = [entry.distances(styles) > entry.reach for entry in self._some()]
        return np.asarray(np.stack(beyond).all(axis=0))

    def save(self, folder: Path) -> None:
        """Writes one file into `folder`, whole or not at all; the folder is made for its user alone."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        arrays: Arrays = {}
        for number, entry in enumerate(self.entries):
            arrays |= {f"{number}/mean": entry.mean, f"{number}/variance": entry.variance}
            arrays |= {f"{number}/trained/{name}": array for name, array in entry.arrays.items()}
        listed = [{"name": e.name, "images": e.images, "reach": e.reach} for e in self.entries]
        metadata = {"kind": _KIND, "schema": _SCHEMA, "backbone": self.backbone, "block": self.block}
        write_arrays(folder / FILE, arrays, {**metadata, "entries": listed})

    @classmethod
    def load(cls, folder: Path, backbone: str) -> Self:
        """Reads what `save` wrote.

        Args:
            folder: Of the bank.
            backbone: Fingerprint of the backbone that the bank is to be used with.

        Raises:
            DataError: The file is missing, damaged, no bank, or of another backbone.
        """
        path = folder / FILE
        arrays, stored = read_arrays(path)
        if (stored.get("kind"), stored.get("schema")) != (_KIND, _SCHEMA):
            raise DataError(f"{path}: expected a domain bank of schema {_SCHEMA}, got another file")
        if stored.get("backbone") != backbone:
            raise DataError(
                f"{path}: expected a bank of backbone {backbone[:12]}, got {str(stored.get('backbone'))[:12]}"
            )
        try:
            bank = cls(backbone, block=int(stored["block"]))
            for number, listed in enumerate(stored["entries"]):
                bank._append(_entry(number, listed, arrays))
        except (KeyError, TypeError, ValueError, RunError) as error:
            raise DataError(f"{path}: expected whole entries, got others ({error})") from None
        return bank

    def _append(self, entry: Entry) -> None:
        _manifest(self.entries[0] if self.entries else entry).check(entry.arrays)
        self.entries = (*self.entries, entry)

    def _some(self) -> tuple[Entry, ...]:
        if not self.entries:
            raise RunError("domain bank: expected at least one entry, got none")
        return self.entries

    def _checked(self, styles: np.ndarray) -> np.ndarray:
        styles = np.asarray(styles, dtype=np.float64)
        length = len(self.entries[0].mean) if self.entries else styles.shape[-1]
        if styles.ndim != 2 or styles.shape[1] != length:
            raise ValueError(f"expected styles of shape (images, {length}), got {styles.shape}")
        if not np.isfinite(styles).all():
            raise ValueError("expected finite styles, got NaN or infinity")
        return styles


def image_styles(backbone: Backbone, images: Tensor, block: int) -> np.ndarray:
    """Style vectors (B, D) float32 of preprocessed images (B, 3, S, S): the hidden state before a block."""
    with torch.no_grad():
        return np.asarray(style(backbone.encode(images, stop=block)).cpu().numpy())


def predict(bank: DomainBank, model: PromptedClassifier, state: Features, styles: np.ndarray) -> np.ndarray:
    """Class probabilities (N, classes) float32: those under every entry, weighted by the image's route.

    An image far from every entry gets those of the domain-invariant prompt alone. Only entries with some
    weight for an image are computed for it, so most images cost one forward pass.

    Args:
        bank: With at least one entry.
        model: Of the study and backbone that the entries were trained with; its arrays are overwritten.
        state: What the model's `encode` gave for N images.
        styles: Of the same images (N, D), as `image_styles` gives them in front of `bank.block`.
    """
    weights = bank.route(styles)
    weights[weights < _NEGLIGIBLE] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    far = bank.far(styles)
    weights[far] = 0
    columns = [(entry.arrays, weights[:, number]) for number, entry in enumerate(bank.entries)]
    answer: np.ndarray | None = None
    for arrays, share in [*columns, (bank.start(), far.astype(np.float64))]:
        rows = np.flatnonzero(share)
        if not len(rows):
            continue
        load_arrays(model, arrays)
        chosen = tuple(tensor[torch.from_numpy(rows).to(tensor.device)] for tensor in state)
        found = model.probabilities(chosen).cpu().numpy()
        if answer is None:
            answer = np.zeros((len(styles), found.shape[1]))
        answer[rows] += share[rows, None] * found
    return np.asarray(np.zeros((0, 0)) if answer is None else answer, dtype=np.float32)


def _offsets(entry: Entry, styles: np.ndarray) -> np.ndarray:
    return np.asarray(styles.astype(np.float64) - entry.mean)


def _shrunk(variance: np.ndarray) -> np.ndarray:
    """Variances (..., D) moved towards their mean, so that no feature decides alone."""
    mean = variance.mean(axis=-1, keepdims=True)
    return np.asarray((1 - _SHRINKAGE) * variance + _SHRINKAGE * mean)


def _left_out_distances(styles: np.ndarray) -> np.ndarray:
    """Distance (N,) of every style vector from the Gaussian of the N - 1 others.

    Measured from a Gaussian that they are part of, few images would seem nearer than any new one.
    """
    count = len(styles)
    offsets = (styles - styles.mean(axis=0)) * count / (count - 1)  # from the mean of the others
    squares = (count - 1) * styles.var(axis=0, ddof=1) - offsets**2 * (count - 1) / count
    floor = 1e-3 * _shrunk(styles.var(axis=0, ddof=1))  # the others may all be alike
    variance = np.maximum(_shrunk(squares.clip(min=0) / (count - 2)), floor)
    return np.asarray((offsets**2 / variance).mean(axis=1))


def _manifest(entry: Entry) -> Manifest:
    """Every tensor of an entry is personal, also those that were shared while they were trained."""
    specs = (TensorSpec(n, a.shape, str(a.dtype), Scope.PERSONAL) for n, a in entry.arrays.items())
    return Manifest(tuple(specs))


def _entry(number: int, listed: Mapping[str, Any], arrays: Arrays) -> Entry:
    prefix = f"{number}/trained/"
    trained = {n.removeprefix(prefix): array for n, array in arrays.items() if n.startswith(prefix)}
    mean, variance = arrays[f"{number}/mean"], arrays[f"{number}/variance"]
    if mean.ndim != 1 or mean.shape != variance.shape or not (variance > 0).all():
        raise ValueError(f"entry {number} has no mean and variance of the same features")
    return Entry(str(listed["name"]), trained, mean, variance, float(listed["reach"]), int(listed["images"]))
