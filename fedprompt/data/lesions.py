"""Synthetic close-ups of skin lesions, seen by some dermatoscope.

Lengths are in units of the lesion's radius, or shares of the image's side where said. Nothing here is a model
of disease: the three classes only have to differ by shape, colour and texture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

__all__ = ["LESION_CLASSES", "Dermatoscope", "Skin", "paint"]

LESION_CLASSES = ("nevus", "melanoma", "keratosis")

_Colour = tuple[float, float, float]
_Range = tuple[float, float]

# What pigment swallows of red, green and blue light per unit of density, brown and blue-black.
_BROWN = np.array([0.42, 0.78, 1.05], dtype=np.float32)
_BLUISH = np.array([0.95, 0.85, 0.6], dtype=np.float32)


@dataclass(frozen=True)
class _Look:
    """Ranges from which a lesion of one class is drawn.

    Attributes:
        density: Of the pigment.
        irregularity: Size of the outline's waves.
        asymmetry: How far the pigment's middle lies off the lesion's.
        edge: Half width of the border.
        patches: Number of darker or lighter patches; every other one is bluish where there is a veil.
        network: Strength of the pigment's net.
        veil: Strength of a pale blue haze over a part.
        dots: Number of pale dots, and of dark plugs.
        crust: Share of a dull yellow-grey surface.
    """

    density: _Range
    irregularity: _Range
    asymmetry: _Range
    edge: _Range
    patches: tuple[int, int]
    network: _Range
    veil: _Range
    dots: tuple[int, int]
    crust: _Range


_LOOKS = {
    "nevus": _Look(
        density=(0.4, 0.9),
        irregularity=(0.01, 0.06),
        asymmetry=(0.0, 0.2),
        edge=(0.15, 0.35),
        patches=(0, 2),
        network=(0.3, 0.9),
        veil=(0.0, 0.0),
        dots=(0, 2),
        crust=(0.0, 0.1),
    ),
    "melanoma": _Look(
        density=(0.7, 1.5),
        irregularity=(0.05, 0.2),
        asymmetry=(0.2, 0.7),
        edge=(0.08, 0.25),
        patches=(3, 8),
        network=(0.1, 0.6),
        veil=(0.1, 0.8),
        dots=(0, 3),
        crust=(0.0, 0.1),
    ),
    "keratosis": _Look(
        density=(0.4, 1.0),
        irregularity=(0.02, 0.09),
        asymmetry=(0.0, 0.3),
        edge=(0.03, 0.12),
        patches=(0, 3),
        network=(0.0, 0.2),
        veil=(0.0, 0.0),
        dots=(4, 15),
        crust=(0.2, 0.65),
    ),
}


@dataclass(frozen=True)
class Dermatoscope:
    """How the pictures of one site look; lengths are shares of the image's side.

    Attributes:
        radius: Range of the lesion's radius: the zoom.
        cast: Gain of red, green and blue.
        saturation: 1 leaves colours as they are, 0 makes them grey.
        field: Radius of the round field of view, beyond which the picture is black.
        vignette, slope: Strength of the light's fall towards the border and of its gradient.
        ruler: Chance of a scale along one edge.
        hairs: Mean number of hairs.
        gloss: Mean number of bubbles and reflections.
        blur: Standard deviation of the blur.
        gamma: Exponent of the tone curve.
        noise: Standard deviation of the sensor's noise.
    """

    radius: _Range
    cast: _Colour
    saturation: float
    field: float
    vignette: float
    slope: float
    ruler: float
    hairs: float
    gloss: float
    blur: float
    gamma: float
    noise: float


@dataclass(frozen=True)
class Skin:
    """What all lesions of a patient have in common.

    Attributes:
        tone: Colour (3,) of the skin.
        hair: How fair the hair is, 0 to 1.
    """

    tone: np.ndarray
    hair: float

    @classmethod
    def grown(cls, rng: np.random.Generator) -> Skin:
        """The skin of a random patient."""
        pigment = rng.uniform(0, 0.25)
        tone = np.array([0.9, 0.7, 0.6]) * np.exp(-0.5 * pigment * _BROWN) * rng.normal(1, 0.01, size=3)
        return cls(tone.astype(np.float32), float(rng.uniform(0, 0.5)))


def paint(kind: str, skin: Skin, scope: Dermatoscope, *, size: int, rng: np.random.Generator) -> np.ndarray:
    """Takes one picture.

    Args:
        kind: One of `LESION_CLASSES`.
        skin: What surrounds the lesion.
        scope: How it is seen.
        size: Side in pixels.
        rng: Decides lesion, pose, light and noise.

    Returns:
        uint8 (size, size, 3).
    """
    fine = 2 * size
    radius = rng.uniform(*scope.radius)
    centre = rng.uniform(0.44, 0.56, size=2)
    scene = skin.tone[:, None, None] * (1 + 0.03 * _clouds(fine, 6, rng) + 0.02 * _clouds(fine, 45, rng))
    _add_lesion(scene, _LOOKS[kind], centre, radius, rng)
    _add_hairs(scene, scope, skin, rng)
    _add_ruler(scene, scope, rng)
    gloss = rng.uniform([0, 0, 0.008], [1, 1, 0.025], size=(rng.poisson(scope.gloss), 3))
    _blend(scene, (0.97, 0.97, 1.0), _specks(gloss, fine, rng))
    return _photograph(scene, scope, rng)


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x (1, size) and y (size, 1) of the pixel centres as shares of the side."""
    steps = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    return steps[None, :], steps[:, None]


