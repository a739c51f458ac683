"""Backbones on disk: every source, round trips, and every way in which a folder can be wrong."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tiny_families import IMAGE, TINY

from fedprompt.artifacts import read_arrays, write_arrays
from fedprompt.backbones import Backbone, fingerprint, load_backbone, load_folder, save_backbone, storage
from fedprompt.backbones.embedded_unet import EmbeddedUNet
from fedprompt.backbones.storage import EMBEDDED, encoder_source, provenance_of
from fedprompt.config import BackboneSettings
from fedprompt.errors import ConfigurationError, DataError
from fedprompt.families import FAMILIES, Task

HUB = [name for name, entry in FAMILIES.items() if "transformers" in entry.origins]
WITH_DECODER = [name for name, entry in FAMILIES.items() if "pretrain" in entry.origins]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The transformers folder of a tiny encoder, by family."""
    folders: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            TINY[name](folders[name], None)
        return folders[name]

    return folder


@pytest.fixture
def folder(tmp_path: Path, unet: EmbeddedUNet) -> Path:
    save_backbone(unet, tmp_path / "unet", {"note": "random"})
    return tmp_path / "unet"


def settings(folder: Path, **values: str) -> BackboneSettings:
    return BackboneSettings(**{"name": "embedded-unet", "folder": folder, **values})


def same(one: Backbone, other: Backbone, name: str) -> None:
    """Equal numbers from encoder and decoder."""
    images = torch.rand((1, 3, IMAGE[name], IMAGE[name]), generator=torch.Generator().manual_seed(0))
    for mine, theirs in zip(one.encode(images), other.encode(images), strict=True):
        torch.testing.assert_close(mine, theirs)
    if one.head is not None:
        torch.testing.assert_close(one(images), other(images))


