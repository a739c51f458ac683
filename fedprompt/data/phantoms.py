"""The embedded data sets: four sites of synthetic pictures for either task, made from a seed, not downloaded.

Segmentation: fundus photographs; classes 0 background, 1 rim of the optic disc, 2 cup. The sites differ in
camera and in annotation kind; the masks on disk are full ones, from which a simulation draws each site's
kind.

Classification: close-ups of skin lesions, one of three classes each. The sites differ in dermatoscope and in
how frequent the classes are; one meets keratoses in its test cases alone. A linear head on the pooled
deepest feature of the embedded U-Net reaches an AUROC near 0.78 trained over all sites, and 0.62 at a site
other than the one that it was trained at.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fedprompt.config import Annotation
from fedprompt.data import fundus, lesions
from fedprompt.data.fundus import Camera, Eye
from fedprompt.data.lesions import LESION_CLASSES, Dermatoscope, Skin

__all__ = ["CLASSES", "LESION_CLASSES", "write_phantoms"]

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


@dataclass(frozen=True)
class _Practice:
    """A site with skin lesions; `cases` counts the cases per split and class."""

    id: str
    cases: dict[str, tuple[int, int, int]]
    scope: Dermatoscope


_PRACTICES = (
    _Practice(  # a good dermatoscope, mostly check-ups
        "ashford",
        {"train": (15, 5, 4), "val": (4, 2, 2), "test": (12, 7, 5)},
        Dermatoscope(
            radius=(0.25, 0.31),
            cast=(1.0, 0.98, 0.95),
            saturation=1.0,
            field=0.9,
            vignette=0.3,
            slope=0.15,
            ruler=0.1,
            hairs=1.0,
            gloss=0.5,
            blur=0.002,
            gamma=1.0,
            noise=0.012,
        ),
    ),
    _Practice(  # referrals under a bluish lamp, seen through a round, darkening lens
        "brookside",
        {"train": (5, 14, 5), "val": (2, 4, 2), "test": (6, 12, 6)},
        Dermatoscope(
            radius=(0.23, 0.29),
            cast=(0.86, 0.95, 1.08),
            saturation=0.85,
            field=0.56,
            vignette=0.9,
            slope=0.2,
            ruler=0.0,
            hairs=1.5,
            gloss=2.0,
            blur=0.005,
            gamma=1.1,
            noise=0.015,
        ),
    ),
    _Practice(  # old patients; a pale photograph with a scale and hair
        "cedarhill",
        {"train": (5, 4, 15), "val": (2, 2, 4), "test": (6, 6, 12)},
        Dermatoscope(
            radius=(0.2, 0.25),
            cast=(1.08, 1.02, 0.92),
            saturation=0.85,
            field=0.9,
            vignette=0.1,
            slope=0.2,
            ruler=0.9,
            hairs=3.0,
            gloss=0.5,
            blur=0.003,
            gamma=0.85,
            noise=0.015,
        ),
    ),
    _Practice(  # a warm close-up; the past, younger patients had no keratosis
        "dunmore",
        {"train": (14, 10, 0), "val": (5, 3, 0), "test": (10, 9, 5)},
        Dermatoscope(
            radius=(0.31, 0.37),
            cast=(1.0, 0.84, 0.78),
            saturation=1.0,
            field=0.7,
            vignette=0.6,
            slope=0.2,
            ruler=0.3,
            hairs=2.0,
            gloss=1.0,
            blur=0.004,
            gamma=1.2,
            noise=0.02,
        ),
    ),
)


def write_phantoms(
    folder: Path,
    seed: int,
    *,
    size: int = 128,
    limit: int | None = None,
    task: str = "segmentation",
    sites: Collection[str] | None = None,
) -> None:
    """Writes a federation folder of four sites; the same arguments give the same bytes.

    Args:
        folder: Made where it is missing; files of an earlier call are written over.
        seed: Decides everything that is random.
        size: Side of the images in pixels.
        limit: At most so many cases per site and split, for quick trials.
        task: `segmentation` or `classification`.
        sites: Only these, each with the bytes that it has among all.
    """
    if task == "classification":
        for number, practice in enumerate(_PRACTICES):
            if sites is None or practice.id in sites:
                _write_lesions(folder / practice.id, practice, [seed, number], size, limit)
    else:
        for number, hospital in enumerate(_HOSPITALS):
            if sites is None or hospital.id in sites:
                _write_eyes(folder / hospital.id, hospital, [seed, number], size, limit)


def _write_eyes(folder: Path, hospital: _Hospital, seed: list[int], size: int, limit: int | None) -> None:
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
                picture, mask = fundus.paint(eye, hospital.camera, mirrored=is_left, size=size, rng=rng)
                name = f"{hospital.id}-{patient:03d}-{'left' if is_left else 'right'}.png"
                Image.fromarray(picture).save(folder / "images" / name)
                Image.fromarray(mask).save(folder / "masks" / name)
                rows.append(f"images/{name},masks/{name},{split},{hospital.id}-{patient:03d}")
                written += 1
    _write_tables(folder, [f'id = "{hospital.id}"', f'annotation = "{hospital.annotation.value}"'], rows)


def _write_lesions(folder: Path, practice: _Practice, seed: list[int], size: int, limit: int | None) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = ["image,label,split,patient"]
    patient = 0
    for split, counts in practice.cases.items():
        kinds = _interleaved(counts)[:limit]
        while kinds:
            patient += 1
            rng = np.random.default_rng([*seed, patient])
            skin = Skin.grown(rng)
            for letter in "ab" if rng.random() < 0.2 else "a":
                if kinds:
                    kind = kinds.pop(0)
                    picture = lesions.paint(kind, skin, practice.scope, size=size, rng=rng)
                    name = f"{practice.id}-{patient:03d}-{letter}.png"
                    Image.fromarray(picture).save(folder / "images" / name)
                    rows.append(f"images/{name},{kind},{split},{practice.id}-{patient:03d}")
    _write_tables(folder, [f'id = "{practice.id}"'], rows)


def _interleaved(counts: tuple[int, ...]) -> list[str]:
    """Every class as often as counted, spread evenly, so that also the first few are mixed like all."""
    places = [
        ((n + 0.5) / count, kind)
        for count, kind in zip(counts, LESION_CLASSES, strict=True)
        for n in range(count)
    ]
    return [kind for _, kind in sorted(places)]


def _write_tables(folder: Path, site: list[str], rows: list[str]) -> None:
    (folder / "site.toml").write_text("\n".join(site) + "\n", encoding="utf-8")
    (folder / "cases.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
