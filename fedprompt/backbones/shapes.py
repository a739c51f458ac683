"""Domain-randomised synthetic images: nested blobs on anything, to pre-train a network on no data at all.

An image shows up to two blobs with an outer region (class 1) around an inner region (class 2), and much that
is neither: textures, gradients, stripes, curves, rings, bars and specks. Contours, colours, contrast,
sharpness, position and size are drawn anew for every image (domain randomisation, Tobin et al. 2017).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy.ndimage import binary_erosion, gaussian_filter

__all__ = ["shape_batch", "shape_image"]

Field = np.ndarray  # (S, S) float32: distance from a centre in units of the contour; below 1 is inside


def shape_batch(rng: np.random.Generator, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` images (N, 3, S, S) float32 in 0 to 1 and masks (N, S, S) uint8 with classes 0, 1 and 2."""
    pairs = [shape_image(rng, size) for _ in range(count)]
    return np.stack([image for image, _ in pairs]), np.stack([mask for _, mask in pairs])


def shape_image(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One image (3, S, S) float32 in 0 to 1 and its mask (S, S) uint8 with classes 0, 1 and 2."""
    image = _background(rng, size)
    mask = np.zeros((size, size), np.uint8)
    for _ in range(rng.integers(0, 3)):
        _distractor(rng, image)
    for radius in _radii(rng):
        _nested_blob(rng, image, mask, radius)
    for _ in range(rng.integers(0, 5)):
        _curve(rng, image)
    return _camera(rng, image).astype(np.float32), mask


def _radii(rng: np.random.Generator) -> list[float]:
    """Outer radii of one image's blobs as shares of its side: mostly one, sometimes none or two."""
    count = rng.choice(3, p=(0.08, 0.77, 0.15))
    largest = np.log(0.45 if count == 1 else 0.22)
    return [float(np.exp(rng.uniform(np.log(0.08), largest))) for _ in range(count)]


# ---- geometry ----


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of every pixel as shares of the side, (S, 1) and (1, S)."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    return axis[:, None], axis[None, :]


def _contour(rng: np.random.Generator, size: int, centre: np.ndarray, radius: float) -> Field:
    """The field of a random contour: a superellipse, a star or a Fourier curve, stretched and turned."""
    rows, columns = _grid(size)
    angle = rng.uniform(0, 2 * np.pi)
    stretch = np.exp(rng.normal(0, 0.16))
    u = np.cos(angle) * (columns - centre[1]) + np.sin(angle) * (rows - centre[0])
    v = np.cos(angle) * (rows - centre[0]) - np.sin(angle) * (columns - centre[1])
    u, v = u / (radius * stretch), v / (radius / stretch)
    kind = rng.choice(3, p=(0.45, 0.15, 0.4))
    if kind == 0:
        power = np.exp(rng.uniform(np.log(1.6), np.log(4.0)))
        return np.asarray((np.abs(u) ** power + np.abs(v) ** power) ** (1 / power))
    phase = np.arctan2(v, u)
    if kind == 1:
        edge = 1 + rng.uniform(0.05, 0.2) * np.cos(rng.integers(3, 8) * phase)
    else:
        harmonics = np.arange(2, 7)
        amplitudes = rng.normal(0, 0.22, harmonics.size) / harmonics
        shifts = rng.uniform(0, 2 * np.pi, harmonics.size)
        edge = 1 + sum(
            a * np.cos(k * phase + s) for a, k, s in zip(amplitudes, harmonics, shifts, strict=True)
        )
    return np.asarray(np.hypot(u, v) / np.maximum(edge, 0.3))


def _soft(field: Field, radius: float, softness: float) -> np.ndarray:
    """Coverage (S, S) in 0 to 1 of a field's inside; `softness`: border width as share of the side."""
    return np.asarray(1 / (1 + np.exp(np.clip((field - 1) * radius / softness * 4, -30, 30))))


def _noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise (S, S) of zero mean and about unit deviation with `cells` cells along a side."""
    knots = rng.normal(size=(cells + 1, cells + 1)).astype(np.float32)
    weights = _interpolation(size, cells)
    return np.asarray(weights @ knots @ weights.T)


@lru_cache(maxsize=128)
def _interpolation(size: int, cells: int) -> np.ndarray:
    """Matrix (S, cells + 1) that interpolates knots smoothly to pixels."""
    place = _grid(size)[0][:, 0] * cells
    left = place.astype(int)
    share = place - left
    share = share * share * (3 - 2 * share)
    matrix = np.zeros((size, cells + 1), np.float32)
    matrix[np.arange(size), left] = 1 - share
    matrix[np.arange(size), left + 1] += share
    return matrix


# ---- appearance ----


def _texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """A random texture (3, S, S) of zero mean: smooth noise, fine noise or stripes with a colour tint."""
    tint = rng.normal(0, 1, 3) * rng.uniform(0, 0.5) + 1
    kind = rng.choice(3, p=(0.5, 0.3, 0.2))
    if kind == 0:
        pattern = _noise(rng, size, int(rng.integers(2, 12)))
    elif kind == 1:
        pattern = _noise(rng, size, int(rng.integers(12, 60)))
    else:
        rows, columns = _grid(size)
        angle, waves = rng.uniform(0, np.pi), rng.uniform(3, 30)
        warp = 0.05 * _noise(rng, size, 4)
        ramp = np.cos(angle) * rows + np.sin(angle) * columns + warp
        pattern = np.sin(2 * np.pi * waves * ramp + rng.uniform(0, 6))
    return np.asarray(tint[:, None, None] * pattern * rng.uniform(0, 0.09))


def _colour(rng: np.random.Generator) -> np.ndarray:
    """A random colour (3,), grey to vivid."""
    return np.asarray(np.clip(rng.uniform(0.1, 0.9) + rng.normal(0, rng.uniform(0, 0.25), 3), 0, 1))


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    rows, columns = _grid(size)
    slope = rng.normal(0, 0.15, (2, 3, 1, 1))
    image = _colour(rng)[:, None, None] + slope[0] * (rows - 0.5) + slope[1] * (columns - 0.5)
    for _ in range(rng.integers(1, 4)):
        image = image + _texture(rng, size)
    return np.asarray(image)


def _step(rng: np.random.Generator, strength: float) -> np.ndarray:
    """A colour step (3,) whose largest channel is `strength`; brighter or darker, seldom both at once."""
    sign = rng.choice((-1, 1))
    step = sign * np.abs(rng.normal(0.6, 0.4, 3)) if rng.random() < 0.8 else rng.normal(size=3)
    return np.asarray(step / np.abs(step).max() * strength)


def _paint(image: np.ndarray, cover: np.ndarray, change: np.ndarray) -> None:
    image += cover * change


def _nested_blob(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, radius: float) -> None:
    """Draws an outer and mostly an inner region, where they do not cover an earlier blob."""
    size = mask.shape[0]
    centre = rng.uniform(min(radius, 0.4) * 0.8, 1 - min(radius, 0.4) * 0.8, 2)
    outer = _contour(rng, size, centre, radius)
    if mask[outer < 1.2].any():
        return
    softness = float(np.exp(rng.uniform(np.log(0.004), np.log(0.05)))) * (0.5 + radius / 0.3)
    faint = rng.random() < 0.15  # more of these and a short training learns nothing
    strength = rng.uniform(0.08, 0.2) if faint else rng.uniform(0.2, 0.6)
    step = _step(rng, strength)
    _paint(image, _soft(outer, radius, softness), step[:, None, None] + _own_texture(rng, size))
    inside = outer < 1
    mask[inside] = 1
    if rng.random() < 0.12:
        return
    share = rng.uniform(0.25, 0.8)
    shift = rng.normal(0, 0.25, 2) * radius * (1 - share)
    inner = np.maximum(_contour(rng, size, centre + shift, radius * share), outer / 0.93)
    # Mostly the same direction as the outer step (a peak within a hill), else any other.
    second = step * rng.uniform(0.4, 1.4) + _step(rng, 0.3 * strength)
    if rng.random() < 0.3:
        second = _step(rng, strength)
    _paint(image, _soft(inner, radius * share, softness), second[:, None, None] + _own_texture(rng, size))
    mask[(inner < 1) & binary_erosion(inside, border_value=1)] = 2


def _own_texture(rng: np.random.Generator, size: int) -> np.ndarray | float:
    return _texture(rng, size) if rng.random() < 0.4 else 0.0


# ---- what is not to be found ----


def _distractor(rng: np.random.Generator, image: np.ndarray) -> None:
    """Draws a ring, a bar, a half-plane, a patch of stripes or specks: never a nested blob."""
    size = image.shape[1]
    centre, change = rng.uniform(0, 1, 2), _step(rng, rng.uniform(0.05, 0.4))[:, None, None]
    draw: Callable[..., np.ndarray] = (_ring, _bar, _half, _striped_patch, _specks)[rng.integers(5)]
    _paint(image, draw(rng, size, centre), change)


def _ring(rng: np.random.Generator, size: int, centre: np.ndarray) -> np.ndarray:
    radius, width = rng.uniform(0.06, 0.4), rng.uniform(0.01, 0.04)
    field = _contour(rng, size, centre, radius)
    return np.asarray(np.exp(-(((field - 1) * radius / width) ** 2)))


def _bar(rng: np.random.Generator, size: int, centre: np.ndarray) -> np.ndarray:
    rows, columns = _grid(size)
    angle, long, wide = rng.uniform(0, np.pi), rng.uniform(0.15, 0.6), rng.uniform(0.02, 0.07)
    u = np.cos(angle) * (columns - centre[1]) + np.sin(angle) * (rows - centre[0])
    v = np.cos(angle) * (rows - centre[0]) - np.sin(angle) * (columns - centre[1])
    return _soft(np.maximum(np.abs(u) / long, np.abs(v) / wide), wide, 0.01)


def _half(rng: np.random.Generator, size: int, centre: np.ndarray) -> np.ndarray:
    rows, columns = _grid(size)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.cos(angle) * (columns - centre[1]) + np.sin(angle) * (rows - centre[0])
    return _soft(1 + ramp + 0.03 * _noise(rng, size, 5), 1.0, rng.uniform(0.01, 0.2))


def _striped_patch(rng: np.random.Generator, size: int, centre: np.ndarray) -> np.ndarray:
    rows, columns = _grid(size)
    radius, angle = rng.uniform(0.08, 0.25), rng.uniform(0, np.pi)
    waves = np.sin(2 * np.pi * rng.uniform(10, 30) * (np.cos(angle) * rows + np.sin(angle) * columns))
    return np.asarray(_soft(_contour(rng, size, centre, radius), radius, 0.01) * waves)


def _specks(rng: np.random.Generator, size: int, centre: np.ndarray) -> np.ndarray:
    del centre
    return np.asarray(1 / (1 + np.exp(-8 * (_noise(rng, size, int(rng.integers(10, 25))) - 1.2))))


def _curve(rng: np.random.Generator, image: np.ndarray) -> None:
    """Draws a winding line from edge to edge, over blobs too."""
    size = image.shape[1]
    rows, columns = _grid(size)
    angle, start = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1, 2)
    u = np.cos(angle) * (columns - start[1]) + np.sin(angle) * (rows - start[0])
    v = np.cos(angle) * (rows - start[0]) - np.sin(angle) * (columns - start[1])
    path = rng.normal(0, 0.06) * np.sin(rng.uniform(3, 9) * u + rng.uniform(0, 6)) + rng.normal(0, 0.5) * u**2
    cover = np.exp(-(((v - path) / rng.uniform(0.004, 0.02)) ** 2))
    if rng.random() < 0.5:
        cover = cover * (u > 0)
    _paint(image, cover, _step(rng, rng.uniform(0.05, 0.35))[:, None, None])


def _camera(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Field of view, blur, noise, colour and exposure of an imagined camera."""
    size = image.shape[1]
    if rng.random() < 0.3:
        rows, columns = _grid(size)
        radius, centre = rng.uniform(0.4, 0.65), rng.normal(0.5, 0.05, 2)
        distance = np.hypot(rows - centre[0], columns - centre[1]) / radius
        image = image * _soft(distance, radius, rng.uniform(0.005, 0.15))
    if rng.random() < 0.5:
        sigma = rng.uniform(0.002, 0.014) * size
        image = gaussian_filter(image, (0, sigma, sigma))
    if rng.random() < 0.15:
        image = np.broadcast_to(image.mean(axis=0, keepdims=True), image.shape)
    image = np.clip(image * rng.uniform(0.8, 1.2, (3, 1, 1)) + rng.normal(0, 0.05), 0, 1)
    image = image ** np.exp(rng.normal(0, 0.3))
    grain = rng.standard_normal(image.shape, dtype=np.float32) * np.exp(
        rng.uniform(np.log(0.003), np.log(0.07))
    )
    return np.asarray(np.clip(image + grain, 0, 1))
