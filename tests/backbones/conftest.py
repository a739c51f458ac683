"""Tiny backbones, saved and loaded like real ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_convolutional import ENCODERS, FACTORIES

from fedprompt.backbones import Backbone
from fedprompt.backbones.embedded_unet import EmbeddedUNet
from fedprompt.backbones.mobilenet_v2 import MobileNetV2


@pytest.fixture(scope="session")
def encoder_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with a tiny random encoder as transformers saves it, by family."""
    folders = {name: tmp_path_factory.mktemp(name) for name in FACTORIES}
    for name, save in ENCODERS.items():
        save(folders[name])
    return folders


@pytest.fixture(scope="session")
def encoder_folder(encoder_folders: dict[str, Path]) -> Path:
    """A random classifier of the smallest MobileNetV2, as transformers saves it."""
    return encoder_folders["mobilenet-v2"]


@pytest.fixture
def unet(tmp_path: Path) -> EmbeddedUNet:
    backbone = FACTORIES["embedded-unet"](tmp_path, 3)
    assert isinstance(backbone, EmbeddedUNet)
    return backbone


@pytest.fixture
def mobilenet(encoder_folder: Path) -> MobileNetV2:
    backbone = FACTORIES["mobilenet-v2"](encoder_folder, 2)
    assert isinstance(backbone, MobileNetV2)
    return backbone


@pytest.fixture(params=list(FACTORIES))
def backbone(request: pytest.FixtureRequest, encoder_folders: dict[str, Path]) -> Backbone:
    """One of each family with a decoder."""
    return FACTORIES[request.param](encoder_folders[request.param], 3)


@pytest.fixture(params=list(ENCODERS))
def encoder(request: pytest.FixtureRequest, encoder_folders: dict[str, Path]) -> Backbone:
    """One of each family of transformers, without a decoder."""
    return FACTORIES[request.param](encoder_folders[request.param], None)
