r"""Trains the source networks of the adaptation benchmark: one task, one network, one seed per call.

    python benchmarks/adaptation/sources.py --network unet --task polyp --data DATA/polyp-public/kvasir \
        --out SOURCES/unet-kvasir-0

Writes a folder that `fedprompt adapt --model` takes: `model.toml` and `weights.safetensors`. Only the train
split of the data is seen.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))

CLASSES = {"polyp": ["background", "polyp"], "fundus": ["background", "rim", "cup"]}
MEAN, STD = 0.5, 0.25
UNET = {
    "spatial_dims": 2,
    "in_channels": 3,
    "channels": [16, 32, 64, 128, 256],
    "strides": [2, 2, 2, 2],
    "num_res_units": 2,
    "norm": "BATCH",
}


def read_split(folder: Path, split: str | None, side: int) -> tuple[Tensor, Tensor]:
    """Images (N, 3, side, side) uint8 and masks (N, side, side) uint8 in the order of `cases.csv`."""
    rows = [line.split(",") for line in (folder / "cases.csv").read_text().splitlines()[1:]]
    images, masks = [], []
    for image, mask, part, _ in rows:
        if split is None or part == split:
            picture = (
                Image.open(folder / image).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
            )
            labels = Image.open(folder / mask).resize((side, side), Image.Resampling.NEAREST)
            images.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
            masks.append(torch.from_numpy(np.array(labels)))
    return torch.stack(images), torch.stack(masks)


def network(name: str, classes: int, encoder: Path | None) -> tuple[nn.Module, str, dict[str, object]]:
    """The untrained network, its importable name and its arguments."""
    if name == "unet":
        from monai.networks.nets import UNet

        arguments: dict[str, object] = {**UNET, "out_channels": classes}
        return UNet(**arguments), "monai.networks.nets:UNet", arguments
    from networks import MobileNetSegmenter
    from transformers import MobileNetV2Model

    model = MobileNetSegmenter(classes)
    if encoder is None:
        raise SystemExit("--network mobilenet needs --encoder")
    state = MobileNetV2Model.from_pretrained(encoder, add_pooling_layer=False).state_dict()
    model.encoder.load_state_dict({n: t for n, t in state.items() if not n.startswith("conv_1x1.")})
    return model, "networks:MobileNetSegmenter", {"classes": classes}


def augmented(images: Tensor, masks: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirror, rotation (15 degrees), scale (0.8 to 1.25), brightness and noise, per image."""
    count = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=rng)

    angle, scale = uniform(-math.pi / 12, math.pi / 12), torch.exp(uniform(-0.22, 0.22))
    flips = torch.randint(0, 2, (count, 2), generator=rng) * 2.0 - 1
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    shift = (torch.rand(count, 2, generator=rng) - 0.5) * 0.2
    theta = torch.stack(
        [
            torch.stack([cos * flips[:, 0], -sin * flips[:, 1], shift[:, 0]], 1),
            torch.stack([sin * flips[:, 0], cos * flips[:, 1], shift[:, 1]], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    labels = F.grid_sample(
        masks[:, None].float(), grid, mode="nearest", padding_mode="reflection", align_corners=False
    )
    light = uniform(0.85, 1.15).view(-1, 1, 1, 1)
    noise = torch.randn(moved.shape, generator=rng) * 0.02
    return (moved * light + noise).clamp(0, 1), labels[:, 0].long()


def loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy plus one minus soft Dice per image and class."""
    probabilities = logits.softmax(1)
    one_hot = F.one_hot(target, logits.shape[1]).movedim(-1, 1).float()
    overlap = (probabilities * one_hot).sum((2, 3))
    dice = (2 * overlap + 1) / (probabilities.sum((2, 3)) + one_hot.sum((2, 3)) + 1)
    return F.cross_entropy(logits, target) + 1 - dice[:, 1:].mean()


def train(
    model: nn.Module, images: Tensor, masks: Tensor, steps: int, batch: int, rate: float, seed: int
) -> None:
    """AdamW with one cycle of the learning rate; BatchNorm learns its running statistics."""
    rng = torch.Generator().manual_seed(seed)
    model.to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    order = torch.empty(0, dtype=torch.long)
    start = time.perf_counter()
    for step in range(steps):
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(len(images), generator=rng)])
        rows, order = order[:batch], order[batch:]
        seen, target = augmented(images[rows].float() / 255, masks[rows], rng)
        value = loss(model(((seen - MEAN) / STD).contiguous(memory_format=torch.channels_last)), target)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 99:
            print(
                f"step {step + 1}/{steps} loss {value.item():.3f} {time.perf_counter() - start:.0f} s",
                flush=True,
            )
    model.to(memory_format=torch.contiguous_format).eval()


def save(
    folder: Path, model: nn.Module, name: str, arguments: dict[str, object], classes: list[str], side: int
) -> None:
    """Weights and their description."""
    import json

    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, str(folder / "weights.safetensors"))
    lines = ["[network]", f'class = "{name}"', 'weights = "weights.safetensors"', "", "[network.arguments]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in arguments.items()]
    lines += ["", "[input]", f"size = {side}", f"mean = {[MEAN] * 3}", f"std = {[STD] * 3}"]
    lines += ["", "[output]", f"classes = {json.dumps(classes)}"]
    (folder / "model.toml").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=("unet", "mobilenet"), required=True)
    parser.add_argument("--data", type=Path, required=True, help="a site folder with cases.csv")
    parser.add_argument("--task", choices=tuple(CLASSES), required=True)
    parser.add_argument("--encoder", type=Path, help="MobileNetV2 0.35 as transformers saves it")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--steps", type=int, default=1760)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)  # the initial weights; MONAI draws them from the global generator
    classes = CLASSES[options.task]
    model, name, arguments = network(options.network, len(classes), options.encoder)
    images, masks = read_split(options.data, "train", options.side)
    train(model, images, masks, options.steps, options.batch, options.rate, options.seed)
    save(options.out, model, name, arguments, classes, options.side)


if __name__ == "__main__":
    main()
