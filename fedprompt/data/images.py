"""Images and masks read into plain arrays, whatever format they come in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import UnidentifiedImageError

from fedprompt.data.formats import Spacing, decode
from fedprompt.errors import DataError

__all__ = ["UNLABELLED", "Picture", "picture_from_bytes", "read_mask", "read_picture"]

UNLABELLED = 255


@dataclass(frozen=True, eq=False)
class Picture:
    """One image as read.

    Attributes:
        array: float32 (H, W, 3) in 0 to 1.
        spacing: Row and column spacing in mm where the file says so.
        sha256: Hash of the file's bytes.
    """

    array: np.ndarray
    spacing: Spacing | None
    sha256: str


def read_picture(path: Path) -> Picture:
    """Reads an image; grey becomes three equal channels, an alpha channel is dropped.

    8-bit values are divided by 255; 16-bit values, other integers and floats are scaled by the image's own
    minimum and maximum (NaN becomes 0, a constant image zeros).

    Raises:
        DataError: The file is missing, cut off, no image of a known format, or holds more than one slice.
    """
    with _errors_name(path):
        return _picture(path, path.read_bytes(), None)


def picture_from_bytes(name: str, data: bytes, *, pixels: int) -> Picture:
    """The image of a file's bytes, as `read_picture` reads it.

    Args:
        name: Name of the file; its suffix tells NIfTI and DICOM, and errors begin with it.
        data: All bytes of the file.
        pixels: Refuse larger images.

    Raises:
        DataError: As `read_picture`, or the image has more pixels.
    """
    path = Path(name)
    with _errors_name(path):
        return _picture(path, data, pixels)


def _picture(path: Path, data: bytes, pixels: int | None) -> Picture:
    array, spacing = decode(path, data, labels=False, pixels=pixels)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3) or 0 in array.shape:
        raise DataError(f"{path}: expected one 2-D image, got an array of shape {array.shape}")
    unit = np.broadcast_to(_to_unit(path, array), (*array.shape[:2], 3))
    return Picture(np.ascontiguousarray(unit), spacing, hashlib.sha256(data).hexdigest())


def read_mask(path: Path, classes: int) -> np.ndarray:
    """Reads a mask to uint8 (H, W): class numbers below `classes`, or 255 for unlabelled pixels.

    Palette images give their indices, colour images must have equal channels.

    Raises:
        DataError: As `read_picture`, or a value is no class number of the study; names the value.
    """
    with _errors_name(path):
        array, _ = decode(path, path.read_bytes(), labels=True)
        if array.ndim == 3 and array.shape[2] in (1, 3):
            if (array != array[..., :1]).any():
                raise DataError(f"{path}: expected a mask of class numbers, got a colour image")
            array = array[..., 0]
        if array.ndim != 2 or 0 in array.shape:
            raise DataError(f"{path}: expected one 2-D mask, got an array of shape {array.shape}")
        for value in np.unique(array):
            if value != UNLABELLED and value not in range(classes):
                raise DataError(
                    f"{path}: expected class numbers 0 to {classes - 1} or {UNLABELLED} (unlabelled), "
                    f"got {value:g}"
                )
        return np.ascontiguousarray(array, dtype=np.uint8)


def _to_unit(path: Path, array: np.ndarray) -> np.ndarray:
    """Pixels of any type as float32 in 0 to 1."""
    if array.dtype == np.bool_:
        return array.astype(np.float32)
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    values = array.astype(np.float64)
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        raise DataError(f"{path}: expected finite pixel values, got none")
    low, high = finite.min(), finite.max()
    if low == high:
        return np.zeros(array.shape, np.float32)
    unit = (values / 2 - low / 2) / (high / 2 - low / 2)  # halves: the range of float64 may overflow
    scaled: np.ndarray = np.nan_to_num(unit, nan=0.0).clip(0, 1).astype(np.float32)
    return scaled


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Turns whatever a decoder raises for a broken file into one sentence with the file's name."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: expected a PNG, JPEG, TIFF, NIfTI or DICOM image") from None
    except Exception as error:  # noqa: BLE001 - what decoders raise for a broken file is open
        cause = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: the image is cut off, damaged or cannot be decoded ({cause})") from None
