"""A camera that changed: the same pictures under another lamp and through another sensor, from a seed."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fedprompt.data.cases import TABLE, read_cases
from fedprompt.data.images import read_picture

__all__ = ["CameraShift", "shifted", "write_shifted_site"]

_SENSOR_GREY = 0.5  # what a sensor without any contrast would show
_JITTER = 0.15  # relative deviation from picture to picture
_TURN = 0.35  # of the light's direction from picture to picture, in radians


@dataclass(frozen=True)
class CameraShift:
    """What happens to every picture of a camera; all zeros leave it as it is.

    Attributes:
        warmth: Share by which red gains and blue loses.
        haze: Share of contrast that is lost: values move by it towards a middle grey.
        unevenness: How much brighter the lit edge is than the middle, and the other edge darker, as a share.
        direction: From where the light comes, in radians; 0 is the right edge, a quarter turn the lower one.
    """

    warmth: float = 0.0
    haze: float = 0.0
    unevenness: float = 0.0
    direction: float = 0.0

    def __post_init__(self) -> None:
        for name in ("warmth", "haze", "unevenness"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 0 to less than 1, got {getattr(self, name)}")


def shifted(image: np.ndarray, shift: CameraShift, rng: np.random.Generator) -> np.ndarray:
    """One picture as the changed camera would have taken it: first the light, then the sensor.

    Args:
        image: (H, W, 3) in 0 to 1.
        shift: What changed.
        rng: Decides by how much this picture differs from the others of the camera.

    Returns:
        float32 (H, W, 3) in 0 to 1.
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image: expected (H, W, 3), got {image.shape}")
    warmth, haze, unevenness = (
        value * (1 + _JITTER * rng.uniform(-1, 1)) for value in (shift.warmth, shift.haze, shift.unevenness)
    )
    angle = shift.direction + _TURN * rng.uniform(-1, 1)
    down, right = (2 * (np.arange(side) + 0.5) / side - 1 for side in image.shape[:2])
    light = 1 + unevenness * (math.cos(angle) * right[None, :] + math.sin(angle) * down[:, None])
    tint = np.array([1 + warmth, 1, 1 - warmth])
    lit = image * light[..., None] * tint
    seen = lit + haze * (_SENSOR_GREY - lit)
    result: np.ndarray = seen.clip(0, 1).astype(np.float32)
    return result


def write_shifted_site(source: Path, folder: Path, shift: CameraShift, seed: int) -> None:
    """Writes a site's folder again as if its camera had changed; masks and tables stay what they are.

    Args:
        source: Folder of a site with 8-bit images.
        folder: Made where it is missing. The same arguments give the same bytes.
        shift: What changed.
        seed: Decides what differs from picture to picture.
    """
    for number, case in enumerate(sorted(read_cases(source), key=lambda case: case.id)):
        picture = shifted(read_picture(case.image).array, shift, np.random.default_rng([seed, number]))
        target = folder / case.id
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(picture * 255).astype(np.uint8)).save(target)
        if case.mask is not None:
            copied = folder / case.mask.relative_to(source.resolve())
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(case.mask, copied)
    for name in (TABLE, "site.toml"):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
