"""File formats that hospitals deliver, decoded to arrays: PNG, JPEG, TIFF, NIfTI and DICOM.

Rows of an array are rows of the displayed picture: orientation tags are applied, and a NIfTI slice (first
axis x, second axis y) is transposed to (y, x) without a flip. Decoders raise whatever a broken file makes of
them; `fedprompt.data.images` turns that into a sentence.
"""

from __future__ import annotations

import gzip
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from fedprompt.errors import DataError

__all__ = ["Spacing", "decode"]

Spacing = tuple[float, float]

_PILLOW_FORMATS = ("PNG", "JPEG", "TIFF")
_NIFTI_HEADER = 1 << 20  # bytes: more than a header with extensions has
_NIFTI_PIXEL = 16  # bytes of the widest type
_NIFTI_2 = (540, int.from_bytes((540).to_bytes(4, "big"), "little"))  # its first number, either byte order
_MILLIMETRES = {"meter": 1e3, "micron": 1e-3}


def decode(
    path: Path, data: bytes, *, labels: bool, pixels: int | None = None
) -> tuple[np.ndarray, Spacing | None]:
    """Decodes the bytes of one image file.

    Args:
        path: Where the bytes come from; its suffix tells NIfTI and DICOM.
        data: All bytes of the file.
        labels: The pixels are class numbers: palette indices stay indices, no display transform is applied.
        pixels: Refuse images of more; few bytes of a file can say that they are a very large image.

    Returns:
        The pixels as stored, (H, W) or (H, W, channels), and the row and column spacing in mm where known.

    Raises:
        DataError: The file holds several slices or pages, something else than numbers, or too many pixels.
    """
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return _nifti(path, data, pixels)
    if name.endswith((".dcm", ".dicom")) or data[128:132] == b"DICM":
        return _dicom(path, data, pixels, labels=labels)
    return _pillow(path, data, pixels, labels=labels), None


def _pillow(path: Path, data: bytes, pixels: int | None, *, labels: bool) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS) as image:
        pages = getattr(image, "n_frames", 1)
        if image.format != "MPO" and pages > 1:  # MPO: the JPEG of cameras that add a preview
            raise DataError(f"{path}: expected one image, got a file with {pages} pages")
        _check_size(path, image.height, image.width, pixels)
        upright = ImageOps.exif_transpose(image)
    if labels:
        array = np.asarray(upright)
        channels = {"LA": 1, "PA": 1, "RGBA": 3}.get(upright.mode)
        return array if channels is None else array[..., :channels]
    if upright.mode in ("1", "L", "I", "F") or upright.mode.startswith("I;16"):
        return np.asarray(upright)
    return np.asarray(upright.convert("RGB"))


def _nifti(path: Path, data: bytes, pixels: int | None) -> tuple[np.ndarray, Spacing | None]:
    import nibabel

    stream: io.IOBase = io.BytesIO(data)
    if path.name.lower().endswith(".gz"):
        stream = gzip.GzipFile(fileobj=stream)
        if pixels is not None:
            stream = io.BytesIO(stream.read(_NIFTI_HEADER + pixels * _NIFTI_PIXEL))
    second = int.from_bytes(stream.read(4), "little") in _NIFTI_2
    stream.seek(0)
    with nibabel.imageglobals.LoggingOutputSuppressor():  # it prints what it finds odd in a header
        image = (nibabel.Nifti2Image if second else nibabel.Nifti1Image).from_stream(stream)
    shape = image.shape
    if len(shape) < 2 or any(side != 1 for side in shape[2:]):
        raise DataError(f"{path}: expected one 2-D slice, got a volume of shape {tuple(shape)}")
    _check_size(path, shape[1], shape[0], pixels)
    array = np.asanyarray(image.dataobj)
    if array.dtype.names is not None:
        raise DataError(f"{path}: expected one number per pixel, got a colour NIfTI file")
    header: Any = image.header
    scale = _MILLIMETRES.get(header.get_xyzt_units()[0], 1.0)
    column, row = (float(zoom) * scale for zoom in header.get_zooms()[:2])
    return array.reshape(shape[:2]).T, _positive(row, column)


def _dicom(path: Path, data: bytes, pixels: int | None, *, labels: bool) -> tuple[np.ndarray, Spacing | None]:
    import pydicom
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
    from pydicom.pixels.utils import pixel_array

    dataset = pydicom.dcmread(io.BytesIO(data))
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise DataError(f"{path}: expected one 2-D slice, got {frames} frames")
    _check_size(path, int(dataset.Rows), int(dataset.Columns), pixels)
    array = pixel_array(dataset)
    kind = str(dataset.PhotometricInterpretation)
    if not labels and kind == "PALETTE COLOR":
        array = apply_color_lut(array, dataset)
    elif not labels and kind.startswith("MONOCHROME"):
        array = apply_voi_lut(apply_modality_lut(array, dataset), dataset)
        if kind == "MONOCHROME1":  # the smallest value is displayed as white
            array = array.max() - (array - array.min())
    spacing = dataset.get("PixelSpacing")
    return array, None if not spacing else _positive(float(spacing[0]), float(spacing[1]))


def _positive(row: float, column: float) -> Spacing | None:
    if all(math.isfinite(value) and value > 0 for value in (row, column)):
        return row, column
    return None


def _check_size(path: Path, rows: int, columns: int, pixels: int | None) -> None:
    if pixels is not None and rows * columns > pixels:
        raise DataError(f"{path}: expected at most {pixels} pixels, got {columns}×{rows}")
