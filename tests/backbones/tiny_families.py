"""A tiny random backbone of every family, saved to disk and loaded by the code that loads real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tiny_convolutional import FACTORIES as CONVOLUTIONAL
from tiny_sam import SIDE, save_tiny_sam, save_tiny_sam2
from tiny_transformers import tiny_clip, tiny_dinov2, tiny_vit

from fedprompt.backbones import Backbone, freeze
from fedprompt.families import FAMILIES, backbone_class

__all__ = ["IMAGE", "TINY"]

Make = Callable[[Path, int | None], Backbone]  # a folder to save in, and the classes of the decoder


def _saved(name: str, save: Callable[[Path], Path]) -> Make:
    def make(folder: Path, classes: int | None) -> Backbone:
        family = backbone_class(name)
        has_decoder = "modulation" in FAMILIES[name].prompts.get("segmentation", ())
        source = folder if (folder / "config.json").exists() else save(folder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            backbone = family.from_pretrained(source, classes if has_decoder else None)
        freeze(backbone)
        return backbone

    return make


TINY: dict[str, Make] = {
    **CONVOLUTIONAL,
    "vit": _saved("vit", tiny_vit),
    "dinov2": _saved("dinov2", tiny_dinov2),
    "clip": _saved("clip", tiny_clip),
    "sam": _saved("sam", save_tiny_sam),
    "sam2": _saved("sam2", save_tiny_sam2),
}

# Side of an image that fits.
IMAGE = dict.fromkeys(CONVOLUTIONAL, 64) | {
    "vit": 32,
    "dinov2": 28,
    "clip": 32,
    "sam": SIDE,
    "sam2": SIDE,
}
