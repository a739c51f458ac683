"""Augmented views of one case: small moves, and the colour and light of another camera."""

from __future__ import annotations

import zlib

import numpy as np
from scipy import ndimage

from fedprompt.data.images import UNLABELLED

__all__ = ["VERSION", "augmented"]

VERSION = 1  # changes with what the same arguments give: features on disk must not outlive it

_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32).reshape(3, 1, 1)


def augmented(
    image: np.ndarray, annotation: np.ndarray, view: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """One view of a case; the same for the same arguments.

    Args:
        image: float32 (3, S, S) in 0 to 1.
        annotation: uint8 (S, S).
        view: 0 is the case as it is; every other number another flip, turn (up to 30°), scale (0.85 to 1.18),
            shift (up to 8 % of the side), brightness, contrast, gamma and saturation.
        seed: Of the study. The image enters the draw too, so that two cases do not move alike.

    Returns:
        Image and annotation of the view, shapes and types as given. What comes from outside of the picture is
        its mirror image, and unlabelled.
    """
    if view == 0:
        return image, annotation
    rng = np.random.default_rng([seed, view, zlib.crc32(image.tobytes())])
    matrix, offset = _placement(annotation.shape[0], rng)
    moved = np.stack(
        [ndimage.affine_transform(plane, matrix, offset, order=1, mode="mirror") for plane in image]
    )
    labels = ndimage.affine_transform(
        annotation, matrix, offset, order=0, mode="constant", cval=UNLABELLED, prefilter=False
    )
    return _recoloured(moved, rng), labels


def _placement(side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset that lead from a pixel of the view to its place in the image."""
    angle = np.deg2rad(rng.uniform(-30, 30))
    scale = np.exp(rng.uniform(-0.165, 0.165))
    flips = np.diag(rng.choice([-1.0, 1.0], size=2))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix: np.ndarray = flips @ turn / scale
    centre = np.full(2, (side - 1) / 2)
    return matrix, centre - matrix @ (centre + rng.uniform(-0.08, 0.08, size=2) * side)


def _recoloured(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    saturation, contrast, brightness = rng.uniform([0.7, 0.8, -0.08], [1.3, 1.25, 0.08]).astype(np.float32)
    grey = (image * _GREY).sum(axis=0, keepdims=True)
    level = grey.mean()
    coloured = grey + saturation * (image - grey)
    lit = level + contrast * (coloured - level) + brightness
    view: np.ndarray = lit.clip(0, 1) ** np.float32(np.exp(rng.uniform(-0.25, 0.25)))
    return view