@pytest.mark.parametrize("name", TINY)
def test_a_saved_backbone_comes_back_frozen_and_equal(name: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    backbone = TINY[name](tmp_path / "source", 3)
    save_backbone(backbone, tmp_path / "saved", {})
    shutil.rmtree(tmp_path / "source")
    again = load_folder(shutil.move(tmp_path / "saved", tmp_path / "carried"))
    assert fingerprint(again) == fingerprint(backbone)
    same(again, backbone, name)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert not any(module.training for module in again.modules())


@pytest.mark.parametrize("name", HUB)
def test_a_folder_of_transformers_is_the_same_backbone_named_or_not(
    name: str, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    found = load_folder(saved(name))
    assert found.name == name
    assert found.classes is None
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert not any(module.training for module in found.modules())
    assert fingerprint(load_folder(saved(name), name)) == fingerprint(found)
    assert provenance_of(saved(name)) is None
    save_backbone(found, tmp_path / "ours", {"note": "fetched"})
    ours = load_folder(tmp_path / "ours", name)
    assert fingerprint(ours) == fingerprint(found)
    same(ours, found, name)
    assert provenance_of(tmp_path / "ours") == {"note": "fetched"}


@pytest.mark.parametrize("name", HUB)
def test_a_study_gets_a_folder_of_transformers_where_it_needs_no_decoder(
    name: str, saved: Callable[[str], Path]
) -> None:
    tasks: list[Task] = list(FAMILIES[name].prompts)
    for task in tasks:
        if task == "segmentation" and name in WITH_DECODER:
            with pytest.raises(ConfigurationError, match=f"backbone pretrain --name {name} --encoder"):
                load_backbone(settings(saved(name), name=name), task=task, classes=3)
        else:
            assert load_backbone(settings(saved(name), name=name), task=task, classes=3).name == name


def test_classification_takes_any_decoder_and_segmentation_the_classes_of_the_study(folder: Path) -> None:
    assert load_backbone(settings(folder), task="segmentation", classes=3).classes == 3
    assert load_backbone(settings(folder), task="classification", classes=7).classes == 3
    with pytest.raises(ConfigurationError, match=r"expected a backbone with the 2 classes of the study.* 3"):
        load_backbone(settings(folder), task="segmentation", classes=2)


@pytest.mark.parametrize(("name", "task"), [("clip", "segmentation"), ("sam", "classification")])
def test_a_family_is_asked_for_what_it_can_do(name: str, task: Task, saved: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigurationError, match=f"expected one that can do {task}"):
        load_backbone(settings(saved(name), name=name), task=task, classes=3)


def test_a_hub_id_is_loaded_from_the_folder_of_its_download(
    saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "hub_folder", {"owner/vit": saved("vit")}.__getitem__)
    chosen = BackboneSettings(name="vit", hub="owner/vit")
    found = load_backbone(chosen, task="classification", classes=3)
    assert fingerprint(found) == fingerprint(load_folder(saved("vit")))
    with pytest.raises(
        ConfigurationError, match="owner/vit: expected a backbone with a decoder of 3 classes"
    ):
        load_backbone(chosen, task="segmentation", classes=3)


def test_the_study_must_mean_this_backbone(
    folder: Path, unet: EmbeddedUNet, saved: Callable[[str], Path]
) -> None:
    for task in FAMILIES["vit"].prompts:
        load_backbone(settings(folder, fingerprint=fingerprint(unet)), task=task, classes=3)
    with pytest.raises(ConfigurationError, match="expected backbone mobilenet-v2, got embedded-unet"):
        load_backbone(settings(folder, name="mobilenet-v2"), task="segmentation", classes=3)
    with pytest.raises(ConfigurationError, match="expected an encoder of type vit, got clip"):
        load_backbone(settings(saved("clip"), name="vit"), task="classification", classes=3)
    with pytest.raises(ConfigurationError, match="pretrain --name embedded-unet`, got one of transformers"):
        load_backbone(settings(saved("vit")), task="classification", classes=3)
    for place, name in ((folder, "embedded-unet"), (saved("vit"), "vit")):
        with pytest.raises(ConfigurationError) as caught:
            load_backbone(settings(place, name=name, fingerprint="0" * 64), task="classification", classes=3)
        assert "0" * 64 in str(caught.value)
        assert fingerprint(load_folder(place)) in str(caught.value)


def test_unknown_names_and_missing_folders_are_configuration_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"expected one of {', '.join(FAMILIES)}, got 'alexnet'"):
        load_backbone(BackboneSettings(name="alexnet"), task="segmentation", classes=3)
    with pytest.raises(ConfigurationError, match="nowhere: expected a folder with a backbone, got none"):
        load_backbone(settings(tmp_path / "nowhere"), task="segmentation", classes=3)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="file: expected a folder with a backbone, got a file"):
        load_backbone(settings(tmp_path / "file"), task="segmentation", classes=3)
    with pytest.raises(ConfigurationError, match=r"vit: no weights come with the package.*backbone\.hub"):
        load_backbone(BackboneSettings(name="vit"), task="classification", classes=2)
    with pytest.raises(DataError, match=r"expected backbone\.json .* or config\.json .*, got neither"):
        load_folder(tmp_path)


