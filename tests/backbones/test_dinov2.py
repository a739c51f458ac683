"""DINOv2, with and without registers, against the library's own."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from tiny_transformers import tiny_dinov2, tiny_vit
from torch import Tensor

from fedprompt.backbones.base import Preprocessing, fingerprint, freeze
from fedprompt.backbones.dinov2 import DINOv2
from fedprompt.errors import ConfigurationError

VARIANTS: dict[str, dict[str, int | bool]] = {
    "plain": {},
    "swiglu": {"swiglu": True},
    "registers": {"registers": 3},
}


@pytest.fixture(scope="module", params=VARIANTS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dinov2(tmp_path_factory.mktemp(request.param), **VARIANTS[request.param])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def backbone(folder: Path) -> DINOv2:
    found = DINOv2.from_pretrained(folder)
    freeze(found)
    return found


def draw(batch: int, height: int, width: int) -> Tensor:
    return torch.randn((batch, 3, height, width), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(("height", "width"), [(28, 28), (56, 56), (21, 35)])
def test_features_are_the_librarys_last_hidden_state_without_registers(
    folder: Path, backbone: DINOv2, height: int, width: int
) -> None:
    from transformers import AutoModel

    library = AutoModel.from_pretrained(folder).eval()
    registers = getattr(library.config, "num_register_tokens", 0)
    images = draw(2, height, width)
    with torch.no_grad():
        expected = library(images).last_hidden_state
    cls, grid = backbone.encode(images)
    rows, columns = height // 7, width // 7
    assert grid.shape == (2, 24, rows, columns)
    assert (cls.flatten(1) - expected[:, 0]).abs().max() < 1e-5
    patches = expected[:, 1 + registers :].reshape(2, rows, columns, 24).permute(0, 3, 1, 2)
    assert (grid - patches).abs().max() < 1e-5
    assert expected.shape[1] == 1 + registers + rows * columns


def test_pool_leaves_registers_out(backbone: DINOv2) -> None:
    cls, grid = backbone.encode(draw(2, 35, 35))
    expected = torch.cat([cls[:, :, 0, 0], grid.flatten(2).mean(dim=2)], dim=1)
    torch.testing.assert_close(backbone.pool((cls, grid)), expected)
    assert backbone.geometry.pooled == 48
    assert backbone.geometry.multiple == 7


def test_it_is_written_read_and_pickled(backbone: DINOv2, tmp_path: Path) -> None:
    backbone.save_encoder(tmp_path)
    again = DINOv2.rebuild(json.loads(json.dumps(backbone.config())), tmp_path)
    assert again.preprocessing == Preprocessing((0.4,) * 3, (0.2,) * 3, 28)
    assert fingerprint(again) == fingerprint(backbone)
    travelled = pickle.loads(pickle.dumps(backbone))  # noqa: S301 - as engines with worker processes do
    assert fingerprint(travelled) == fingerprint(backbone)


def test_another_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="type dinov2 or dinov2_with_registers, got vit"):
        DINOv2.from_pretrained(tiny_vit(tmp_path))
