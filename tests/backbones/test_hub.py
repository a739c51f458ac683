"""Reading encoders of transformers: every way in which a folder can be wrong, and how images are prepared."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_convolutional import save_resnet

from fedprompt.backbones import fingerprint
from fedprompt.backbones.base import Preprocessing
from fedprompt.backbones.hub import read_preprocessing
from fedprompt.backbones.resnet import ResNet
from fedprompt.errors import ConfigurationError, DataError, FedpromptError

WEIGHT = "resnet.encoder.stages.1.layers.0.layer.0.convolution.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    save_resnet(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(whole, tmp_path / "encoder")


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **values: object) -> None:
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stored, **values}))


def refused(source: Path | str, error: type[FedpromptError], *words: str) -> None:
    """Refused with one sentence that has these words."""
    with pytest.raises(error) as caught:
        ResNet.from_pretrained(source, 2)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_loading_twice_gives_the_same_encoder_and_leaves_the_generator_alone(whole: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = ResNet.from_pretrained(whole)
    assert torch.equal(torch.rand(3), expected)
    assert fingerprint(ResNet.from_pretrained(whole)) == fingerprint(first)


def test_loading_is_silent(whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ResNet.from_pretrained(whole).save_encoder(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_half_precision_becomes_single(folder: Path) -> None:
    change_weights(folder, lambda arrays: arrays.update({n: a.half() for n, a in arrays.items() if a.ndim}))
    encoder = ResNet.from_pretrained(folder).encoder
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


def test_a_hub_id_is_looked_up(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def found(hub: str) -> Path:
        asked.append(hub)
        return whole

    monkeypatch.setattr("fedprompt.backbones.encoder_files.hub_folder", found)
    assert fingerprint(ResNet.from_pretrained("someone/model")) == fingerprint(ResNet.from_pretrained(whole))
    assert set(asked) == {"someone/model"}


@pytest.mark.parametrize("as_text", [False, True])
def test_a_missing_folder_is_named(tmp_path: Path, as_text: bool) -> None:
    nowhere = tmp_path / "nowhere"
    refused(
        str(nowhere) if as_text else nowhere, ConfigurationError, "nowhere: expected a folder", "got none"
    )


def test_another_architecture_is_refused(folder: Path) -> None:
    change_config(folder, model_type="vit")
    refused(folder, ConfigurationError, "encoder: expected an encoder of type resnet, got vit")


def test_images_of_other_than_three_channels_are_refused(folder: Path) -> None:
    change_config(folder, num_channels=1)
    refused(folder, ConfigurationError, "expected an encoder of images with 3 channels, got 1")


def test_a_configuration_is_needed(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, DataError, "config.json: no such file")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "expected a JSON file"),
        ("[1]", "expected a model_type"),
        ("{}", "expected a model_type (resnet)"),
    ],
)
def test_a_corrupt_configuration_is_named(folder: Path, text: str, words: str) -> None:
    (folder / "config.json").write_text(text)
    refused(folder, DataError, "config.json", words)


@pytest.mark.parametrize(
    "values",
    [{"hidden_sizes": "many"}, {"depths": [1, 1]}, {"embedding_size": -1}, {"hidden_act": "nope"}],
)
def test_a_configuration_that_makes_no_network_is_refused(folder: Path, values: dict[str, Any]) -> None:
    change_config(folder, **values)
    refused(folder, DataError, "encoder: expected a resnet encoder with safetensors weights, got one that")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attn_implementation", "someone/kernel"),  # code from the hub
        ("transformers_weights", "adapter_model.bin"),  # a pickle
        ("quantization_config", {"quant_method": "bitsandbytes"}),
        ("vision_config", {"attn_implementation": "someone/kernel"}),
    ],
)
def test_a_configuration_that_asks_for_more_than_weights_is_refused(
    folder: Path, key: str, value: object
) -> None:
    change_config(folder, **{key: value})
    refused(folder, DataError, "config.json: expected a plain model, got one with", "which is refused")


def test_an_adapter_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, DataError, "adapter_config.json: expected a plain model")


def test_missing_weights_are_not_made_up(folder: Path) -> None:
    change_weights(folder, lambda arrays: arrays.pop(WEIGHT))
    refused(folder, DataError, "encoder: expected all weights of a resnet, got none for", WEIGHT[7:])


def test_weights_of_another_shape_are_not_made_up(folder: Path) -> None:
    change_weights(folder, lambda arrays: arrays.update({WEIGHT: arrays[WEIGHT][:4].clone()}))
    refused(folder, DataError, WEIGHT[7:], "of shape (4, 8, 3, 3) instead of (12, 8, 3, 3)")


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    change_weights(folder, lambda arrays: arrays[WEIGHT].view(-1)[0].fill_(float("nan")))
    refused(folder, DataError, "to be finite, got NaN or infinity in", WEIGHT[7:])


def test_what_only_training_reads_may_lack(folder: Path) -> None:
    def drop(arrays: dict[str, torch.Tensor]) -> None:
        for name in [name for name in arrays if name.endswith("num_batches_tracked")]:
            del arrays[name]

    change_weights(folder, drop)
    assert ResNet.from_pretrained(folder).geometry.pooled == 20


@pytest.mark.parametrize("share", [0.5, 0.0])
def test_truncated_weights_are_refused(folder: Path, share: float) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: int(share * len(content))])
    refused(folder, DataError, "encoder: expected a resnet encoder with safetensors weights", "header")


def test_pickled_weights_are_refused_unread(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, DataError, "encoder: expected a resnet encoder with safetensors weights, got none")
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    refused(folder, DataError, "got pytorch_model.bin, a pickle, which can run code and is refused")


USUAL = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ViTImageProcessorPil", {"size": {"height": 64, "width": 64}}),
        ("CLIPImageProcessorPil", {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}}),
        ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 64}, "crop_pct": 1.0}),
        ("ViTImageProcessorPil", {"size": {"height": 64, "width": 64}, "rescale_factor": 1 / 127.5}),
        ("ViTImageProcessorPil", {"size": {"height": 64, "width": 64}, "do_normalize": False}),
        (
            "BitImageProcessorPil",
            {"size": {"shortest_edge": 64}, "do_center_crop": False, "do_rescale": False},
        ),
    ],
)
def test_images_are_prepared_as_the_models_own_processor_does(
    whole: Path, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    import transformers

    processor = getattr(transformers, name)(**options)
    processor.save_pretrained(tmp_path)
    found = read_preprocessing(tmp_path, USUAL)
    assert found.size == 64
    picture = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(8)).byte()
    image = picture.movedim(0, 2).numpy()
    expected = processor(image, do_resize=False, return_tensors="pt")["pixel_values"]
    backbone = ResNet(ResNet.from_pretrained(whole).encoder, found)
    torch.testing.assert_close(backbone.preprocess(picture[None] / 255), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("preprocessor_config.json", {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 4], "size": 96}),
        (
            "processor_config.json",
            {"image_processor": {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 4]}},
        ),
    ],
)
def test_older_and_newer_files_are_read(tmp_path: Path, file: str, content: dict[str, Any]) -> None:
    (tmp_path / file).write_text(json.dumps(content))
    size = 96 if file.startswith("pre") else 224
    assert read_preprocessing(tmp_path, USUAL) == Preprocessing((0.1, 0.2, 0.3), (1.0, 2.0, 4.0), size)


def test_without_a_processor_the_usual_preprocessing_holds_and_is_saved(whole: Path, tmp_path: Path) -> None:
    assert ResNet.from_pretrained(whole).preprocessing == USUAL
    other = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 96)
    ResNet(ResNet.from_pretrained(whole).encoder, other).save_encoder(tmp_path)
    assert ResNet.from_pretrained(tmp_path).preprocessing == other


@pytest.mark.parametrize(
    "content",
    [
        [1],
        {"image_mean": [0.5, 0.5]},
        {"image_mean": 0.5},
        {"image_std": [0.5, 0.5, 0.0]},
        {"image_mean": ["nan"] * 3},
        {"size": {"depth": 3}},
        {"size": -64},
        {"rescale_factor": 0},
    ],
)
def test_other_preprocessing_is_refused(tmp_path: Path, content: object) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"preprocessor_config\.json: expected .*image_mean"):
        read_preprocessing(tmp_path, USUAL)
