"""The MobileNetV2 encoder: the same numbers as transformers, nothing random in place of missing weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedprompt.backbones import fingerprint
from fedprompt.backbones.mobilenet_v2 import MobileNetV2
from fedprompt.errors import ConfigurationError, DataError


def test_features_are_the_hidden_states_of_transformers(mobilenet: MobileNetV2, encoder_folder: Path) -> None:
    from transformers import MobileNetV2Model

    reference = MobileNetV2Model.from_pretrained(encoder_folder).eval()
    images = torch.rand((2, 3, 96, 64), generator=torch.Generator().manual_seed(4)) * 2 - 1
    with torch.no_grad():
        states = reference(images, output_hidden_states=True).hidden_states
        features = mobilenet.encode(images)
    last_of_each_size = {state.shape[-1]: state for state in states}
    expected = [last_of_each_size[64 // stride] for stride in (4, 8, 16, 32)]
    for got, wanted in zip(features, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_training_the_decoder_leaves_the_encoder_in_eval_mode(mobilenet: MobileNetV2) -> None:
    mobilenet.train()
    assert not any(module.training for module in mobilenet.encoder.modules())
    assert mobilenet.smooth.training


def test_the_decoder_of_the_full_size_is_light() -> None:
    from transformers import MobileNetV2Config, MobileNetV2Model

    backbone = MobileNetV2(MobileNetV2Model(MobileNetV2Config(), add_pooling_layer=False), classes=2)
    own = sum(p.numel() for n, p in backbone.named_parameters() if not n.startswith("encoder."))
    assert backbone.geometry.channels == (24, 32, 96, 320)
    assert 40_000 < own < 60_000


def test_loading_twice_gives_the_same_encoder(mobilenet: MobileNetV2, encoder_folder: Path) -> None:
    torch.manual_seed(2)
    again = MobileNetV2.from_encoder(encoder_folder, 2, decoder_widths=(8, 8, 4, 4))
    assert fingerprint(again) == fingerprint(mobilenet)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere: expected a folder with a MobileNetV2 encoder"):
        MobileNetV2.from_encoder(tmp_path / "nowhere", 2)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ConfigurationError, match="expected an encoder of type mobilenet_v2, got vit"):
        MobileNetV2.from_encoder(tmp_path, 2)


def test_missing_weights_are_not_made_up(tmp_path: Path, encoder_folder: Path) -> None:
    folder = shutil.copytree(encoder_folder, tmp_path / "encoder")
    arrays = load_file(folder / "model.safetensors")
    del arrays["mobilenet_v2.layer.3.conv_3x3.convolution.weight"]
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"encoder: expected all weights.*layer\.3\.conv_3x3"):
        MobileNetV2.from_encoder(folder, 2)


def test_truncated_weights_are_refused(tmp_path: Path, encoder_folder: Path) -> None:
    folder = shutil.copytree(encoder_folder, tmp_path / "encoder")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="encoder: expected a MobileNetV2 encoder with safetensors weights"):
        MobileNetV2.from_encoder(folder, 2)


def test_pickled_weights_are_refused(tmp_path: Path, encoder_folder: Path) -> None:
    folder = shutil.copytree(encoder_folder, tmp_path / "encoder")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match="safetensors"):
        MobileNetV2.from_encoder(folder, 2)
