"""Synthetic photographs of the eye's background: optic disc, cup, vessels and lesions, seen by some camera.

Lengths are shares of the image's side; the origin is the upper left corner, x runs right and y down. Nothing
here is a model of disease: the pictures only have to look enough like fundus photographs to be hard.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from fedprompt.data.vessels import Vessel, draw_vessels, grow_vessels

__all__ = ["Camera", "Eye", "paint"]

_Colour = tuple[float, float, float]
_Range = tuple[float, float]
_Point = tuple[float, float]


@dataclass(frozen=True)
class Camera:
    """How the pictures of one site look.

    Attributes:
        retina, disc, cup: Colours (red, green, blue) before light and cast.
        disc_radius: Range of the disc's radius: the zoom.
        off_centre: How far the disc lies from the middle of the picture, to the left or right.
        field: Radius of the round field of view; beyond it the picture is black.
        crop: Height share that a flat upper and lower edge cuts off the field.
        vessels: Darkness of the vessels, 0 to 1.
        lesions: Mean number of groups of bright lesions.
        atrophy: Chance and strength of a pale crescent beside the disc.
        slope, vignette: Strength of the light's gradient and of its fall towards the border.
        blur: Standard deviation of the blur.
        haze: Share of grey light over everything.
        gamma: Exponent of the tone curve.
        noise: Standard deviation of the sensor's noise.
    """

    retina: _Colour
    disc: _Colour
    cup: _Colour
    disc_radius: _Range
    off_centre: _Range
    field: float
    crop: float
    vessels: float
    lesions: float
    atrophy: float
    slope: float
    vignette: float
    blur: float
    haze: float
    gamma: float
    noise: float


@dataclass(frozen=True)
class Eye:
    """The anatomy of one eye in units of its disc radius; both eyes of a patient are mirror images.

    Attributes:
        disc: Three cosine and sine terms of the disc's outline.
        cup: The same of the cup's.
        ratio: Radius of the cup relative to the disc.
        shift: Centre of the cup relative to the disc's, towards the temple (x) and down (y).
        vessels: Around the disc's centre.
    """

    disc: np.ndarray
    cup: np.ndarray
    ratio: float
    shift: tuple[float, float]
    vessels: list[Vessel]

    @classmethod
    def grown(cls, rng: np.random.Generator) -> Eye:
        """A random eye whose temple lies towards positive x."""
        ratio = float(rng.uniform(0.42, 0.72))
        spare = (0.9 - ratio) / 2
        return cls(
            disc=rng.normal(size=(3, 2)) * [[0.025], [0.015], [0.008]],
            cup=rng.normal(size=(3, 2)) * [[0.04], [0.025], [0.015]],
            ratio=ratio,
            shift=(float(rng.uniform(-0.2, 1) * spare), float(rng.uniform(-0.5, 0.5) * spare)),
            vessels=grow_vessels(rng),
        )


def paint(
    eye: Eye, camera: Camera, *, mirrored: bool, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Takes one picture.

    Args:
        eye: What is seen.
        camera: How it is seen.
        mirrored: A left eye: the temple lies to the left.
        size: Side in pixels.
        rng: Decides pose, texture, lesions, light and noise.

    Returns:
        uint8 (size, size, 3) and the mask uint8 (size, size): 1 rim of the disc, 2 cup.
    """
    side = -1.0 if mirrored else 1.0
    radius = rng.uniform(*camera.disc_radius)
    centre = (0.5 - side * rng.uniform(*camera.off_centre), 0.5 + rng.uniform(-0.06, 0.06))
    tilt = rng.uniform(-0.15, 0.15)

    fine = 2 * size
    disc, cup = _levels(eye, centre, radius, side, tilt, fine)
    scene = _retina(camera, centre, radius, side, fine, rng)
    _blend(scene, camera.disc, camera.atrophy * _crescent(disc, centre, side, fine, rng))
    _add_lesions(scene, camera, disc, rng)
    _blend(scene, camera.disc, _soft(disc, 0.05))
    _blend(scene, camera.cup, _soft(cup, 0.16))
    for vein, tint in ((False, (0.25, 0.62, 0.6)), (True, (0.5, 0.85, 0.75))):
        blood = draw_vessels(eye.vessels, centre, radius, side, tilt, fine, vein=vein)
        for plane, depth in zip(scene, tint, strict=True):
            plane *= 1 - camera.vessels * depth * blood
    scene *= _light(camera, fine, rng)
    picture = _photograph(scene, camera, fine, rng)

    disc, cup = _levels(eye, centre, radius, side, tilt, size)
    mask = np.where(disc < 1, np.where(cup < 1, 2, 1), 0).astype(np.uint8)
    return picture, mask


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x (1, size) and y (size, 1) of the pixel centres."""
    steps = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    return steps[None, :], steps[:, None]


def _levels(
    eye: Eye, centre: _Point, radius: float, side: float, tilt: float, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Distances (size, size) from the centres of disc and cup, 1 on their outlines; the cup stays inside."""
    x, y = _grid(size)
    cosine, sine = math.cos(tilt), math.sin(tilt)
    right, down = side * (x - centre[0]) / radius, (y - centre[1]) / radius
    right, down = right * cosine + down * sine, down * cosine - right * sine
    disc = _outline(right, down / 1.08, eye.disc)
    cup = _outline(right - eye.shift[0], (down - eye.shift[1]) / 1.08, eye.cup) / eye.ratio
    return disc, np.maximum(cup, disc / 0.93)


