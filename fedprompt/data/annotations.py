"""Sparse annotations drawn from a full mask, as an annotator in a hurry would draw them.

Lengths are given in units of 1/256 of the image's short side. Strokes, points and blocks of large masks are
drawn on a coarser grid (short side 256 to 511) and brought back. Parts of a class below 1 % of its area get
no stroke and no point; every object gets a box.

Every class that is present gets at least one labelled pixel, and every labelled pixel is right, but for two
kinds that would not be true to life without errors: a `noisy-scribble` crosses borders by a few units, and
the core of a `box` is guessed from the box alone, so that it can be wrong where an object is no ellipse.

The kinds are those of FedLPPA (Lin et al., IEEE TMI 2024, arXiv 2402.17502), which reads drawn ones from
files.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from fedprompt.config import Annotation
from fedprompt.data.boxes import draw_boxes
from fedprompt.data.images import UNLABELLED
from fedprompt.data.scribbles import depth_inside, draw_noisy_stroke, draw_stroke

__all__ = ["draw_annotation"]

_SIDE = 256
_SMALLEST_PART = 0.01
_POINT_RADIUS = 3.0
_BACKGROUND_POINTS = 5


def draw_annotation(mask: np.ndarray, kind: Annotation, rng: np.random.Generator) -> np.ndarray:
    """Draws one annotation.

    Args:
        mask: uint8 (H, W) of class numbers; 255 stays unlabelled.
        kind: How to draw.
        rng: Decides all that is random.

    Returns:
        uint8 (H, W): class numbers where labelled, 255 elsewhere.
    """
    if kind is Annotation.FULL:
        return mask.copy()
    drawn = draw_boxes(mask) if kind is Annotation.BOX else _draw_classes(mask, kind, rng)
    drawn[mask == UNLABELLED] = UNLABELLED
    if kind not in (Annotation.BOX, Annotation.NOISY_SCRIBBLE):
        drawn[drawn != mask] = UNLABELLED  # a coarse grid may be off by its step
    for value in _classes(mask):
        region = mask == value
        if not (region & (drawn == value)).any():
            depth = depth_inside(region)
            drawn[np.unravel_index(int(depth.argmax()), depth.shape)] = value
    return drawn


def _draw_classes(mask: np.ndarray, kind: Annotation, rng: np.random.Generator) -> np.ndarray:
    """Draws class by class, the later over the earlier."""
    step = max(1, min(mask.shape) // _SIDE)
    coarse = mask[::step, ::step]
    unit = min(coarse.shape) / _SIDE
    drawn = np.full_like(coarse, UNLABELLED)
    for value in _classes(coarse):
        region = coarse == value
        match kind:
            case Annotation.SCRIBBLE:
                marks = [draw_stroke(part, unit, rng) for part in _parts(region)]
            case Annotation.NOISY_SCRIBBLE:
                marks = [draw_noisy_stroke(part, unit, rng) for part in _parts(region)]
            case Annotation.POINT:
                parts = [region] if value == 0 else _parts(region)
                count = _BACKGROUND_POINTS if value == 0 else 1
                marks = [_points(part, count, unit, rng) for part in parts]
            case _:
                marks = [_blocks(region, rng)]
        drawn[np.logical_or.reduce(marks)] = value
    return drawn.repeat(step, axis=0).repeat(step, axis=1)[: mask.shape[0], : mask.shape[1]]


def _classes(mask: np.ndarray) -> list[int]:
    return [int(value) for value in np.unique(mask) if value != UNLABELLED]


def _parts(region: np.ndarray) -> list[np.ndarray]:
    """The connected parts of a region that an annotator would see."""
    labels, _ = ndimage.label(region, structure=np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())
    smallest = _SMALLEST_PART * sizes[1:].sum()
    largest = 1 + int(sizes[1:].argmax())
    return [labels == n for n in range(1, len(sizes)) if sizes[n] >= smallest or n == largest]


def _points(region: np.ndarray, count: int, unit: float, rng: np.random.Generator) -> np.ndarray:
    """Discs around random pixels that are as far from the border as their radius, where there are such."""
    radius = _POINT_RADIUS * unit
    depth = depth_inside(region)
    deep = np.argwhere(depth >= min(radius, float(depth.max())))
    rows, columns = np.ogrid[: region.shape[0], : region.shape[1]]
    marked = np.zeros_like(region)
    for row, column in deep[rng.integers(len(deep), size=count)]:
        marked |= region & ((rows - row) ** 2 + (columns - column) ** 2 <= radius**2)
    return marked


def _blocks(region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One to three random polygons that together cover 5 to 20 % of the region; a tiny one gets a pixel."""
    pixels = np.argwhere(region)
    polygons = int(rng.integers(1, 4))
    least, most = -(-len(pixels) // 20), max(1, len(pixels) // 5)
    wanted = min(max(round(len(pixels) * rng.uniform(0.06, 0.19)), least), most)
    chosen = np.zeros(len(pixels), dtype=bool)
    for done in range(1, polygons + 1):
        count = round(wanted * done / polygons) - int(chosen.sum())
        scale = _polygon_scale(pixels - pixels[rng.integers(len(pixels))], rng)
        scale[chosen] = np.inf
        chosen[np.argsort(scale, kind="stable")[:count]] = True
    marked = np.zeros_like(region)
    marked[tuple(pixels[chosen].T)] = True
    return marked


def _polygon_scale(offsets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How far a random star-shaped polygon around the origin must grow to reach offsets: (n, 2) to (n,)."""
    corners = int(rng.integers(5, 9))
    angles = (np.arange(corners) + rng.uniform(0, 0.7, corners)) * (2 * np.pi / corners)
    points = rng.uniform(0.6, 1.2, (corners, 1)) * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    edges = np.stack([points, np.roll(points, -1, axis=0)], axis=1)
    normals = np.linalg.solve(edges, np.ones((corners, 2, 1)))[..., 0]  # normal · x = 1 on the edge's line
    angle = np.arctan2(offsets[:, 0], offsets[:, 1]) % (2 * np.pi)
    edge = (np.searchsorted(angles, angle, side="right") - 1) % corners
    scale: np.ndarray = (normals[edge] * offsets).sum(axis=1)
    return scale
