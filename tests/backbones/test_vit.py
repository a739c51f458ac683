"""The Vision Transformer against the library's own."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from tiny_transformers import tiny_dinov2, tiny_vit
from torch import Tensor

from fedprompt.backbones.base import Preprocessing, fingerprint, freeze
from fedprompt.backbones.vit import ViT
from fedprompt.errors import ConfigurationError, DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def backbone(folder: Path) -> ViT:
    found = ViT.from_pretrained(folder)
    freeze(found)
    return found


def draw(batch: int, height: int, width: int) -> Tensor:
    return torch.randn((batch, 3, height, width), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (24, 24), (40, 56), (16, 64)])
def test_features_are_the_librarys_last_hidden_state(
    folder: Path, backbone: ViT, height: int, width: int
) -> None:
    from transformers import ViTModel

    library = ViTModel.from_pretrained(folder).eval()  # with the pooler, which changes nothing before it
    images = draw(2, height, width)
    with torch.no_grad():
        expected = library(images, interpolate_pos_encoding=True).last_hidden_state
    cls, grid = backbone.encode(images)
    assert cls.shape == (2, 24, 1, 1)
    assert grid.shape == (2, 24, height // 8, width // 8)
    assert (cls.flatten(1) - expected[:, 0]).abs().max() < 1e-5
    for row in range(height // 8):
        for column in range(width // 8):
            patch = expected[:, 1 + row * (width // 8) + column]
            assert (grid[:, :, row, column] - patch).abs().max() < 1e-5


def test_pool_is_the_class_token_and_the_mean_patch(backbone: ViT) -> None:
    features = backbone.encode(draw(2, 40, 40))
    expected = torch.cat([features[0][:, :, 0, 0], features[1].flatten(2).mean(dim=2)], dim=1)
    torch.testing.assert_close(backbone.pool(features), expected)


def test_one_image_gets_the_same_features_as_in_a_batch(backbone: ViT) -> None:
    images = draw(3, 40, 40)
    for together, alone in zip(backbone.encode(images), backbone.encode(images[1:2]), strict=True):
        torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_a_decoder_reaches_a_quarter_of_the_patch_size(folder: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = ViT.from_pretrained(folder, classes=3)
    freeze(backbone)
    images = draw(2, 40, 24)
    seen: list[tuple[int, ...]] = []

    def note(_: int, x: Tensor) -> Tensor:
        seen.append(tuple(x.shape[1:]))
        return x

    backbone.decode(backbone.encode(images), note)
    assert seen == [(64, 5, 3), (32, 10, 6), (32, 20, 12)]
    assert backbone.geometry.decoder_channels == (64, 32, 32)
    assert backbone(images).shape == (2, 3, 40, 24)


def test_a_state_needs_a_square_image(backbone: ViT) -> None:
    with pytest.raises(ValueError, match="expected square images, got 40 x 24"):
        backbone.encode(draw(1, 40, 24), stop=1)


def test_sizes_are_multiples_of_a_patch(backbone: ViT) -> None:
    backbone.check_size(40)
    with pytest.raises(ConfigurationError, match=r"multiple of 8 \(it was trained at 32\), got 36"):
        backbone.check_size(36)


def test_the_processor_file_gives_the_preprocessing(backbone: ViT) -> None:
    assert backbone.preprocessing == Preprocessing((0.5,) * 3, (0.25,) * 3, 32)


def test_a_written_encoder_is_read_back_the_same(backbone: ViT, tmp_path: Path) -> None:
    backbone.save_encoder(tmp_path)
    again = ViT.rebuild(json.loads(json.dumps(backbone.config())), tmp_path)
    assert fingerprint(again) == fingerprint(backbone)


def test_it_travels_between_processes(backbone: ViT) -> None:
    backbone.encode(draw(1, 32, 32))
    again = pickle.loads(pickle.dumps(backbone))  # noqa: S301 - as engines with worker processes do
    assert fingerprint(again) == fingerprint(backbone)
    assert torch.equal(again.encode(draw(1, 32, 32))[1], backbone.encode(draw(1, 32, 32))[1])


def test_another_family_and_missing_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected an encoder of type vit, got dinov2"):
        ViT.from_pretrained(tiny_dinov2(tmp_path / "other"))
    from safetensors.torch import load_file, save_file

    broken = tiny_vit(tmp_path / "broken")
    stored = load_file(broken / "model.safetensors")
    lost = next(name for name in stored if "layernorm_after" in name)
    del stored[lost]
    save_file(stored, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="expected all weights of a vit, got none for"):
        ViT.from_pretrained(broken)


def test_weights_of_blocks_that_the_configuration_does_not_have_are_refused(tmp_path: Path) -> None:
    folder = tiny_vit(tmp_path / "encoder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(DataError, match=r"that its config\.json describes, got \S*layer\S*\.2\."):
        ViT.from_pretrained(folder)


def test_without_a_processor_the_configuration_tells_the_size(tmp_path: Path) -> None:
    folder = tiny_vit(tmp_path / "encoder")
    (folder / "preprocessor_config.json").unlink()
    found = ViT.from_pretrained(folder).preprocessing
    assert (found.size, found.mean) == (32, ViT.usual.mean)
