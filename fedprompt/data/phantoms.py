"""The embedded data set: four sites of synthetic fundus photographs, made from a seed, nothing downloaded.

Classes: 0 background, 1 rim of the optic disc, 2 cup. The sites differ in camera and in annotation kind; the
masks on disk are full ones, from which a simulation draws each site's kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fedprompt.config import Annotation
from fedprompt.data.fundus import Camera, Eye, paint

__all__ = ["CLASSES", "write_phantoms"]

CLASSES = ("background", "rim", "cup")

_EVALUATION = {"val": 8, "test": 16}


@dataclass(frozen=True)
class _Hospital:
    id: str
    annotation: Annotation
    train: int
    camera: Camera


_HOSPITALS = (
    _Hospital(  # a good camera that shows the whole round field
        "ashford",
        Annotation.SCRIBBLE,
        6,
        Camera(
            retina=(0.78, 0.36, 0.16),
            disc=(0.95, 0.68, 0.38),
            cup=(0.99, 0.86, 0.62),
            disc_radius=(0.115, 0.145),
            off_centre=(0.14, 0.24),
            field=0.485,
            crop=0.0,
            vessels=0.75,
            lesions=1.0,
            atrophy=0.3,
            slope=0.25,
            vignette=0.5,
            blur=0.002,
            haze=0.0,
            gamma=1.0,
            noise=0.012,
        ),
    ),
    _Hospital(  # an old sensor: dim, greenish brown, noisy
        "brookside",
        Annotation.POINT,
        8,
        Camera(
            retina=(0.42, 0.36, 0.17),
            disc=(0.6, 0.56, 0.3),
            cup=(0.68, 0.66, 0.42),
            disc_radius=(0.13, 0.17),
            off_centre=(0.05, 0.2),
            field=0.58,
            crop=0.0,
            vessels=0.6,
            lesions=1.5,
            atrophy=0.6,
            slope=0.7,
            vignette=1.2,
            blur=0.003,
            haze=0.0,
            gamma=1.1,
            noise=0.06,
        ),
    ),
    _Hospital(  # a close view through a clouded lens
        "cedarhill",
        Annotation.BLOCK,
        5,
        Camera(
            retina=(0.86, 0.55, 0.46),
            disc=(0.94, 0.74, 0.6),
            cup=(0.97, 0.82, 0.7),
            disc_radius=(0.13, 0.165),
            off_centre=(0.02, 0.18),
            field=0.62,
            crop=0.0,
            vessels=0.55,
            lesions=0.8,
            atrophy=0.7,
            slope=0.4,
            vignette=0.3,
            blur=0.007,
            haze=0.2,
            gamma=0.9,
            noise=0.02,
        ),
    ),
    _Hospital(  # a dark, hard picture with flat edges and many lesions
        "dunmore",
        Annotation.BOX,
        6,
        Camera(
            retina=(0.6, 0.17, 0.1),
            disc=(0.9, 0.5, 0.2),
            cup=(0.98, 0.66, 0.33),
            disc_radius=(0.105, 0.135),
            off_centre=(0.1, 0.22),
            field=0.53,
            crop=0.09,
            vessels=0.95,
            lesions=3.0,
            atrophy=0.4,
            slope=0.5,
            vignette=0.9,
            blur=0.002,
            haze=0.0,
            gamma=1.35,
            noise=0.025,
        ),
    ),
)


def write_phantoms(folder: Path, seed: int, *, size: int = 128, limit: int | None = None) -> None:
    """Writes a federation folder of four sites; the same arguments give the same bytes.

    Args:
        folder: Made where it is missing; files of an earlier call are written over.
        seed: Decides everything that is random.
        size: Side of the images in pixels.
        limit: At most so many cases per site and split, for quick trials.
    """
    for number, hospital in enumerate(_HOSPITALS):
        _write_site(folder / hospital.id, hospital, [seed, number], size, limit)


def _write_site(folder: Path, hospital: _Hospital, seed: list[int], size: int, limit: int | None) -> None:
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows = ["image,mask,split,patient"]
    patient = 0
    for split, count in {"train": hospital.train, **_EVALUATION}.items():
        written = 0
        wanted = count if limit is None else min(count, limit)
        while written < wanted:
            patient += 1
            rng = np.random.default_rng([*seed, patient])
            eye = Eye.grown(rng)
            mirrored = bool(rng.random() < 0.5)
            both = rng.random() < 0.2
            for is_left in [mirrored, not mirrored][: min(2 if both else 1, wanted - written)]:
                picture, mask = paint(eye, hospital.camera, mirrored=is_left, size=size, rng=rng)
                name = f"{hospital.id}-{patient:03d}-{'left' if is_left else 'right'}.png"
                Image.fromarray(picture).save(folder / "images" / name)
                Image.fromarray(mask).save(folder / "masks" / name)
                rows.append(f"images/{name},masks/{name},{split},{hospital.id}-{patient:03d}")
                written += 1
    site = f'id = "{hospital.id}"\nannotation = "{hospital.annotation.value}"\n'
    (folder / "site.toml").write_text(site, encoding="utf-8")
    (folder / "cases.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
