"""Backbones of usual size with random weights, for benchmarks."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from fedprompt.backbones.base import Backbone, freeze
from fedprompt.config import Study, study_from_mapping
from fedprompt.families import Task, backbone_class

Row = dict[str, Any]
Prompts = dict[str, dict[str, Any]]  # tables of the study

# The usual size of every family: the defaults of transformers, but DINOv2 as published.
ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViT-B/16", "ViT", {}),
    "dinov2": ("DINOv2-B/14", "Dinov2", {"image_size": 518}),
    "clip": ("CLIP ViT-B/32", "CLIP", {}),
    "sam": ("SAM ViT-B", "Sam", {}),
    "sam2": ("SAM 2 Hiera-tiny", "Sam2", {}),
    "mobilenet-v2": ("MobileNetV2 1.0", "MobileNetV2", {}),
    "resnet": ("ResNet-50", "ResNet", {}),
    "convnext": ("ConvNeXt-tiny", "ConvNext", {}),
}
OTHERS = {
    "embedded-unet": "embedded U-Net",
    "monai-unet": "MONAI UNet",
    "swin-unetr": "MONAI SwinUNETR (width 24)",
}
# Prompts of the cache benchmark, all of classification. By default a step with tokens sees a part of the
# patches, with and without the cache; the last row sees all.
BATCH = 8


def make_study(task: str, name: str, prompts: Prompts, **tables: Any) -> Study:
    values = {"name": "benchmark", "task": task, "backbone": {"name": name}, "prompts": prompts}
    return study_from_mapping({**values, **tables}, "benchmark")


def random_network(name: str) -> Any:
    """The network of transformers at its usual size, as its own initialisation draws it."""
    _, prefix, options = ENCODERS[name]
    config = getattr(transformers, f"{prefix}Config")(**options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = {"add_pooling_layer": False} if name == "vit" else {}  # as the family loads it
        return getattr(transformers, f"{prefix}Model")(config, **options)


class Words:
    """Stands for CLIP's tokenizer, to count a text context: every word is one token, as in "a photo of a"."""

    def get_vocab(self) -> dict[str, int]:
        return {}

    def __call__(self, texts: list[str], **_options: Any) -> dict[str, torch.Tensor]:
        split = [["<start>", *text.split(), "<end>"] for text in texts]
        known = {word: i for i, word in enumerate(sorted({w for words in split for w in words}))}
        length = max(map(len, split))
        ids = [[known[w] for w in words] + [0] * (length - len(words)) for words in split]
        mask = [[1] * len(words) + [0] * (length - len(words)) for words in split]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def random_backbone(name: str, task: Task, classes: int) -> Backbone:
    """A frozen backbone of the usual size with random weights; segmentation gets a new decoder."""
    found: Any = backbone_class(name)
    if name not in ENCODERS:
        backbone = found(classes=classes)
    elif name == "clip":
        backbone = found(random_network(name), found.usual, Words())
    else:
        backbone = found(random_network(name), found.usual, classes if task == "segmentation" else None)
    freeze(backbone)
    return backbone
