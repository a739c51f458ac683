"""What a backbone is pre-trained on: synthetic shapes without end, or a folder with `cases.csv`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedprompt.backbones.shapes import shape_batch
from fedprompt.data.cases import Case, read_cases
from fedprompt.data.images import UNLABELLED, read_mask, read_picture
from fedprompt.data.samples import split_cases
from fedprompt.errors import DataError

__all__ = ["FolderMaterial", "Material", "Scene", "ShapeMaterial", "augment"]

_VALIDATION, _TEST = 1, 2  # which stream of shapes


@dataclass(frozen=True, eq=False)
class Scene:
    """An image to evaluate on.

    Attributes:
        image: float32 (3, S, S) in 0 to 1.
        truth: uint8 (H, W) in its own resolution, 255 unlabelled.
    """

    image: Tensor
    truth: np.ndarray


class Material(ABC):
    """Training batches, validation scenes and test scenes."""

    name: str
    cases: int  # number of training cases that `batch` may be asked for
    validation: list[Scene]

    @abstractmethod
    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Augmented training images (B, 3, S, S) in 0 to 1 and masks (B, S, S) int64 of the given cases."""

    @abstractmethod
    def test(self) -> list[Scene]:
        """The test scenes, read when they are wanted: once, at the end."""


class ShapeMaterial(Material):
    """Synthetic shapes: every training image is new, whatever case is asked for."""

    name = "synthetic shapes"

    def __init__(self, size: int, seed: int, *, cases: int = 1024, evaluated: int = 128) -> None:
        self._size = size
        self._seed = seed
        self._evaluated = evaluated
        self.cases = cases
        self.validation = self._scenes(_VALIDATION)

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        images, masks = shape_batch(rng, len(indices), self._size)
        return torch.from_numpy(images), torch.from_numpy(masks).long()

    def test(self) -> list[Scene]:
        return self._scenes(_TEST)

    def _scenes(self, stream: int) -> list[Scene]:
        rng = np.random.default_rng([self._seed, stream])
        images, masks = shape_batch(rng, self._evaluated, self._size)
        return [Scene(torch.from_numpy(image), mask) for image, mask in zip(images, masks, strict=True)]


class FolderMaterial(Material):
    """The cases of one folder; where its table has no val split, one is taken from train by patient."""

    def __init__(self, folder: Path, classes: int, size: int, validation: float, seed: int) -> None:
        self.name = folder.resolve().name
        self._classes = classes
        self._size = size
        split = split_cases(read_cases(folder), validation, seed)
        self._test = split.test
        self.cases = len(split.train)
        if not split.val:
            raise DataError(
                f"{folder}: expected at least two train patients, of which one validates, got one"
            )
        train = [self._read(case) for case in split.train]
        self._images = torch.stack([scene.image for scene in train])
        masks = [torch.tensor(scene.truth)[None].float() for scene in train]
        self._masks = torch.stack([F.interpolate(m[None], size=(size, size))[0, 0].byte() for m in masks])
        self.validation = [self._read(case) for case in split.val]

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.from_numpy(indices)
        return augment(self._images[chosen], self._masks[chosen].long(), rng)

    def test(self) -> list[Scene]:
        return [self._read(case) for case in self._test]

    def _read(self, case: Case) -> Scene:
        picture = torch.tensor(read_picture(case.image).array).movedim(2, 0)
        assert case.mask is not None  # noqa: S101 - the table has a column of masks
        truth = read_mask(case.mask, self._classes)
        if truth.shape != tuple(picture.shape[1:]):
            raise DataError(
                f"{case.mask}: expected the size {tuple(picture.shape[1:])} of its image, got {truth.shape}"
            )
        side = (self._size, self._size)
        image = F.interpolate(picture[None], size=side, mode="bilinear", antialias=True)[0]
        return Scene(image.clamp(0, 1), truth)


def augment(images: Tensor, masks: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Flips, turns, scales and shifts images with their masks, and jitters colour, contrast and gamma.

    Args:
        images: (B, 3, S, S) in 0 to 1.
        masks: (B, S, S) int64. What comes from outside of the image is unlabelled.
        rng: Decides everything.
    """
    count = len(images)
    angle = rng.uniform(-np.pi, np.pi, count)
    scale = np.exp(rng.normal(0, 0.12, count))
    flip = rng.choice((-1.0, 1.0), count)
    rows = [[np.cos(angle) * flip, -np.sin(angle)], [np.sin(angle) * flip, np.cos(angle)]]
    turn = np.moveaxis(np.array(rows), 2, 0) / scale[:, None, None]
    shift = rng.uniform(-0.1, 0.1, (count, 2, 1))
    affine = torch.from_numpy(np.concatenate([turn, shift], axis=2)).float()
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    # One is added so that the zeros from outside are told from class 0.
    labels = (
        F.grid_sample(masks[:, None].float() + 1, grid, mode="nearest", align_corners=False)[:, 0].long() - 1
    )
    gain, offset, gamma = (
        torch.from_numpy(values).float()
        for values in (
            np.exp(rng.normal(0, 0.15, (count, 1, 1, 1)) + rng.normal(0, 0.06, (count, 3, 1, 1))),
            rng.normal(0, 0.04, (count, 3, 1, 1)),
            np.exp(rng.normal(0, 0.2, (count, 1, 1, 1))),
        )
    )
    jittered = (moved * gain + offset).clamp(0, 1) ** gamma
    return jittered, torch.where(labels < 0, UNLABELLED, labels)
