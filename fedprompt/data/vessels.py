"""The vessels of a synthetic eye: trees that grow out of the optic disc.

Lengths are in units of the disc's radius; the origin is its centre, the temple lies towards positive x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

__all__ = ["Vessel", "draw_vessels", "grow_vessels"]


@dataclass(frozen=True, eq=False)
class Vessel:
    """One unbranched piece: points (n, 2), widths (n,), and whether it is a vein."""

    points: np.ndarray
    widths: np.ndarray
    vein: bool


def grow_vessels(rng: np.random.Generator) -> list[Vessel]:
    """Four pairs of artery and vein that leave the disc up and down, bend to their side and branch."""
    vessels: list[Vessel] = []
    for up in (-1.0, 1.0):
        for temporal in (1.0, -1.0):
            for vein in (True, False):
                start = np.array([rng.uniform(-0.35, 0.0), up * rng.uniform(-0.1, 0.15)])
                heading = up * (np.pi / 2 - temporal * rng.uniform(-0.1, 0.45))
                bend = -up * temporal * rng.uniform(0.1, 0.24)
                width = rng.uniform(0.13, 0.19) if vein else rng.uniform(0.08, 0.12)
                _grow(vessels, start, heading, bend, width, vein, rng, depth=0)
    return vessels


def _grow(
    vessels: list[Vessel],
    start: np.ndarray,
    heading: float,
    bend: float,
    width: float,
    vein: bool,
    rng: np.random.Generator,
    *,
    depth: int,
) -> None:
    """Adds one vessel and its branches; steps of 0.3 disc radii, thinner on the way."""
    steps = int(rng.integers(18, 28) / (1 + 0.8 * depth))
    turns = bend * 0.3 + ndimage.gaussian_filter1d(rng.normal(scale=0.24, size=steps), 1.2)
    headings = heading + np.cumsum(turns)
    moves = 0.3 * np.stack([np.cos(headings), np.sin(headings)], axis=1)
    points = start + np.cumsum(np.vstack([np.zeros(2), moves]), axis=0)
    vessels.append(Vessel(points, width * np.linspace(1, 0.35, steps + 1), vein))
    if depth == 2:
        return
    for index in np.flatnonzero(rng.random(steps) < (0.14 if depth == 0 else 0.08)):
        fork = headings[index] + rng.choice([-1, 1]) * rng.uniform(0.4, 0.9)
        thin = width * (1 - 0.65 * index / steps) * rng.uniform(0.55, 0.8)
        _grow(vessels, points[index], float(fork), 0.0, thin, vein, rng, depth=depth + 1)


def draw_vessels(
    vessels: list[Vessel],
    centre: tuple[float, float],
    radius: float,
    side: float,
    tilt: float,
    size: int,
    *,
    vein: bool,
) -> np.ndarray:
    """(size, size) share of blood in every pixel, 0 to 1."""
    canvas = Image.new("L", (2 * size, 2 * size))
    pen = ImageDraw.Draw(canvas)
    turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    for vessel in vessels:
        if vessel.vein != vein:
            continue
        places = ((vessel.points @ turn.T) * [side * radius, radius] + centre) * 2 * size
        for (x0, y0), (x1, y1), width in zip(places, places[1:], vessel.widths, strict=False):
            pen.line(
                (x0, y0, x1, y1), fill=255, width=max(2, round(width * radius * 2 * size)), joint="curve"
            )
    shrunk = canvas.resize((size, size), Image.Resampling.BOX)
    blood: np.ndarray = ndimage.gaussian_filter(np.asarray(shrunk, dtype=np.float32) / 255, 0.7)
    return blood
