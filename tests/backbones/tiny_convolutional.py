"""Tiny random convolutional backbones, saved by transformers and loaded like real ones.

`FACTORIES` has one function per family: an empty folder and the number of classes (None: no decoder, unless
the family always has one) to a frozen backbone. Equal arguments give equal weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedprompt.backbones import Backbone, freeze
from fedprompt.backbones.convnext import ConvNeXt
from fedprompt.backbones.embedded_unet import EmbeddedUNet
from fedprompt.backbones.hub import HubBackbone
from fedprompt.backbones.mobilenet_v2 import MobileNetV2
from fedprompt.backbones.monai_unet import MonaiUNet
from fedprompt.backbones.resnet import ResNet
from fedprompt.backbones.swin_unetr import SwinUNETR

__all__ = ["ENCODERS", "FACTORIES", "save_convnext", "save_convnextv2", "save_mobilenet", "save_resnet"]

WIDTHS = (8, 8, 4, 4)


def save_mobilenet(folder: Path) -> None:
    """A random classifier of the smallest MobileNetV2."""
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(depth_multiplier=0.1, finegrained_output=False, num_labels=3)
    _save(MobileNetV2ForImageClassification, config, folder)


def save_resnet(folder: Path, layer_type: str = "basic", **options: Any) -> None:
    """A random ResNet classifier with one block per stage."""
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]}
    _save(
        ResNetForImageClassification, ResNetConfig(**{**sizes, "layer_type": layer_type, **options}), folder
    )


def save_convnext(folder: Path) -> None:
    """A random ConvNeXt classifier with one block per stage."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 2, 1], layer_scale_init_value=0.5)
    _save(ConvNextForImageClassification, config, folder)


def save_convnextv2(folder: Path) -> None:
    """The same of the second version."""
    from transformers import ConvNextV2Config, ConvNextV2ForImageClassification

    config = ConvNextV2Config(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 2, 1])
    _save(ConvNextV2ForImageClassification, config, folder)


ENCODERS: dict[str, Callable[[Path], None]] = {
    "mobilenet-v2": save_mobilenet,
    "resnet": save_resnet,
    "convnext": save_convnext,
}


def _save(network: Callable[[Any], Any], config: Any, folder: Path) -> None:
    with _seeded(3):
        model = network(config)
        _randomise(model)
    model.save_pretrained(folder)


def _from_hub(family: type[HubBackbone]) -> Callable[[Path, int | None], Backbone]:
    def build(folder: Path, classes: int | None) -> Backbone:
        if not (folder / "config.json").exists():
            ENCODERS[family.name](folder)
        with _seeded(2):
            backbone = family.from_pretrained(folder, classes, decoder_widths=WIDTHS)
            if backbone.decoder is not None:
                _randomise(backbone.decoder)
        freeze(backbone)
        return backbone

    return build


def _own(build: Callable[[int], Backbone]) -> Callable[[Path, int | None], Backbone]:
    """Families that always have a decoder: in classification it is not used."""

    def made(folder: Path, classes: int | None) -> Backbone:
        with _seeded(1):
            backbone = build(classes or 2)
            _randomise(backbone)
        freeze(backbone)
        return backbone

    return made


FACTORIES: dict[str, Callable[[Path, int | None], Backbone]] = {
    "embedded-unet": _own(lambda classes: EmbeddedUNet(classes, (4, 4, 8, 8, 8), (8, 4, 4))),
    "mobilenet-v2": _from_hub(MobileNetV2),
    "resnet": _from_hub(ResNet),
    "convnext": _from_hub(ConvNeXt),
    "monai-unet": _own(lambda classes: MonaiUNet(classes, (4, 8, 12, 16, 20))),
    "swin-unetr": _own(lambda classes: SwinUNETR(classes, 12)),
}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _randomise(network: nn.Module) -> None:
    """Statistics and scales that a training leaves behind, in place of zeros and ones."""
    for name, statistics in network.named_buffers():
        if name.endswith("running_var"):
            statistics.uniform_(0.5, 2.0)
        elif name.endswith("running_mean"):
            statistics.normal_()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("grn.weight", "grn.bias", "relative_position_bias_table")):
                parameter.normal_()
