"""Backbone folders: round trips, and every way in which a folder can be wrong."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fedprompt.artifacts import read_arrays, write_arrays
from fedprompt.backbones import SegmentationBackbone, fingerprint, load_backbone, load_folder, save_backbone
from fedprompt.backbones.embedded_unet import EmbeddedUNet
from fedprompt.backbones.storage import EMBEDDED
from fedprompt.config import BackboneSettings
from fedprompt.errors import ConfigurationError, DataError


@pytest.fixture
def folder(tmp_path: Path, unet: EmbeddedUNet) -> Path:
    save_backbone(unet, tmp_path / "unet", {"note": "random"})
    return tmp_path / "unet"


def settings(folder: Path, **values: str) -> BackboneSettings:
    return BackboneSettings(**{"name": "embedded-unet", "folder": folder, **values})


def test_a_saved_backbone_comes_back_frozen_and_equal(backbone: SegmentationBackbone, tmp_path: Path) -> None:
    save_backbone(backbone, tmp_path / "saved", {})
    again = load_folder(shutil.move(tmp_path / "saved", tmp_path / "carried"))
    images = torch.rand(1, 3, 64, 64)
    assert fingerprint(again) == fingerprint(backbone)
    torch.testing.assert_close(again(images), backbone(images))
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert not any(module.training for module in again.modules())


def test_equal_backbones_give_equal_bytes(backbone: SegmentationBackbone, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_backbone(backbone, tmp_path / name, {"seed": 1})
    for file in (path for path in (tmp_path / "one").rglob("*") if path.is_file()):
        assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes()


def test_loading_leaves_the_global_generator_alone(folder: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_folder(folder)
    assert torch.equal(torch.rand(3), expected)


def test_the_description_names_fingerprint_and_provenance(folder: Path, unet: EmbeddedUNet) -> None:
    stored = json.loads((folder / "backbone.json").read_text())
    assert stored["fingerprint"] == fingerprint(unet)
    assert stored["provenance"] == {"note": "random"}
    assert stored["parameters"] == sum(p.numel() for p in unet.parameters())


def test_the_study_must_mean_this_backbone(folder: Path, unet: EmbeddedUNet) -> None:
    load_backbone(settings(folder, fingerprint=fingerprint(unet)), classes=3)
    with pytest.raises(ConfigurationError, match=r"expected a backbone with the 2 classes of the study.* 3"):
        load_backbone(settings(folder), classes=2)
    with pytest.raises(ConfigurationError, match="expected backbone mobilenet-v2, got embedded-unet"):
        load_backbone(settings(folder, name="mobilenet-v2"), classes=3)
    with pytest.raises(ConfigurationError) as caught:
        load_backbone(settings(folder, fingerprint="0" * 64), classes=3)
    assert "0" * 64 in str(caught.value)
    assert fingerprint(unet) in str(caught.value)


def test_unknown_names_and_missing_folders_are_configuration_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected one of embedded-unet, mobilenet-v2"):
        load_backbone(BackboneSettings(name="resnet"), classes=3)
    with pytest.raises(ConfigurationError, match="nowhere: expected a folder"):
        load_backbone(settings(tmp_path / "nowhere"), classes=3)
    with pytest.raises(ConfigurationError, match="mobilenet-v2: no weights come with the package"):
        load_backbone(BackboneSettings(name="mobilenet-v2"), classes=2)


def test_a_truncated_file_is_refused_by_name(folder: Path) -> None:
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(DataError, match=r"weights\.safetensors: expected a safetensors file"):
        load_folder(folder)


def test_a_foreign_safetensors_file_is_refused_by_name(folder: Path) -> None:
    save_file({"a": np.zeros(3, np.float32)}, folder / "weights.safetensors")
    with pytest.raises(DataError, match=r"weights\.safetensors: .* foreign"):
        load_folder(folder)


def change_weights(folder: Path, name: str, value: np.ndarray | None) -> None:
    arrays, _ = read_arrays(folder / "weights.safetensors")
    arrays = {key: array for key, array in arrays.items() if key != name}
    write_arrays(folder / "weights.safetensors", arrays if value is None else {**arrays, name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("head.bias", None, "head.bias is missing"),
        ("extra", np.zeros(2, np.float32), "extra is foreign"),
        ("head.bias", np.zeros(5, np.float32), r"head.bias: expected shape \(3,\), got \(5,\)"),
        ("head.bias", np.full(3, np.nan, np.float32), "head.bias: expected finite values"),
        ("head.bias", np.zeros(3, np.float32), "expected weights with fingerprint"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    folder: Path, name: str, value: np.ndarray | None, message: str
) -> None:
    change_weights(folder, name, value)
    with pytest.raises(DataError, match=message):
        load_folder(folder)


def test_a_pickle_is_refused_unread(folder: Path) -> None:
    (folder / "weights.safetensors").rename(folder / "weights.pt")
    with pytest.raises(DataError, match=r"weights\.pt: expected weights\.safetensors, got a pickle"):
        load_folder(folder)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"schema": 9}, DataError, "expected a backbone description of schema 1"),
        ({"name": "resnet"}, ConfigurationError, "expected one of"),
        ({"config": {"depth": 3}}, DataError, "expected the configuration of embedded-unet"),
        ({"config": None}, DataError, "expected the configuration of embedded-unet"),
        ({"fingerprint": "1" * 64}, DataError, "do not belong together"),
    ],
)
def test_a_description_that_cannot_be_is_refused(
    folder: Path, change: dict[str, object], error: type[Exception], message: str
) -> None:
    stored = json.loads((folder / "backbone.json").read_text())
    (folder / "backbone.json").write_text(json.dumps({**stored, **change}))
    with pytest.raises(error, match=message):
        load_folder(folder)


def test_a_description_that_is_no_json_is_refused(folder: Path) -> None:
    (folder / "backbone.json").write_text("{")
    with pytest.raises(DataError, match=r"backbone\.json"):
        load_folder(folder)


def test_a_carried_folder_without_its_encoder_is_refused(
    mobilenet: SegmentationBackbone, tmp_path: Path
) -> None:
    save_backbone(mobilenet, tmp_path / "saved", {})
    shutil.rmtree(tmp_path / "saved" / "encoder")
    with pytest.raises(ConfigurationError, match="encoder"):
        load_folder(tmp_path / "saved")


def test_the_shipped_weights_are_small_fast_and_always_the_same() -> None:
    first = load_backbone(BackboneSettings(), classes=3)
    started = time.perf_counter()
    second = load_backbone(BackboneSettings(), classes=3)
    assert time.perf_counter() - started < 1.0  # 0.02 s on an idle core
    assert fingerprint(first) == fingerprint(second)
    assert sum(parameter.numel() for parameter in first.parameters()) <= 1_000_000
    shipped = EMBEDDED / "embedded-unet"
    assert (shipped / "weights.safetensors").stat().st_size <= 4_000_000
    provenance = json.loads((shipped / "backbone.json").read_text())["provenance"]
    assert provenance["data"]["name"] == "synthetic shapes"
    assert provenance["command"].startswith("fedprompt backbone pretrain --name embedded-unet")
