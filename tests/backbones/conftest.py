"""Tiny backbones: a thin U-Net and a random MobileNetV2, saved and loaded like real ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedprompt.backbones import SegmentationBackbone, freeze
from fedprompt.backbones.embedded_unet import EmbeddedUNet
from fedprompt.backbones.mobilenet_v2 import MobileNetV2


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random classifier of the smallest MobileNetV2, as transformers saves it."""
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    folder = tmp_path_factory.mktemp("encoder")
    config = MobileNetV2Config(depth_multiplier=0.1, finegrained_output=False, num_labels=3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = MobileNetV2ForImageClassification(config)
        for name, statistics in network.named_buffers():
            if name.endswith("running_var"):
                statistics.uniform_(0.5, 2.0)
    network.save_pretrained(folder)
    return folder


@pytest.fixture
def unet() -> EmbeddedUNet:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        backbone = EmbeddedUNet(classes=3, widths=(4, 4, 8, 8, 8), decoder_widths=(8, 4, 4))
        _trained_statistics(backbone)
    freeze(backbone)
    return backbone


@pytest.fixture
def mobilenet(encoder_folder: Path) -> MobileNetV2:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        backbone = MobileNetV2.from_encoder(encoder_folder, 2, decoder_widths=(8, 8, 4, 4))
    freeze(backbone)
    return backbone


@pytest.fixture(params=["unet", "mobilenet"])
def backbone(request: pytest.FixtureRequest) -> SegmentationBackbone:
    """One of each family."""
    found: SegmentationBackbone = request.getfixturevalue(request.param)
    return found


def _trained_statistics(network: torch.nn.Module) -> None:
    for name, statistics in network.named_buffers():
        if name.endswith("running_var"):
            statistics.uniform_(0.5, 2.0)
        elif name.endswith("running_mean"):
            statistics.normal_()
