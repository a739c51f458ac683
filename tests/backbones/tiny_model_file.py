"""A network of another group as a model file and weights, a small U-Net with BatchNorm; images for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import UNet
from PIL import Image
from safetensors.torch import save_file

__all__ = ["write_images", "write_model_file"]

_TOML = """
[network]
class = "monai.networks.nets:UNet"
weights = "weights.safetensors"
[network.arguments]
spatial_dims = 2
in_channels = {channels}
out_channels = {outputs}
channels = [4, 8]
strides = [2]
norm = "batch"
[input]
{size}mean = {mean}
std = {std}
[output]
classes = {classes}
activation = "{activation}"
"""


def write_model_file(
    folder: Path,
    *,
    channels: int = 3,
    classes: tuple[str, ...] = ("background", "polyp"),
    size: int | list[int] | None = 32,
    activation: str = "softmax",
    seed: int = 0,
) -> Path:
    """Writes `model.toml` and `weights.safetensors`; returns the path of the former.

    The weights are random but sensible: BatchNorm's statistics are those of random images.
    """
    outputs = len(classes) - (activation == "sigmoid")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = UNet(2, channels, outputs, channels=(4, 8), strides=(2,), norm="batch")
        with torch.no_grad():
            for _ in range(20):
                network((torch.rand(4, channels, 32, 32) - 0.5) / 0.25)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), folder / "weights.safetensors")
    file = folder / "model.toml"
    file.write_text(
        _TOML.format(
            channels=channels,
            outputs=outputs,
            size="" if size is None else f"size = {size}\n",
            mean=[0.5] * channels,
            std=[0.25] * channels,
            classes=list(classes),
            activation=activation,
        )
    )
    return file


def write_images(folder: Path, count: int, first: int = 0) -> list[Path]:
    """Smooth colour images of 40 × 56 pixels; the later half is darker, as from another scanner."""
    folder.mkdir()
    rng = np.random.default_rng(first)
    for number in range(first, first + count):
        coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((56, 40), Image.Resampling.BICUBIC)
        dark = 0.4 if number >= first + count / 2 else 1.0
        image.point(lambda value, dark=dark: value * dark).save(folder / f"{number:03}.png")
    return sorted(folder.iterdir())