def _clouds(size: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size) smooth noise with mean 0 and standard deviation near 1."""
    coarse = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)


def _level(x: np.ndarray, y: np.ndarray, waves: float, rng: np.random.Generator) -> np.ndarray:
    """Distance from the middle, 1 on an ellipse that `waves` bend, finer ones less."""
    turn, stretch = rng.uniform(0, np.pi), math.exp(rng.uniform(0, 0.2))
    right = (x * math.cos(turn) + y * math.sin(turn)) * stretch
    down = (y * math.cos(turn) - x * math.sin(turn)) / stretch
    angles = np.linspace(-np.pi, np.pi, 257)
    outline = np.ones_like(angles)
    for number in range(2, 9):
        outline += waves * rng.normal() * (2 / number) * np.cos(number * angles + rng.uniform(0, 2 * np.pi))
    reach = np.interp(np.arctan2(down, right), angles, outline.clip(0.4)).astype(np.float32)
    return np.asarray(np.hypot(right, down) / reach)


def _soft(level: np.ndarray, width: float) -> np.ndarray:
    """1 inside, 0 outside of the outline where `level` is 1, with a smooth edge of the given half width."""
    edge = np.clip((1 + width - level) / (2 * width), 0, 1)
    return np.asarray(edge * edge * (3 - 2 * edge))


def _blend(scene: np.ndarray, colour: _Colour, share: np.ndarray) -> None:
    for plane, value in zip(scene, colour, strict=True):
        plane += share * (value - plane)


def _add_lesion(
    scene: np.ndarray, look: _Look, centre: np.ndarray, radius: float, rng: np.random.Generator
) -> None:
    """Pigment in the shape and with the texture of one class; centre and radius in shares of the side."""
    size = scene.shape[1]
    x, y = ((axis - place) / radius for axis, place in zip(_grid(size), centre.tolist(), strict=True))
    share = _soft(_level(x, y, rng.uniform(*look.irregularity), rng), rng.uniform(*look.edge))
    off, towards = rng.uniform(*look.asymmetry), rng.uniform(0, 2 * np.pi)
    middle = np.exp(-((x - off * math.cos(towards)) ** 2 + (y - off * math.sin(towards)) ** 2) / 0.9)
    net = np.exp(-((_clouds(size, round(5 / radius), rng) / 0.35) ** 2)) - 0.4
    brown = 0.45 + 0.75 * middle + rng.uniform(*look.network) * net + 0.1 * _clouds(size, 9, rng)
    bluish = np.zeros_like(brown)
    for number in range(rng.integers(*look.patches, endpoint=True)):
        reach, angle = 0.75 * math.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
        near = (x - reach * math.cos(angle)) ** 2 + (y - reach * math.sin(angle)) ** 2
        patch = rng.uniform(-0.35, 0.9) * np.exp(-near / rng.uniform(0.03, 0.15))
        if look.veil != (0, 0) and number % 2:
            bluish += np.abs(patch)
        else:
            brown += patch
    density = rng.uniform(*look.density)
    for plane, a, b in zip(scene, _BROWN.tolist(), _BLUISH.tolist(), strict=True):
        plane *= np.exp(-density * share * (a * np.clip(brown, 0.05, None) + b * bluish))
    _blend(scene, (0.62, 0.52, 0.38), rng.uniform(*look.crust) * share)
    haze = np.clip(_clouds(size, 4, rng), 0, 1) * share
    _blend(scene, (0.55, 0.6, 0.72), rng.uniform(*look.veil) * haze)
    for colour in ((0.9, 0.82, 0.68), (0.2, 0.12, 0.08)):
        count = rng.integers(*look.dots, endpoint=True)
        spots = rng.uniform([-0.7, -0.7, 0.06], [0.7, 0.7, 0.12], size=(count, 3)) * radius + [*centre, 0]
        _blend(scene, colour, share * _specks(spots, size, rng))


def _specks(spots: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size) share of soft round specks; spots (n, 3) are x, y and radius in shares of the side."""
    canvas = Image.new("L", (size, size))
    pen = ImageDraw.Draw(canvas)
    for x, y, radius in (spots * size).tolist():
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=int(rng.uniform(90, 230)))
    return _ink(canvas, 0.005 * size)


