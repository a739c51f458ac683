"""Streams of image files: masks, a line per image, broken files, truth, folders of others, full disks."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from stream_material import adapted, lines, unhurried
from tiny_model_file import write_images, write_model_file

from fedprompt.adaptation import streams
from fedprompt.adaptation.adapter import Adapter
from fedprompt.adaptation.model_file import load_network
from fedprompt.adaptation.network import Network
from fedprompt.adaptation.state import StreamState
from fedprompt.adaptation.stream_files import (
    class_numbers,
    find_truths,
    mask_name,
    network_input,
)
from fedprompt.adaptation.stream_rows import ResultsFile, Row
from fedprompt.adaptation.streams import Stream
from fedprompt.data.images import read_mask, read_picture
from fedprompt.encryption import SiteKey
from fedprompt.errors import ConfigurationError, DataError, RunError


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return load_network(write_model_file(tmp_path_factory.mktemp("network")))


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return write_images(tmp_path / "images", 6)


def test_a_mask_is_as_large_as_its_image(network: Network, images: list[Path], tmp_path: Path) -> None:
    rows = adapted(network, images, tmp_path / "out")
    adapter = Adapter(network)
    for image, row in zip(images, rows, strict=True):
        mask = read_mask(tmp_path / "out" / "masks" / image.name, 2)
        again = adapter(network_input(read_picture(image), network))
        np.testing.assert_array_equal(mask, class_numbers(again.probabilities, 40, 56))
        assert mask.shape == (40, 56)
        assert row.foreground == pytest.approx((mask == 1).mean(), abs=1e-6)
        assert (row.image, row.accepted, row.reason) == (image.name, again.accepted, again.reason)
        assert (row.loss_before, row.loss_after) == (again.loss_before, again.loss_after)
    assert any(0.02 < row.foreground < 0.98 for row in rows if row.foreground is not None)
    assert [line["image"] for line in lines(tmp_path / "out")] == [image.name for image in images]
    assert [Row.parsed(line).accepted for line in lines(tmp_path / "out")] == [row.accepted for row in rows]


def test_a_nifti_mask_overlays_its_image(network: Network, images: list[Path], tmp_path: Path) -> None:
    pixels = np.array(Image.open(images[0]).convert("L"))  # rows, columns
    pixels[0, :2] = 0, 255  # so that scaling by the range changes nothing
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    source = nibabel.Nifti1Image(pixels.T[..., None].astype(np.int16), np.diag([0.5, 0.7, 2, 1]))
    nibabel.save(source, tmp_path / "a.nii")
    adapted(network, [tmp_path / "a.nii"], tmp_path / "nifti")
    adapted(network, [tmp_path / "grey.png"], tmp_path / "png")
    mask = nibabel.load(tmp_path / "nifti" / "masks" / "a.nii.gz")
    expected = read_mask(tmp_path / "png" / "masks" / "grey.png", 2)
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(np.asarray(mask.dataobj)[..., 0].T, expected)


def test_a_network_of_other_channels_is_refused(tmp_path: Path) -> None:
    odd = load_network(write_model_file(tmp_path / "network", channels=4))
    with pytest.raises(ConfigurationError, match="expected 1 or 3 channels, as image files have, got 4"):
        Stream([], Adapter(odd), tmp_path / "out")


def test_two_images_of_one_name_are_refused_before_anything_is_written(
    network: Network, images: list[Path], tmp_path: Path
) -> None:
    twin = tmp_path / "000.jpg"
    Image.open(images[0]).save(twin)
    for pair in ([*images, twin], [images[0], images[0]]):
        with pytest.raises(DataError, match="expected images of different names"):
            Stream(pair, Adapter(network), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_others_wrote_is_not_written_over(network: Network, images: list[Path], tmp_path: Path) -> None:
    for number, name in enumerate(("masks/003.png", "summary.json", "drift.html")):
        out = tmp_path / str(number)
        (out / "masks").mkdir(parents=True)
        (out / name).write_text("mine")
        with pytest.raises(ConfigurationError, match="expected a new folder or that of a stream, got"):
            Stream(images, Adapter(network), out)
        assert (out / name).read_text() == "mine"
    Stream(images[:2], Adapter(network), tmp_path / "0")  # 003 is none of them


def test_a_broken_image_is_passed_over_and_the_stream_goes_on(
    network: Network, images: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "cut.png").write_bytes(images[0].read_bytes()[:300])
    (folder / "text.png").write_text("no image")
    nibabel.save(nibabel.Nifti1Image(np.full((8, 8), np.nan), np.eye(4)), folder / "nan.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 4)), np.eye(4)), folder / "volume.nii.gz")
    broken = sorted(folder.iterdir())
    mixed = [images[0], *broken, folder / "gone.png", *images[1:]]
    rows = adapted(network, mixed, tmp_path / "out")
    clean = adapted(network, images, tmp_path / "clean")
    assert [row.image for row in rows] == [path.name for path in mixed]
    reasons = {row.image: row.reason for row in rows[1:6]}
    assert not any(row.accepted for row in rows[1:6])
    for name, words in {
        "cut.png": "cut off, damaged or cannot be decoded",
        "text.png": "expected a PNG, JPEG, TIFF, NIfTI or DICOM image",
        "nan.nii.gz": "expected finite pixel values, got none",
        "volume.nii.gz": "expected one 2-D slice, got a volume of shape (8, 8, 4)",
        "gone.png": "no such file",
    }.items():
        assert words in reasons[name]
        assert str(folder) not in reasons[name]
        assert not (tmp_path / "out" / "masks" / mask_name(Path(name))).exists()
    for image in images:
        masks = [(tmp_path / each / "masks" / image.name).read_bytes() for each in ("out", "clean")]
        assert masks[0] == masks[1]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["images"], summary["without_mask"]) == (11, 5)
    assert summary["adapted"] == sum(row.accepted for row in clean)
    assert summary["passed_through"]["no such file"] == 1
    assert summary["dice_before"] is summary["worst_image"] is None


def test_a_constant_image_has_a_mask_and_is_marked(network: Network, tmp_path: Path) -> None:
    Image.new("RGB", (56, 40), (90, 90, 90)).save(tmp_path / "flat.png")
    [row] = adapted(network, [tmp_path / "flat.png"], tmp_path / "out")
    assert not row.accepted
    assert row.reason
    assert read_mask(tmp_path / "out" / "masks" / "flat.png", 2).shape == (40, 56)


def test_dice_before_and_after(network: Network, images: list[Path], tmp_path: Path) -> None:
    truth = tmp_path / "truth"
    truth.mkdir()
    for image in images:
        prediction = class_numbers(
            Adapter(network, "none")(network_input(read_picture(image), network)).probabilities, 40, 56
        )
        Image.fromarray(prediction).save(truth / f"{image.stem}.tif")
    rows = adapted(network, images, tmp_path / "out", truth=truth)
    for row, line in zip(rows, lines(tmp_path / "out"), strict=True):
        assert row.dice_before == {"polyp": 1.0}
        mask = read_mask(tmp_path / "out" / "masks" / row.image, 2)
        expected = read_mask(truth / f"{Path(row.image).stem}.tif", 2)
        overlap = 2 * ((mask == 1) & (expected == 1)).sum()
        total = (mask == 1).sum() + (expected == 1).sum()
        assert row.dice_after["polyp"] == pytest.approx(overlap / total if total else 1.0)
        assert float(line["dice_after"]) == pytest.approx(row.dice_after["polyp"], abs=1e-5)
        assert line["dice_before"] == line["dice_before_polyp"] == "1"
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    after = [row.dice_after["polyp"] for row in rows]
    assert summary["dice_before"] == 1
    assert summary["dice_after"] == pytest.approx(np.mean(after), abs=1e-5)
    assert summary["worst_change"] == pytest.approx(min(after) - 1, abs=1e-5)
    assert summary["worst_image"] == rows[int(np.argmin(after))].image


def test_an_empty_truth_that_is_found_empty_has_dice_1(tmp_path: Path) -> None:
    network = load_network(write_model_file(tmp_path / "network", activation="sigmoid", seed=3))
    with_bias = [value for name, value in network.module.state_dict().items() if name.endswith("bias")]
    with_bias[-1].fill_(-1000)  # the network sees nothing anywhere
    [image] = write_images(tmp_path / "images", 1)
    (tmp_path / "truth").mkdir()
    Image.new("L", (56, 40)).save(tmp_path / "truth" / "000.png")
    [row] = adapted(network, [image], tmp_path / "out", truth=tmp_path / "truth")
    assert row.foreground == 0
    assert (row.dice_before, row.dice_after) == ({"polyp": 1.0}, {"polyp": 1.0})


def test_classes_have_their_own_dice(tmp_path: Path) -> None:
    network = load_network(write_model_file(tmp_path / "network", classes=("background", "disc", "cup")))
    images = write_images(tmp_path / "images", 2)
    (tmp_path / "truth").mkdir()
    for image in images:
        drawn = np.zeros((40, 56), np.uint8)
        drawn[10:30, 10:30], drawn[15:20, 15:20] = 1, 2
        Image.fromarray(drawn).save(tmp_path / "truth" / image.name)
    adapted(network, images, tmp_path / "out", truth=tmp_path / "truth")
    for line in lines(tmp_path / "out"):
        own = [float(line[f"dice_after_{name}"]) for name in ("disc", "cup")]
        assert float(line["dice_after"]) == pytest.approx(np.mean(own), abs=1e-5)
        assert own[0] != own[1]


def test_a_truth_that_cannot_be_used_is_named_before_the_start(
    network: Network, images: list[Path], tmp_path: Path
) -> None:
    truth = tmp_path / "truth"
    with pytest.raises(DataError, match="expected a folder with masks, got none"):
        find_truths(images, truth)
    truth.mkdir()

    def sentence() -> str:
        with pytest.raises(DataError) as caught:
            Stream(images, Adapter(network), tmp_path / "out", truth=truth)
        return str(caught.value)

    for image in images[:-1]:
        Image.new("L", (56, 40)).save(truth / image.name)
    assert sentence() == f"{truth}: expected one mask for 005.png, got none"
    Image.new("L", (56, 40), 255).save(truth / "005.png")
    assert sentence() == (
        f"{truth / '005.png'}: expected class numbers to evaluate against, got only background and 255, "
        "which is unlabelled"
    )
    Image.new("L", (56, 40), 7).save(truth / "005.png")
    assert "expected class numbers 0 to 1 or 255 (unlabelled), got 7" in sentence()
    Image.new("L", (56, 40)).save(truth / "005.tif")
    assert sentence() == f"{truth}: expected one mask for 005.png, got 005.png and 005.tif"
    assert not (tmp_path / "out").exists()


def test_a_truth_of_another_size_stops_the_stream_and_leaves_what_is_done(
    network: Network, images: list[Path], tmp_path: Path
) -> None:
    truth = tmp_path / "truth"
    truth.mkdir()
    for image in images:
        Image.new("L", (56, 41 if image is images[3] else 40)).save(truth / image.name)
    with pytest.raises(DataError, match=r"truth/003\.png: expected 56×40 pixels as in .*003\.png, got 56×41"):
        adapted(network, images, tmp_path / "out", truth=truth)
    assert len(lines(tmp_path / "out")) == 3


class Full:
    """Lets some writes through, then there is no space."""

    def __init__(self, function: object, writes: int) -> None:
        self.function, self.left = function, writes

    def __call__(self, *arguments: object, **options: object) -> object:
        self.left -= 1
        if self.left < 0:
            raise OSError(28, "No space left on device")
        return self.function(*arguments, **options)  # type: ignore[operator]


@pytest.mark.parametrize("place", ["mask", "line"])
def test_a_full_disk_is_one_sentence_and_what_is_done_stays(
    place: str, network: Network, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted(network, images, tmp_path / "whole")
    with monkeypatch.context() as patch:
        if place == "mask":
            patch.setattr(streams, "write_atomic", Full(streams.write_atomic, 3))
        else:
            append = ResultsFile.append
            full = Full(append, 3)
            patch.setattr(ResultsFile, "append", lambda *arguments: full(*arguments))
        with (
            StreamState(tmp_path / "state", SiteKey(b"k" * 32), "a") as state,
            pytest.raises(RunError, match=r"out: cannot be written \(No space left on device\); 3 images"),
        ):
            adapted(network, images, tmp_path / "out", state=state)
    assert len(lines(tmp_path / "out")) == 3
    with StreamState(tmp_path / "state", SiteKey(b"k" * 32), "a") as state:
        adapted(network, images, tmp_path / "out", state=state)
    assert unhurried(tmp_path / "out") == unhurried(tmp_path / "whole")


def test_a_folder_that_cannot_be_made(network: Network, images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    stream = Stream(images, Adapter(network), tmp_path / "file" / "out")
    with pytest.raises(
        ConfigurationError, match=r"expected a folder that can be written \(Not a directory\)"
    ):
        list(stream)
