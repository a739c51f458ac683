"""Strokes: paths along the inside of a region, exact or as a hurried hand draws them."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.graph import MCP_Geometric
from skimage.morphology import skeletonize

__all__ = ["depth_inside", "draw_noisy_stroke", "draw_stroke"]


def depth_inside(region: np.ndarray) -> np.ndarray:
    """(H, W) distance of every pixel of a region to its border in pixels; the image's edge is a border."""
    depth: np.ndarray = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    return depth


def draw_stroke(region: np.ndarray, unit: float, rng: np.random.Generator) -> np.ndarray:
    """A random part of a path along the middle of a connected region, 1 to 3 units to either side.

    Args:
        region: bool (H, W), not empty.
        unit: Pixels per unit of length.
        rng: Decides path, part and width.

    Returns:
        bool (H, W), inside the region.
    """
    stroke: np.ndarray = _thick(_path(region, unit, rng), region.shape, unit, rng) & region
    return stroke


def draw_noisy_stroke(region: np.ndarray, unit: float, rng: np.random.Generator) -> np.ndarray:
    """Like `draw_stroke`, but shaky, with a gap, and across the border by up to 10 units."""
    path = _path(region, unit, rng)
    shake = ndimage.gaussian_filter1d(rng.normal(size=path.shape), sigma=4 * unit + 1, axis=0, mode="nearest")
    shake *= 3.5 * unit / max(float(shake.std()), 1e-6)
    shaken = np.rint(path + shake.clip(-5 * unit, 5 * unit)).astype(np.intp)
    shaken = shaken.clip(0, np.array(region.shape) - 1)
    missing = int(len(shaken) * rng.uniform(0.2, 0.4))
    start = int(rng.integers(len(shaken) - missing + 1))
    return _thick(np.delete(shaken, np.s_[start : start + missing], axis=0), region.shape, unit, rng)


def _path(region: np.ndarray, unit: float, rng: np.random.Generator) -> np.ndarray:
    """Pixels (n, 2) of a path that keeps off the border: half or more of what the skeleton offers."""
    box = ndimage.find_objects(region.astype(np.uint8))[0]
    region = region[box]
    depth = depth_inside(region)
    inner = region & (depth > min(2 * unit, 0.4 * depth.max()))
    skeleton: np.ndarray = skeletonize(inner)  # type: ignore[no-untyped-call]
    if not skeleton.any():
        skeleton = inner
    path = _longest(np.where(skeleton, 1.0, -1.0), skeleton, rng)
    if len(path) < np.sqrt(region.sum()) / 2:  # a round region has hardly a skeleton: wander through it
        bumps = ndimage.gaussian_filter(rng.random(region.shape), sigma=3 * unit + 0.5)
        bumps = (bumps - bumps.min()) / max(np.ptp(bumps), 1e-6)
        path = _longest(np.where(inner, 0.3 + 3 * bumps, -1.0), inner, rng)
    length = max(1, round(len(path) * rng.uniform(0.5, 1)))
    start = int(rng.integers(len(path) - length + 1))
    part: np.ndarray = path[start : start + length] + [side.start for side in box]
    return part


def _longest(costs: np.ndarray, allowed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The path to the farthest pixel from the farthest pixel from a random one; negative costs are walls."""
    pixels = np.argwhere(allowed)
    end = tuple(pixels[rng.integers(len(pixels))])
    for _ in range(2):
        router = MCP_Geometric(costs)
        distances, _ = router.find_costs([end])
        distances[~np.isfinite(distances)] = -1
        end = np.unravel_index(int(distances.argmax()), distances.shape)
    return np.array(router.traceback(end), dtype=np.intp)


def _thick(path: np.ndarray, shape: tuple[int, ...], unit: float, rng: np.random.Generator) -> np.ndarray:
    line = np.ones(shape, dtype=bool)
    line[path[:, 0], path[:, 1]] = False
    thick: np.ndarray = ndimage.distance_transform_edt(line) <= rng.uniform(1, 3) * unit
    return thick
