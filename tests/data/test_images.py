"""Image and mask files of all formats, whole and broken."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from fedprompt.data.images import picture_from_bytes, read_mask, read_picture
from fedprompt.errors import DataError

COLOUR = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]
LABELS = np.array([[0, 1, 2], [255, 2, 1]], dtype=np.uint8)


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def save_nifti(path: Path, array: np.ndarray, zooms: tuple[float, ...], unit: str = "mm") -> Path:
    image = nibabel.Nifti1Image(array, np.eye(4))
    image.header.set_zooms(zooms)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
    return path


def save_dicom(path: Path, array: np.ndarray, kind: str = "MONOCHROME2", **attributes: object) -> Path:
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = (
        array.shape[-2:] if array.ndim < 3 or array.shape[-1] != 3 else array.shape[:2]
    )
    dataset.SamplesPerPixel = 3 if array.ndim == 3 and array.shape[-1] == 3 else 1
    if dataset.SamplesPerPixel == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = kind
    dataset.BitsAllocated = dataset.BitsStored = array.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(array.dtype.kind == "i")
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.PixelData = array.tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def scaled(array: np.ndarray) -> np.ndarray:
    values = array.astype(float)
    return (values - values.min()) / (values.max() - values.min())


def test_eight_bit_colour_is_divided_by_255(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", COLOUR)
    picture = read_picture(path)
    np.testing.assert_allclose(picture.array, COLOUR / 255, atol=1e-6)
    assert picture.array.dtype == np.float32
    assert picture.spacing is None
    assert picture.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_grey_becomes_three_channels_and_alpha_is_dropped(tmp_path: Path) -> None:
    expected = np.repeat(GREY[..., None] / 255, 3, axis=2)
    alpha = np.full_like(GREY, 17)
    for number, array in enumerate([GREY, np.stack([GREY, alpha], axis=2)]):
        picture = read_picture(save(tmp_path / f"{number}.png", array))
        np.testing.assert_allclose(picture.array, expected, atol=1e-6)
    picture = read_picture(save(tmp_path / "rgba.tiff", np.concatenate([COLOUR, alpha[..., None]], axis=2)))
    np.testing.assert_allclose(picture.array, COLOUR / 255, atol=1e-6)


def test_one_bit_and_palette_images(tmp_path: Path) -> None:
    Image.fromarray(GREY > 99).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "bits.png").array[..., 2], GREY > 99)
    image = Image.fromarray(LABELS % 3).copy()
    image = image.convert("P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    image.putdata((LABELS % 3).ravel().tolist())
    image.save(tmp_path / "palette.png")
    assert read_picture(tmp_path / "palette.png").array[0, 1].tolist() == [1, 0, 0]
    np.testing.assert_array_equal(read_mask(tmp_path / "palette.png", 3), LABELS % 3)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_is_scaled_by_its_own_range(tmp_path: Path, suffix: str) -> None:
    array = GREY.astype(np.uint16) * 40 + 1000
    picture = read_picture(save(tmp_path / f"a.{suffix}", array))
    np.testing.assert_allclose(picture.array[..., 0], scaled(array), atol=1e-6)


@settings(deadline=None)
@given(npst.arrays(np.float32, (3, 4), elements=st.floats(width=32)))
def test_any_float_image_ends_in_0_to_1_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, array
) -> None:
    path = save(tmp_path_factory.mktemp("float") / "a.tiff", array)
    if not np.isfinite(array).any():
        with pytest.raises(DataError, match="finite"):
            read_picture(path)
        return
    unit = read_picture(path).array
    assert unit.min() >= 0
    assert unit.max() <= 1
    finite = array[np.isfinite(array)]
    if finite.min() == finite.max():
        assert not unit[np.isfinite(array)].any()
    else:
        assert unit[np.isfinite(array)].max() == 1


def test_the_orientation_of_a_jpeg_is_respected(tmp_path: Path) -> None:
    array = np.zeros((16, 32, 3), dtype=np.uint8)
    array[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to display
    picture = read_picture(save(tmp_path / "a.jpg", array, exif=exif, quality=95))
    assert picture.array.shape == (32, 16, 3)
    assert picture.array[:12].mean() > 0.95
    assert picture.array[20:].mean() < 0.05


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_is_transposed_and_tells_row_and_column_spacing(tmp_path: Path, name: str) -> None:
    array = np.arange(12, dtype=np.int16).reshape(3, 4)  # x, y
    picture = read_picture(save_nifti(tmp_path / name, array[..., None], (0.5, 0.25, 9.0)))
    np.testing.assert_allclose(picture.array[..., 1], scaled(array.T), atol=1e-6)
    assert picture.spacing == (0.25, 0.5)


def test_nifti_spacing_in_micrometres(tmp_path: Path) -> None:
    picture = read_picture(save_nifti(tmp_path / "a.nii", np.eye(3, dtype=np.int16), (500, 250), "micron"))
    assert picture.spacing == pytest.approx((0.25, 0.5))


def test_nifti_masks_fit_their_image(tmp_path: Path) -> None:
    save_nifti(tmp_path / "m.nii.gz", LABELS.T[..., None], (1, 1, 1))
    np.testing.assert_array_equal(read_mask(tmp_path / "m.nii.gz", 3), LABELS)
    save_nifti(tmp_path / "f.nii", np.where(LABELS == 255, 1, LABELS).T.astype(np.float32), (1, 1))
    np.testing.assert_array_equal(read_mask(tmp_path / "f.nii", 3), np.where(LABELS == 255, 1, LABELS))


def test_a_volume_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii", np.zeros((3, 4, 5), dtype=np.int16), (1, 1, 1))
    with pytest.raises(DataError, match=r"a\.nii: expected one 2-D slice, got a volume of shape \(3, 4, 5\)"):
        read_picture(path)
    path = save_dicom(tmp_path / "b.dcm", np.zeros((2, 3, 4), dtype=np.uint8), NumberOfFrames=2)
    with pytest.raises(DataError, match=r"b\.dcm: expected one 2-D slice, got 2 frames"):
        read_picture(path)
    pages = [Image.fromarray(GREY), Image.fromarray(GREY)]
    pages[0].save(tmp_path / "c.tiff", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=r"c\.tiff: expected one image, got a file with 2 pages"):
        read_picture(tmp_path / "c.tiff")


def test_dicom_applies_rescale_window_and_inversion(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint16).reshape(4, 6)
    path = save_dicom(
        tmp_path / "a.dcm", array, "MONOCHROME1", PixelSpacing=["0.7", "0.4"], RescaleSlope=2,
        RescaleIntercept=-10, WindowCenter=10, WindowWidth=21,
    )  # fmt: skip
    picture = read_picture(path)
    assert picture.spacing == (0.7, 0.4)
    windowed = np.clip(array * 2.0 - 10, 0, 20)  # DICOM PS3.3 C.11.2.1.2.1: centre 10, width 21 is 0 to 20
    np.testing.assert_allclose(picture.array[..., 0], 1 - windowed / 20, atol=0.03)
    assert picture.array[0, 0, 0] == 1


def test_dicom_without_suffix_in_colour_and_as_mask(tmp_path: Path) -> None:
    picture = read_picture(save_dicom(tmp_path / "IM0001", COLOUR, "RGB"))
    np.testing.assert_allclose(picture.array, COLOUR / 255, atol=1e-6)
    assert picture.spacing is None
    mask = read_mask(save_dicom(tmp_path / "m.dcm", LABELS, WindowCenter=1, WindowWidth=2), 3)
    np.testing.assert_array_equal(mask, LABELS)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("grey.png", LABELS),
        ("grey.tiff", LABELS),
        ("rgb.png", np.repeat(LABELS[..., None], 3, axis=2)),
        ("rgba.png", np.stack([LABELS, LABELS, LABELS, LABELS * 0 + 9], axis=2)),
        ("wide.png", LABELS.astype(np.uint16)),
    ],
)
def test_masks_of_many_kinds(tmp_path: Path, name: str, array: np.ndarray) -> None:
    mask = read_mask(save(tmp_path / name, array), 3)
    np.testing.assert_array_equal(mask, LABELS)
    assert mask.dtype == np.uint8


def test_a_two_valued_mask_of_one_bit(tmp_path: Path) -> None:
    Image.fromarray(LABELS == 1).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png", 2), LABELS == 1)


@pytest.mark.parametrize(("array", "got"), [(LABELS, "got 2"), (LABELS.astype(np.float32) / 4, "got 0.25")])
def test_a_value_that_is_no_class_is_named(tmp_path: Path, array: np.ndarray, got: str) -> None:
    path = save(tmp_path / "a.tiff", array)
    with pytest.raises(
        DataError, match=rf"a\.tiff: expected class numbers 0 to 1 or 255 \(unlabelled\), {got}"
    ):
        read_mask(path, 2)


def test_a_colour_image_is_no_mask(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="colour"):
        read_mask(save(tmp_path / "a.png", COLOUR), 200)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tiff", "a.nii", "a.nii.gz", "a.dcm"])
@pytest.mark.parametrize("reader", [read_picture, lambda path: read_mask(path, 255)])
def test_every_cut_off_or_foreign_file_is_one_sentence(tmp_path: Path, name: str, reader) -> None:
    large = np.random.default_rng(1).integers(0, 9, (64, 64), dtype=np.uint8)
    whole = tmp_path / name
    if name.startswith("a.nii"):
        save_nifti(whole, large, (1, 1))
    elif name == "a.dcm":
        save_dicom(whole, large)
    else:
        save(whole, large)
    data = whole.read_bytes()
    for content in (b"", data[:20], data[: len(data) // 2], b"not an image at all" * 99):
        whole.write_bytes(content)
        with pytest.raises(DataError) as caught:
            reader(whole)
        assert str(caught.value).startswith(f"{whole}: ")
        assert "\n" not in str(caught.value)
    whole.unlink()
    with pytest.raises(DataError, match="no such file"):
        reader(whole)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tiff", "a.nii", "a.nii.gz", "a.dcm"])
def test_bytes_give_what_their_file_gives_and_too_many_pixels_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.startswith("a.nii"):
        save_nifti(path, GREY, (1, 2))
    elif name == "a.dcm":
        save_dicom(path, GREY)
    else:
        save(path, GREY)
    picture, expected = picture_from_bytes(name, path.read_bytes(), pixels=54), read_picture(path)
    np.testing.assert_array_equal(picture.array, expected.array)
    assert (picture.spacing, picture.sha256) == (expected.spacing, expected.sha256)
    with pytest.raises(DataError, match=rf"^{name}: expected at most 53 pixels, got (9×6|6×9)$"):
        picture_from_bytes(name, path.read_bytes(), pixels=53)


def test_a_small_file_does_not_become_a_large_one_in_memory(tmp_path: Path) -> None:
    header = nibabel.Nifti1Image(GREY, np.eye(4)).header
    header["vox_offset"], header["magic"] = 2**24, b"n+1"  # zeros to skip before the pixels
    content = header.binaryblock.ljust(2**24, b"\0") + GREY.tobytes(order="F")
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(content))
    assert path.stat().st_size < 20_000
    np.testing.assert_allclose(read_picture(path).array[..., 0], GREY.T / 255, atol=1e-6)
    with pytest.raises(DataError, match=r"^a\.nii\.gz: "):
        picture_from_bytes(path.name, path.read_bytes(), pixels=54)


def test_both_versions_and_byte_orders_of_nifti(tmp_path: Path) -> None:
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        for order in "<>":
            header = kind.header_class(endianness=order)
            image = kind(GREY.astype(np.int16), np.eye(4), header)
            nibabel.save(image, tmp_path / "a.nii")
            picture = read_picture(tmp_path / "a.nii")
            low, high = float(GREY.min()), float(GREY.max())
            np.testing.assert_allclose(picture.array[..., 0], (GREY.T - low) / (high - low), atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 40))
def test_damage_gives_an_image_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, seed: int, flips: int
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    rng = np.random.default_rng(seed)
    paths = [save(folder / name, GREY) for name in ("a.png", "a.jpg", "a.tiff")]
    paths += [save_nifti(folder / "a.nii", GREY, (1, 1)), save_dicom(folder / "a.dcm", GREY)]
    for path in paths:
        data = np.frombuffer(path.read_bytes(), dtype=np.uint8).copy()
        data[rng.integers(len(data), size=flips)] = rng.integers(256, size=flips)
        path.write_bytes(data.tobytes())
        try:
            array = read_picture(path).array
        except DataError:
            continue
        assert array.shape[2] == 3
        assert np.isfinite(array).all()


def test_a_broken_gzip_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(b"x" * 1000))
    with pytest.raises(DataError, match=r"a\.nii\.gz"):
        read_picture(path)