def _ink(canvas: Image.Image, blur: float) -> np.ndarray:
    return np.asarray(ndimage.gaussian_filter(np.asarray(canvas, dtype=np.float32) / 255, blur))


def _add_hairs(scene: np.ndarray, scope: Dermatoscope, skin: Skin, rng: np.random.Generator) -> None:
    """Bent hairs that mostly lie in one direction."""
    size = scene.shape[1]
    canvas = Image.new("L", (size, size))
    pen = ImageDraw.Draw(canvas)
    direction, steps = rng.uniform(0, np.pi), np.linspace(-0.5, 0.5, 12)
    for _ in range(rng.poisson(scope.hairs)):
        middle, angle = rng.random(2), direction + rng.normal(scale=0.5)
        length, bend = rng.uniform(0.3, 1.1), rng.normal(scale=0.25)
        along, across = length * steps, bend * length * (steps**2 - 0.08)
        columns = (middle[0] + along * math.cos(angle) - across * math.sin(angle)) * size
        rows = (middle[1] + along * math.sin(angle) + across * math.cos(angle)) * size
        width = max(1, round(rng.uniform(0.004, 0.01) * size))
        points = list(zip(columns.tolist(), rows.tolist(), strict=True))
        pen.line(points, fill=int(rng.uniform(130, 250)), width=width)
    colour = (0.12 + 0.5 * skin.hair, 0.08 + 0.38 * skin.hair, 0.06 + 0.2 * skin.hair)
    _blend(scene, colour, _ink(canvas, 0.6))


def _add_ruler(scene: np.ndarray, scope: Dermatoscope, rng: np.random.Generator) -> None:
    """A scale along one edge, every fifth mark longer."""
    if rng.random() >= scope.ruler:
        return
    size = scene.shape[1]
    canvas = Image.new("L", (size, size))
    pen = ImageDraw.Draw(canvas)
    step, start, base = rng.uniform([0.045, 0.0, 0.02], [0.07, 0.05, 0.07]).tolist()
    for number, place in enumerate(np.arange(start, 1, step).tolist()):
        tip = base + (0.09 if number % 5 == 0 else 0.05)
        pen.line((place * size, base * size, place * size, tip * size), fill=220, width=max(1, size // 128))
    _blend(scene, (0.1, 0.1, 0.14), np.rot90(_ink(canvas, 0.6), int(rng.integers(4))))


def _photograph(scene: np.ndarray, scope: Dermatoscope, rng: np.random.Generator) -> np.ndarray:
    """Light, cast, field of view, blur, tone and noise; half the resolution, 8 bit."""
    size = scene.shape[1]
    x, y = _grid(size)
    angle = rng.uniform(0, 2 * np.pi)
    slope = scope.slope * (math.cos(angle) * (x - 0.5) + math.sin(angle) * (y - 0.5))
    reach = np.hypot(x - 0.5 - rng.uniform(-0.02, 0.02), y - 0.5 - rng.uniform(-0.02, 0.02))
    light = rng.uniform(0.92, 1.06) * np.clip(1 + slope - scope.vignette * reach**2, 0.05, None)
    light *= np.clip((scope.field - reach) * 40, 0, 1)
    grey = scene.mean(axis=0)
    gains = np.array(scope.cast) * rng.normal(1, 0.015, size=3)
    sigma = scope.blur * size * rng.uniform(0.7, 1.3)
    planes = []
    for plane, gain in zip(scene, gains.tolist(), strict=True):
        seen = ndimage.gaussian_filter(gain * light * (grey + scope.saturation * (plane - grey)), sigma)
        planes.append(seen.reshape(size // 2, 2, size // 2, 2).mean(axis=(1, 3)))
    half = np.stack(planes, axis=2).clip(0, 1) ** scope.gamma
    noisy = half + scope.noise * (0.3 + np.sqrt(half)) * rng.normal(size=half.shape)
    return np.asarray(np.rint(noisy.clip(0, 1) * 255).astype(np.uint8))
