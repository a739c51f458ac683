"""The MobileNetV2 encoder: the same numbers as transformers, with a decoder and for classification."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedprompt.backbones import fingerprint
from fedprompt.backbones.base import Preprocessing
from fedprompt.backbones.hub import read_encoder
from fedprompt.backbones.mobilenet_v2 import MobileNetV2
from fedprompt.errors import ConfigurationError, DataError

HALF = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 224)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand((2, 3, 96, 64), generator=torch.Generator().manual_seed(4)) * 2 - 1


def test_features_are_the_hidden_states_of_transformers(
    mobilenet: MobileNetV2, encoder_folder: Path, images: torch.Tensor
) -> None:
    from transformers import MobileNetV2Model

    reference = MobileNetV2Model.from_pretrained(encoder_folder).eval()
    with torch.no_grad():
        states = reference(images, output_hidden_states=True).hidden_states
        features = mobilenet.encode(images)
    last_of_each_size = {state.shape[-1]: state for state in states}
    expected = [last_of_each_size[64 // stride] for stride in (4, 8, 16, 32)]
    for got, wanted in zip(features, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_without_a_decoder_the_pooled_feature_is_what_the_classifier_reads(
    encoder_folder: Path, images: torch.Tensor
) -> None:
    from transformers import MobileNetV2ForImageClassification

    reference = MobileNetV2ForImageClassification.from_pretrained(encoder_folder).eval()
    backbone = MobileNetV2.from_pretrained(encoder_folder)
    with torch.no_grad():
        features = backbone.encode(images)
        pooled = backbone.pool(features)
        expected = reference.mobilenet_v2(images).pooler_output
        torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(reference.classifier(pooled), reference(images).logits)
    assert backbone.geometry.channels == (features[0].shape[1],) == (backbone.geometry.pooled,)


def test_the_full_size_has_a_light_decoder_or_1280_channels_to_pool() -> None:
    from transformers import MobileNetV2Config, MobileNetV2Model

    whole = MobileNetV2(MobileNetV2Model(MobileNetV2Config()), HALF)
    assert (whole.geometry.pooled, whole.geometry.strides) == (1280, (32,))
    backbone = MobileNetV2(MobileNetV2Model(MobileNetV2Config()), HALF, classes=2)
    own = sum(p.numel() for n, p in backbone.named_parameters() if not n.startswith("encoder."))
    assert backbone.geometry.channels == (24, 32, 96, 320)
    assert 40_000 < own < 60_000
    assert sum(p.numel() for p in backbone.parameters()) < 1_900_000


def test_an_encoder_saved_under_a_decoder_cannot_classify(
    mobilenet: MobileNetV2, encoder_folder: Path, tmp_path: Path
) -> None:
    mobilenet.save_encoder(tmp_path)
    torch.manual_seed(2)
    again = MobileNetV2.from_pretrained(tmp_path, 2, decoder_widths=(8, 8, 4, 4))
    for got, wanted in zip(again.encoder.parameters(), mobilenet.encoder.parameters(), strict=True):
        assert torch.equal(got, wanted)
    with pytest.raises(DataError, match=r"expected all weights of a mobilenet-v2, got none for conv_1x1\."):
        MobileNetV2.from_pretrained(tmp_path)
    MobileNetV2.from_pretrained(encoder_folder).save_encoder(tmp_path / "whole")
    whole = MobileNetV2.from_pretrained(tmp_path / "whole")
    assert fingerprint(whole) == fingerprint(MobileNetV2.from_pretrained(encoder_folder))


def test_a_last_convolution_that_is_not_used_may_lack(tmp_path: Path, encoder_folder: Path) -> None:
    folder = shutil.copytree(encoder_folder, tmp_path / "encoder")
    arrays = load_file(folder / "model.safetensors")
    kept = {name: array for name, array in arrays.items() if ".conv_1x1." not in name}
    assert len(kept) < len(arrays)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    encoder = read_encoder(MobileNetV2, folder, decoder=True)
    assert torch.equal(torch.rand(3), expected)
    assert not encoder.conv_1x1.convolution.weight.any()  # not random, whoever reads it
    assert MobileNetV2.from_pretrained(folder, 2).classes == 2


def test_another_output_stride_is_refused() -> None:
    from transformers import MobileNetV2Config, MobileNetV2Model

    encoder = MobileNetV2Model(MobileNetV2Config(depth_multiplier=0.1, output_stride=16))
    with pytest.raises(ConfigurationError, match="expected an encoder of output stride 32, got 16"):
        MobileNetV2(encoder, HALF, classes=2)
