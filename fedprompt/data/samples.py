"""Cases as arrays: the split of a site's cases, and what training and evaluation see of one case."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from fedprompt.config import Site, Study
from fedprompt.data.annotations import draw_annotation
from fedprompt.data.cases import TABLE, Case
from fedprompt.data.images import UNLABELLED, Picture, read_mask, read_picture
from fedprompt.errors import DataError

__all__ = ["Sample", "SiteCases", "load_sample", "split_cases"]


@dataclass(frozen=True, eq=False)
class Sample:
    """One case as arrays; S is the side that the study gives its images.

    Attributes:
        case: Where it comes from.
        image: float32 (3, S, S) in 0 to 1.
        annotation: uint8 (S, S), what training sees; 255 is unlabelled. None in classification.
        truth: uint8 (H, W) in the resolution of the file, what evaluation sees. None in classification.
        spacing: Row and column spacing of the file in mm; (1.0, 1.0) where nobody knows it, so in pixels.
        sha256: Hash of the image file's bytes.
        label: Class number in classification, None in segmentation.
    """

    case: Case
    image: np.ndarray
    annotation: np.ndarray | None
    truth: np.ndarray | None
    spacing: tuple[float, float]
    sha256: str
    label: int | None = None


@dataclass(frozen=True)
class SiteCases:
    """The cases of one site by use."""

    train: list[Case]
    val: list[Case]
    test: list[Case]


def split_cases(cases: list[Case], validation: float, seed: int) -> SiteCases:
    """Splits by the table; where it has no val split, takes validation cases from train by patient.

    Args:
        cases: All cases of the site.
        validation: Share of the train patients to take (at least one, and one stays in train); 0 takes none.
        seed: Decides which ones; the order of `cases` does not.

    Returns:
        The cases in their given order; those taken for validation have the split `val`.
    """
    train = [case for case in cases if case.split == "train"]
    val = [case for case in cases if case.split == "val"]
    test = [case for case in cases if case.split == "test"]
    patients = sorted({case.patient for case in train})
    if not val and validation > 0 and len(patients) > 1:
        count = min(max(round(validation * len(patients)), 1), len(patients) - 1)
        drawn = np.random.default_rng([seed, len(patients)]).permutation(len(patients))[:count]
        taken = {patients[index] for index in drawn}
        val = [replace(case, split="val") for case in train if case.patient in taken]
        train = [case for case in train if case.patient not in taken]
    return SiteCases(train, val, test)


def load_sample(case: Case, site: Site, study: Study, *, simulate: bool) -> Sample:
    """Reads, checks and resizes one case.

    Args:
        case: The case.
        site: Gives the annotation kind, and the spacing of images that carry none.
        study: Gives task, image size, classes and seed.
        simulate: A train mask without unlabelled pixels is a full one: draw the site's annotation kind from
            it, in the resolution of the file, always the same for the study's seed and the case's id.

    Raises:
        DataError: Image or mask cannot be read, they differ in size, or the label is no class of the study.
    """
    picture = read_picture(case.image)
    side = study.image.size
    image = np.stack([_resized(channel, side, smooth=True) for channel in np.moveaxis(picture.array, 2, 0)])
    spacing = picture.spacing or site.pixel_spacing or (1.0, 1.0)
    if study.task == "classification":
        return Sample(case, image, None, None, spacing, picture.sha256, _class_number(case, site, study))
    truth = _truth(case, picture, study)
    annotation = truth
    if simulate and case.split == "train" and not (truth == UNLABELLED).any():
        key = hashlib.sha256(f"{study.seed} {case.id}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(key[:16], "little"))
        annotation = draw_annotation(truth, site.annotation, rng)
    return Sample(case, image, _resized(annotation, side, smooth=False), truth, spacing, picture.sha256)


def _class_number(case: Case, site: Site, study: Study) -> int:
    if case.label not in study.classes:
        raise DataError(
            f"{site.data / TABLE}: {case.id}: label {case.label!r} is no class of the study "
            f"({', '.join(study.classes)})"
        )
    return study.classes.index(case.label)


def _truth(case: Case, picture: Picture, study: Study) -> np.ndarray:
    """The mask of a case, as large as its image."""
    if case.mask is None:
        raise DataError(f"{case.image}: expected a mask, as the study's task is {study.task}, got a label")
    truth = read_mask(case.mask, len(study.classes))
    if truth.shape != picture.array.shape[:2]:
        raise DataError(
            f"{case.mask}: expected {_size(picture.array)} pixels as in {case.image}, got {_size(truth)}"
        )
    return truth


def _resized(plane: np.ndarray, side: int, *, smooth: bool) -> np.ndarray:
    """One (H, W) plane to (side, side): bilinear with antialiasing, or the nearest pixel."""
    method = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    resized = np.array(Image.fromarray(np.ascontiguousarray(plane)).resize((side, side), method))
    return resized.clip(0, 1) if smooth else resized


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}×{array.shape[0]}"
