"""The files of a stream: names, what the network sees, masks that overlay their image."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from tiny_model_file import write_model_file

from fedprompt.adaptation.model_file import load_network
from fedprompt.adaptation.stream_files import (
    class_numbers,
    find_images,
    image_stem,
    mask_file,
    mask_name,
    network_input,
)
from fedprompt.data.images import Picture, read_mask
from fedprompt.errors import ConfigurationError, DataError


@pytest.mark.parametrize(
    ("name", "stem", "mask"),
    [
        ("a.PNG", "a", "a.png"),
        ("a.b.jpeg", "a.b", "a.b.png"),
        ("a.nii.gz", "a", "a.nii.gz"),
        ("a.nii", "a", "a.nii.gz"),
        ("1.2.840.113", "1.2.840.113", "1.2.840.113.png"),
        ("IM1.dcm", "IM1", "IM1.png"),
    ],
)
def test_names(name: str, stem: str, mask: str) -> None:
    assert (image_stem(Path(name)), mask_name(Path(name))) == (stem, mask)


def test_a_folder_gives_its_images_by_name_and_files_come_as_they_are(tmp_path: Path) -> None:
    for name in ("b.png", "a.nii.gz", "c.DCM", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "sub.png").mkdir()
    found = find_images([tmp_path / "notes.txt", tmp_path])
    assert [path.name for path in found] == ["notes.txt", "a.nii.gz", "b.png", "c.DCM"]
    with pytest.raises(DataError, match="none: no such file or folder"):
        find_images([tmp_path / "none"])
    with pytest.raises(DataError, match=r"expected images .* got a folder without any"):
        find_images([tmp_path / "sub.png"])


def test_the_network_sees_what_training_sees(tmp_path: Path) -> None:
    from fedprompt.data.samples import _resized

    array = np.random.default_rng(0).random((40, 56, 3), dtype=np.float32)
    network = load_network(write_model_file(tmp_path))
    found = network_input(Picture(array, None, ""), network)
    expected = np.stack([_resized(channel, 32, smooth=True) for channel in np.moveaxis(array, 2, 0)])
    assert found.shape == (3, 32, 32)
    np.testing.assert_array_equal(found.numpy(), expected)


def test_sizes_and_channels_follow_the_network(tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((40, 56, 3), dtype=np.float32)
    grey = load_network(write_model_file(tmp_path / "grey", channels=1, size=[16, 48]))
    found = network_input(Picture(array, None, ""), grey)
    assert found.shape == (1, 16, 48)
    assert found.mean().item() == pytest.approx(array.mean(), abs=0.01)
    free = load_network(write_model_file(tmp_path / "free", size=None))
    np.testing.assert_array_equal(network_input(Picture(array, None, ""), free), array.transpose(2, 0, 1))
    odd = load_network(write_model_file(tmp_path / "odd", channels=4))
    with pytest.raises(ConfigurationError, match="expected 1 or 3 channels, as image files have, got 4"):
        network_input(Picture(array, None, ""), odd)


@pytest.mark.parametrize(
    ("shape", "kind", "suffix"),
    [
        ((56, 40), nibabel.Nifti1Image, ".nii"),
        ((56, 40, 1), nibabel.Nifti1Image, ".nii.gz"),
        ((56, 40, 1, 1), nibabel.Nifti2Image, ".NII.GZ"),
    ],
)
def test_a_nifti_mask_has_the_geometry_of_its_image_and_none_of_its_texts(
    shape: tuple[int, ...], kind: type, suffix: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    affine = np.array([[-0.5, 0.1, 0, 7], [0.05, 0.7, 0, -3], [0, 0, 2, 11], [0, 0, 0, 1.0]])
    source = kind(rng.integers(-100, 900, shape).astype(np.int16), affine)
    source.set_qform(affine @ np.diag([1, 1, -1, 1]), code=1)
    source.set_sform(affine, code=4)
    source.header.set_xyzt_units("mm", "sec")
    source.header["descrip"] = b"Doe^Jane"
    source.header["cal_max"] = 900
    source.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Doe^Jane"))
    nibabel.save(source, tmp_path / f"a{suffix.lower()}")
    path = (tmp_path / f"a{suffix.lower()}").rename(tmp_path / f"a{suffix}")
    numbers = rng.integers(0, 3, (40, 56), dtype=np.uint8)  # rows, columns

    content = mask_file(path, numbers)
    assert content == mask_file(path, numbers)
    assert b"Jane" not in gzip.decompress(content)
    written = tmp_path / "mask.nii.gz"
    written.write_bytes(content)
    mask = nibabel.load(written)
    assert type(mask) is kind
    assert (mask.shape, mask.get_data_dtype()) == (shape, np.uint8)
    np.testing.assert_array_equal(np.asarray(mask.dataobj).reshape(56, 40), numbers.T)
    np.testing.assert_array_equal(read_mask(written, 3), numbers)
    np.testing.assert_array_equal(mask.affine, source.affine)
    for name in ("get_qform", "get_sform"):
        ours, code = getattr(mask, name)(coded=True)
        theirs, expected = getattr(source, name)(coded=True)
        np.testing.assert_array_equal(ours, theirs)
        assert code == expected
    assert mask.header.get_zooms() == source.header.get_zooms()
    assert mask.header.get_xyzt_units() == ("mm", "sec")
    assert (len(mask.header.extensions), mask.header["cal_max"]) == (0, 0)


def test_a_png_mask_holds_class_numbers(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(0, 3, (4, 6), dtype=np.uint8)
    (tmp_path / "mask.png").write_bytes(mask_file(Path("a.jpg"), numbers))
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", 3), numbers)


def test_class_numbers_are_taken_after_resizing() -> None:
    probabilities = torch.tensor([[[0.9, 0.4]], [[0.1, 0.6]]])  # the second class wins by less
    found = class_numbers(probabilities, 2, 8)
    np.testing.assert_array_equal(found, [[0, 0, 0, 0, 0, 1, 1, 1]] * 2)
    assert found.dtype == np.uint8
