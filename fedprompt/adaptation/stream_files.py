"""The files of a stream: which images it has, what the network sees of one, and masks that overlay it."""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fedprompt.adaptation.network import Network
from fedprompt.data.images import UNLABELLED, Picture, read_mask
from fedprompt.errors import ConfigurationError, DataError

__all__ = [
    "check_stems",
    "class_numbers",
    "file_digest",
    "find_images",
    "find_truths",
    "image_stem",
    "mask_file",
    "mask_name",
    "network_input",
    "read_truth",
]

_NIFTI = (".nii.gz", ".nii")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", *_NIFTI, ".dcm", ".dicom")


def find_images(places: Iterable[Path]) -> list[Path]:
    """Files as they are, and of every folder the images that lie directly in it, by name.

    Raises:
        DataError: A place is neither, or a folder has no image of a known suffix.
    """
    images: list[Path] = []
    for place in places:
        if not place.is_dir():
            if not place.exists():
                raise DataError(f"{place}: no such file or folder")
            images.append(place)
            continue
        found = [path for path in _visible(place) if path.name.lower().endswith(_SUFFIXES)]
        if not found:
            raise DataError(f"{place}: expected images ({', '.join(_SUFFIXES)}), got a folder without any")
        images += found
    return images


def image_stem(path: Path) -> str:
    """The file name without an image's suffix; a name such as `1.2.840` has none."""
    for suffix in _SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def mask_name(image: Path) -> str:
    """File name of an image's mask."""
    return image_stem(image) + (".nii.gz" if _is_nifti(image) else ".png")


def check_stems(images: Sequence[Path]) -> None:
    """Refuses two images whose masks would have the same name.

    Raises:
        DataError: Names the two.
    """
    seen: dict[str, Path] = {}
    for image in images:
        stem = image_stem(image)
        if stem in seen:
            raise DataError(
                f"{image}: expected images of different names, got {seen[stem]} too, whose mask would have "
                "the same name"
            )
        seen[stem] = image


def find_truths(images: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """The mask of every image: the file of the same stem in `folder`, whatever its suffix.

    Raises:
        DataError: There is no such folder, or no such mask, or more than one.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: expected a folder with masks, got {'a file' if folder.exists() else 'none'}"
        )
    masks: dict[str, list[Path]] = {}
    for path in _visible(folder):
        masks.setdefault(image_stem(path), []).append(path)
    truths = {}
    for image in images:
        found = masks.get(image_stem(image), [])
        if len(found) != 1:
            names = " and ".join(path.name for path in found) or "none"
            raise DataError(f"{folder}: expected one mask for {image.name}, got {names}")
        truths[image] = found[0]
    return truths


def read_truth(path: Path, classes: int) -> np.ndarray:
    """Class numbers (H, W) uint8 to evaluate against; 255 is unlabelled.

    Raises:
        DataError: It cannot be read, or is drawn in 0 and 255 as if 255 were a class.
    """
    truth = read_mask(path, classes)
    if (truth == UNLABELLED).any() and not ((truth > 0) & (truth != UNLABELLED)).any():
        raise DataError(
            f"{path}: expected class numbers to evaluate against, got only background and {UNLABELLED}, "
            "which is unlabelled"
        )
    return truth


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def network_input(picture: Picture, network: Network) -> Tensor:
    """What the network sees of an image: (channels, H, W) float32 in 0 to 1, at the network's size.

    It is resized as in training, bilinear with antialiasing; one channel is the mean of the three.

    Raises:
        ConfigurationError: The network takes neither one nor three channels.
    """
    if network.channels not in (1, 3):
        raise ConfigurationError(
            f"network: expected 1 or 3 channels, as image files have, got {network.channels}"
        )
    array = picture.array if network.channels == 3 else picture.array.mean(axis=2, keepdims=True)
    planes = np.moveaxis(array, 2, 0)
    if network.size is not None:
        planes = np.stack([_resized(plane, *network.size) for plane in planes])
    return torch.from_numpy(np.ascontiguousarray(planes))


def class_numbers(probabilities: Tensor, height: int, width: int) -> np.ndarray:
    """Most probable class (H, W) uint8 in the resolution of the file, from (classes, h, w)."""
    full = F.interpolate(probabilities[None], size=(height, width), mode="bilinear", align_corners=False)
    return np.asarray(full[0].argmax(dim=0).numpy().astype(np.uint8))


def mask_file(image: Path, mask: np.ndarray) -> bytes:
    """The bytes of a mask's file, from class numbers (H, W): NIfTI with the image's geometry, else PNG.

    Raises:
        DataError: The geometry cannot be read.
    """
    if not _is_nifti(image):
        buffer = io.BytesIO()
        Image.fromarray(mask).save(buffer, "PNG")
        return buffer.getvalue()
    try:
        return _nifti(image, mask)
    except Exception as error:  # noqa: BLE001 - what nibabel raises for an odd header is open
        cause = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{image}: the header cannot be given to a mask ({cause})") from None


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(_NIFTI)


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _resized(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(plane))
    resized: np.ndarray = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    return resized.clip(0, 1)


def _nifti(source: Path, mask: np.ndarray) -> bytes:
    """The mask in the shape, affine and zooms of its image; texts of the header stay behind.

    An image's first axis is x, so the mask, whose rows are y, is transposed back.
    """
    import nibabel

    with nibabel.imageglobals.LoggingOutputSuppressor():
        image = nibabel.load(source)
        assert isinstance(image, nibabel.Nifti1Image)  # noqa: S101 - for the type checker: it was read before
        header: Any = image.header.copy()  # type: ignore[no-untyped-call]
        header.extensions.clear()
        for field in ("descrip", "aux_file", "intent_name", "db_name"):  # db_name: not in NIfTI-2
            if field in header:
                header[field] = b""
        header["cal_min"] = header["cal_max"] = 0
        header.set_data_dtype(np.uint8)
        header.set_slope_inter(1, 0)
        content = type(image)(mask.T.reshape(image.shape), image.affine, header).to_bytes()
    return gzip.compress(content, mtime=0)