def test_equal_backbones_give_equal_bytes(backbone: Backbone, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_backbone(backbone, tmp_path / name, {"seed": 1})
    for file in (path for path in (tmp_path / "one").rglob("*") if path.is_file()):
        assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes()


@pytest.mark.parametrize("ours", [True, False])
def test_loading_leaves_the_global_generator_alone(
    ours: bool, folder: Path, saved: Callable[[str], Path]
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_folder(folder if ours else saved("vit"))
    assert torch.equal(torch.rand(3), expected)


def test_the_description_names_fingerprint_and_provenance(folder: Path, unet: EmbeddedUNet) -> None:
    stored = json.loads((folder / "backbone.json").read_text())
    assert stored["fingerprint"] == fingerprint(unet)
    assert stored["provenance"] == {"note": "random"} == provenance_of(folder)
    assert stored["parameters"] == sum(p.numel() for p in unet.parameters())


def test_an_encoder_is_found_in_a_folder_of_ours_and_in_one_of_transformers(
    folder: Path, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    save_backbone(load_folder(saved("vit")), tmp_path / "ours", {})
    assert encoder_source("vit", tmp_path / "ours") == tmp_path / "ours" / "encoder"
    assert encoder_source("vit", saved("vit")) == saved("vit")
    with pytest.raises(ConfigurationError, match="expected backbone resnet, got vit"):
        encoder_source("resnet", tmp_path / "ours")
    with pytest.raises(ConfigurationError, match="expected an encoder of transformers, got"):
        encoder_source("embedded-unet", folder)


def test_a_truncated_file_is_refused_by_name(
    folder: Path, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    foreign = shutil.copytree(saved("vit"), tmp_path / "vit")
    for file in (folder / "weights.safetensors", foreign / "model.safetensors"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError, match=r"weights\.safetensors: expected a safetensors file"):
        load_folder(folder)
    with pytest.raises(DataError, match="vit: expected a vit encoder with safetensors weights"):
        load_folder(foreign)


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


def test_another_shape_in_a_folder_of_transformers_is_refused(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    foreign = shutil.copytree(saved("vit"), tmp_path / "vit")
    arrays = load_file(foreign / "model.safetensors")
    name = next(name for name in arrays if name.endswith("position_embeddings"))
    save_file({**arrays, name: arrays[name][:, 1:]}, foreign / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"position_embeddings of shape \(1, 16, 24\)"):
        load_folder(foreign)


def test_another_encoder_in_a_folder_of_ours_is_refused(saved: Callable[[str], Path], tmp_path: Path) -> None:
    save_backbone(load_folder(saved("vit")), tmp_path / "ours", {})
    weights = tmp_path / "ours" / "encoder" / "model.safetensors"
    arrays = load_file(weights)
    name = next(iter(arrays))
    save_file({**arrays, name: arrays[name] + 1}, weights, {"format": "pt"})
    with pytest.raises(DataError, match="do not belong together"):
        load_folder(tmp_path / "ours")


def test_a_pickle_is_refused_unread(folder: Path, saved: Callable[[str], Path], tmp_path: Path) -> None:
    (folder / "weights.safetensors").rename(folder / "weights.pt")
    with pytest.raises(DataError, match=r"expected weights in safetensors, got the pickle weights\.pt"):
        load_folder(folder)
    (folder / "backbone.json").unlink()
    with pytest.raises(DataError, match=r"expected weights in safetensors, got the pickle weights\.pt"):
        load_folder(folder)
    foreign = shutil.copytree(saved("vit"), tmp_path / "vit")
    (foreign / "model.safetensors").rename(foreign / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pytorch_model\.bin, a pickle"):
        load_folder(foreign)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"schema": 1}, DataError, "expected a backbone description of schema 2, got 1: another version"),
        ({"name": "alexnet"}, ConfigurationError, "json: expected one of .*, got backbone 'alexnet'"),
        ({"name": ["vit"]}, ConfigurationError, "json: expected one of"),
        ({"name": "vit"}, ConfigurationError, "encoder"),
        ({"config": {"depth": 3}}, DataError, "expected the configuration of embedded-unet"),
        ({"config": {"classes": -3}}, DataError, "expected the configuration of embedded-unet"),
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


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_description_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "backbone.json").write_text(text)
    with pytest.raises(DataError, match=r"backbone\.json: expected a"):
        load_folder(folder)


@pytest.mark.parametrize("kind", ["bert", None, ["vit"]])
def test_a_model_of_an_unknown_type_is_answered_with_the_known_ones(kind: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ConfigurationError, match=r"expected a model of a known type .*vit, .*sam"):
        load_folder(tmp_path)


def test_a_carried_folder_without_its_encoder_is_refused(mobilenet: Backbone, tmp_path: Path) -> None:
    save_backbone(mobilenet, tmp_path / "saved", {})
    shutil.rmtree(tmp_path / "saved" / "encoder")
    with pytest.raises(ConfigurationError, match="encoder"):
        load_folder(tmp_path / "saved")


def test_the_shipped_weights_are_small_fast_and_always_the_same() -> None:
    first = load_backbone(BackboneSettings(), task="segmentation", classes=3)
    started = time.perf_counter()
    second = load_backbone(BackboneSettings(), task="classification", classes=5)
    assert time.perf_counter() - started < 1.0  # 0.02 s on an idle core
    assert fingerprint(first) == fingerprint(second)
    assert sum(parameter.numel() for parameter in first.parameters()) <= 1_000_000
    shipped = EMBEDDED / "embedded-unet"
    assert (shipped / "weights.safetensors").stat().st_size <= 4_000_000
    provenance = json.loads((shipped / "backbone.json").read_text())["provenance"]
    assert provenance["data"]["name"] == "synthetic shapes"
    assert provenance["command"].startswith("fedprompt backbone pretrain --name embedded-unet")