def _outline(x: np.ndarray, y: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """Distance from the centre, 1 on a circle that waves of two, three, ... periods bend."""
    reach = np.hypot(x, y)
    turn = (x + 1j * y) / np.maximum(reach, 1e-9)
    wave, power = np.zeros_like(reach), turn
    for cosine, sine in terms.tolist():
        power = power * turn
        wave += cosine * power.real + sine * power.imag
    level: np.ndarray = reach / (1 + wave)
    return level


def _soft(level: np.ndarray, width: float) -> np.ndarray:
    """1 inside an outline, 0 outside, with a smooth edge of the given half width."""
    edge = np.clip((1 + width - level) / (2 * width), 0, 1)
    inside: np.ndarray = edge * edge * (3 - 2 * edge)
    return inside


def _blend(scene: np.ndarray, colour: _Colour, share: np.ndarray) -> None:
    for plane, value in zip(scene, colour, strict=True):
        plane += share * (value - plane)


def _clouds(size: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size) smooth noise with mean 0 and standard deviation near 1."""
    coarse = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)


def _retina(
    camera: Camera, centre: _Point, radius: float, side: float, size: int, rng: np.random.Generator
) -> np.ndarray:
    x, y = _grid(size)
    texture = 0.06 * _clouds(size, 5, rng) + 0.04 * _clouds(size, 14, rng) + 0.025 * _clouds(size, 50, rng)
    macula = np.hypot(x - centre[0] - side * 5 * radius, y - centre[1] - 0.6 * radius) / (1.6 * radius)
    shade = (1 + texture) * (1 - 0.35 * np.exp(-(macula**2)))
    tone = np.array(camera.retina) * (1 + rng.normal(scale=0.05, size=3))
    scene: np.ndarray = shade * tone.astype(np.float32)[:, None, None]
    return scene


def _crescent(
    disc: np.ndarray, centre: _Point, side: float, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Where the tissue beside the disc is pale: on the temporal side, as broad as chance has it."""
    x, y = _grid(size)
    angle = np.arctan2(y - centre[1], side * (x - centre[0])) - rng.uniform(-0.6, 0.6)
    reach = 1 + rng.uniform(0, 0.45) * np.clip(np.cos(angle), 0, 1)
    crescent: np.ndarray = rng.uniform(0.2, 0.8) * _soft(disc / reach, 0.06)
    return crescent


def _add_lesions(scene: np.ndarray, camera: Camera, disc: np.ndarray, rng: np.random.Generator) -> None:
    """Groups of bright exudates, soft pale spots and dark bleedings, all outside of the disc."""
    size = scene.shape[1]
    for colour, groups, spots, spread, extent, blur in (
        ((0.98, 0.9, 0.5), camera.lesions, (4, 16), 0.06, (0.003, 0.013), 0.003),
        ((0.95, 0.85, 0.62), 0.6 * camera.lesions, (1, 3), 0.05, (0.02, 0.05), 0.012),
        ((0.35, 0.05, 0.03), 0.8 * camera.lesions, (1, 6), 0.07, (0.006, 0.022), 0.004),
    ):
        canvas = Image.new("L", (size, size))
        pen = ImageDraw.Draw(canvas)
        for _ in range(rng.poisson(groups)):
            middle = rng.uniform(0.08, 0.92, size=2)
            for _ in range(rng.integers(*spots, endpoint=True)):
                x, y = (middle + rng.normal(scale=spread, size=2)) * size
                half = rng.uniform(*extent, size=2) * size
                pen.ellipse(
                    (x - half[0], y - half[1], x + half[0], y + half[1]), fill=int(rng.uniform(120, 240))
                )
        share = ndimage.gaussian_filter(np.asarray(canvas, dtype=np.float32) / 255, blur * size)
        _blend(scene, colour, share * np.clip((disc - 1.25) / 0.2, 0, 1))


def _light(camera: Camera, size: int, rng: np.random.Generator) -> np.ndarray:
    x, y = _grid(size)
    angle = rng.uniform(0, 2 * np.pi)
    slope = camera.slope * rng.uniform(0.6, 1.4) * (math.cos(angle) * (x - 0.5) + math.sin(angle) * (y - 0.5))
    away = (x - rng.uniform(0.4, 0.6)) ** 2 + (y - rng.uniform(0.4, 0.6)) ** 2
    light: np.ndarray = rng.uniform(0.88, 1.1) * np.clip(1 + slope - camera.vignette * away, 0.05, None)
    return light


def _photograph(scene: np.ndarray, camera: Camera, size: int, rng: np.random.Generator) -> np.ndarray:
    """Field of view, blur, haze, tone and noise; half the resolution, 8 bit."""
    x, y = _grid(size)
    shift = rng.uniform(-0.015, 0.015, size=2).tolist()
    reach = np.hypot(x - 0.5 - shift[0], y - 0.5 - shift[1])
    field = np.clip((camera.field - reach) * 60, 0, 1) * (np.abs(y - 0.5) < 0.5 - camera.crop)
    sigma = camera.blur * size * rng.uniform(0.7, 1.3)
    planes = []
    for plane, grey in zip(scene, (0.75, 0.68, 0.62), strict=True):
        seen = ndimage.gaussian_filter((plane + camera.haze * (grey - plane)) * field, sigma)
        planes.append(seen.reshape(size // 2, 2, size // 2, 2).mean(axis=(1, 3)))
    half = np.stack(planes, axis=2).clip(0, 1) ** camera.gamma
    grain = rng.normal(size=half.shape) + 0.5 * rng.normal(size=(*half.shape[:2], 1))
    noisy = half + camera.noise * (0.3 + np.sqrt(half)) * grain
    picture: np.ndarray = np.rint(noisy.clip(0, 1) * 255).astype(np.uint8)
    return picture
