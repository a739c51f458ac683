"""The recipe by which a backbone is trained before it is frozen for good."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedprompt.backbones.base import SegmentationBackbone, freeze
from fedprompt.backbones.embedded_unet import EmbeddedUNet
from fedprompt.backbones.material import FolderMaterial, Material, Scene, ShapeMaterial
from fedprompt.backbones.mobilenet_v2 import MobileNetV2
from fedprompt.backbones.registry import backbone_class
from fedprompt.backbones.storage import DESCRIPTION, save_backbone
from fedprompt.data.images import UNLABELLED
from fedprompt.errors import ConfigurationError, RunError
from fedprompt.training.metrics import dice_per_class

__all__ = ["RECIPES", "Recipe", "evaluate", "pretrain", "recipe_for", "segmentation_loss"]

Progress = Callable[[str, int, int], None]  # what is being done, steps done, steps in all
Batch = tuple[tuple[Tensor, ...], Tensor]  # images or features, and masks


@dataclass(frozen=True)
class Recipe:
    """Every setting of a pre-training.

    Attributes:
        size: Side of the training images in pixels, a multiple of 32.
        steps: Optimiser steps.
        batch_size: Images per step.
        learning_rate: Peak of the one-cycle schedule.
        weight_decay: Of AdamW.
        views: Augmented views per case whose features are cached, where the encoder is frozen.
        validation: Share of the train patients that choose the weights, where a folder has no val split.
        choices: How often the validation scenes are looked at; the best weights are kept.
        bfloat16: Compute the training steps in bfloat16, twice as fast on processors that know it.
        seed: Of everything that is random.
    """

    size: int
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.01
    views: int = 8
    validation: float = 0.1
    choices: int = 10
    bfloat16: bool = False
    seed: int = 0


RECIPES = {
    EmbeddedUNet.name: Recipe(size=96, steps=2500, batch_size=16, learning_rate=4e-3, bfloat16=True),
    MobileNetV2.name: Recipe(size=192, steps=2000, batch_size=16, learning_rate=4e-3),
}


def pretrain(
    name: str,
    out: Path,
    recipe: Recipe,
    *,
    classes: Sequence[str],
    data: Path | None = None,
    encoder: Path | str | None = None,
    device: str = "auto",
    command: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains a backbone, evaluates it once on the test split and writes its folder.

    Args:
        name: Registry name.
        out: Folder to write; must not hold a backbone yet.
        recipe: The settings.
        classes: Class names, background first.
        data: Folder with `cases.csv`; without it synthetic shapes, which have three classes.
        encoder: Folder or hub id of the encoder, for the backbones that have one of transformers.
        device: A torch device, or `auto` for a GPU where there is one.
        command: How to do the same again, for the record.
        progress: Called with what is being done, the steps done and the steps in all.

    Returns:
        The provenance, as in `backbone.json`.
    """
    if (out / DESCRIPTION).exists():
        raise ConfigurationError(f"{out}: expected a new folder, got one that holds a backbone already")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = _untrained(name, len(classes), encoder, recipe.seed)
    progress = progress or _silent
    progress("reading cases", 0, 1)
    material = _material(data, len(classes), recipe)
    backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    losses, validation = _fit(backbone, material, recipe, progress)
    freeze(backbone)
    progress("testing", 0, 1)
    test = material.test()
    provenance = {
        "command": command,
        "classes": list(classes),
        "data": {
            "name": material.name,
            "train": None if data is None else material.cases,
            "validation": len(material.validation),
            "test": len(test),
        },
        "encoder": None if encoder is None else Path(encoder).name,
        "recipe": asdict(recipe),
        "torch": torch.__version__.split("+")[0],
        "loss": {"first": losses[0], "last": losses[-1]},
        "validation": {"dice": validation},
        "test": _named(evaluate(backbone, test, recipe.batch_size), classes) if test else None,
    }
    save_backbone(backbone.cpu(), out, provenance)
    return provenance


def _silent(what: str, done: int, total: int) -> None:
    """Shows nothing."""
    del what, done, total


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy plus soft Dice of the foreground classes, over labelled pixels.

    Args:
        logits: (B, C, h, w), interpolated to the size of the masks.
        masks: (B, H, W) int64, 255 unlabelled.
    """
    logits = F.interpolate(logits, size=masks.shape[-2:], mode="bilinear", align_corners=False)
    labelled = (masks != UNLABELLED)[:, None]
    truth = F.one_hot(masks.where(labelled[:, 0], 0), logits.shape[1]).movedim(-1, 1)[:, 1:] * labelled
    guess = logits.softmax(dim=1)[:, 1:] * labelled
    overlap, total = (guess * truth).sum((0, 2, 3)), (guess + truth).sum((0, 2, 3))
    entropy = F.cross_entropy(logits, masks, ignore_index=UNLABELLED)
    return entropy + (1 - (2 * overlap + 1) / (total + 1)).mean()


@torch.no_grad()
def evaluate(backbone: SegmentationBackbone, scenes: Sequence[Scene], batch_size: int) -> np.ndarray:
    """Dice (classes - 1,) of every foreground class, mean over scenes, in the resolution of their truth."""
    rows = []
    device = backbone.head.weight.device
    for start in range(0, len(scenes), batch_size):
        chunk = scenes[start : start + batch_size]
        logits = backbone(backbone.preprocess(torch.stack([scene.image for scene in chunk]).to(device)))
        for scene, one in zip(chunk, logits.cpu(), strict=True):
            full = F.interpolate(one[None], size=scene.truth.shape, mode="bilinear", align_corners=False)
            rows.append(dice_per_class(full[0].argmax(dim=0).numpy(), scene.truth, backbone.classes))
    return np.asarray(np.mean(rows, axis=0))


def _untrained(name: str, classes: int, encoder: Path | str | None, seed: int) -> SegmentationBackbone:
    family = backbone_class(name)
    if family.encoder_folder != (encoder is not None):
        expected = "an encoder (folder or hub id)" if family.encoder_folder else "no encoder"
        raise ConfigurationError(f"backbone {name}: expected {expected}, got {encoder or 'none'}")
    with torch.random.fork_rng(devices=[]):  # torch's initialisers know the global generator alone
        torch.manual_seed(seed)
        if encoder is not None:
            return MobileNetV2.from_encoder(encoder, classes)
        return EmbeddedUNet(classes)


def _material(data: Path | None, classes: int, recipe: Recipe) -> Material:
    if data is not None:
        return FolderMaterial(data, classes, recipe.size, recipe.validation, recipe.seed)
    if classes != 3:
        raise ConfigurationError(
            f"synthetic shapes: expected three classes (background, outer, inner), got {classes}"
        )
    return ShapeMaterial(recipe.size, recipe.seed)


def _fit(
    backbone: SegmentationBackbone, material: Material, recipe: Recipe, progress: Progress
) -> tuple[list[float], float]:
    """Trains in place and leaves the weights that validate best; returns all losses and the best Dice."""
    batches = _cached if backbone.encoder_folder else _fresh
    trained = [
        parameter
        for part, parameter in backbone.named_parameters()
        if not (backbone.encoder_folder and part.startswith("encoder."))
    ]
    optimiser = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, recipe.steps, pct_start=0.1
    )
    looks = {round(recipe.steps * (look + 1) / recipe.choices) for look in range(recipe.choices)}
    best, chosen, losses = -1.0, backbone.state_dict(), []
    for step, (inputs, masks) in enumerate(batches(backbone, material, recipe, progress), start=1):
        backbone.train()
        with torch.autocast(masks.device.type, torch.bfloat16, enabled=recipe.bfloat16):
            features = inputs if backbone.encoder_folder else backbone.encode(inputs[0])
            logits = backbone.head(backbone.decode(features))
        loss = segmentation_loss(logits.float(), masks)
        if not torch.isfinite(loss):
            raise RunError(f"pre-training: expected a finite loss, got {loss.item()} in step {step}")
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step in looks:
            backbone.eval()
            dice = float(evaluate(backbone, material.validation, recipe.batch_size).mean())
            if dice > best:
                best, chosen = dice, copy.deepcopy(backbone.state_dict())
        progress(
            f"training, loss {losses[-1]:.3f}, best validation Dice {max(best, 0):.3f}", step, recipe.steps
        )
    backbone.load_state_dict(chosen)
    return losses, best


def _fresh(
    backbone: SegmentationBackbone, material: Material, recipe: Recipe, progress: Progress
) -> Iterator[Batch]:
    """Batches of preprocessed images, augmented anew in every step."""
    del progress
    device = backbone.head.weight.device
    rng = np.random.default_rng([recipe.seed, 0])
    for _ in range(recipe.steps):
        images, masks = material.batch(rng.integers(material.cases, size=recipe.batch_size), rng)
        yield (backbone.preprocess(images.to(device)),), masks.to(device)


def _cached(
    backbone: SegmentationBackbone, material: Material, recipe: Recipe, progress: Progress
) -> Iterator[Batch]:
    """Batches of features: a frozen encoder sees every augmented view once, before the first step."""
    device = backbone.head.weight.device
    rng = np.random.default_rng([recipe.seed, 0])
    total = recipe.views * material.cases
    stores: list[Tensor] = []
    masks = torch.empty((total, recipe.size, recipe.size), dtype=torch.uint8)
    for start in range(0, total, recipe.batch_size):
        rows = np.arange(start, min(start + recipe.batch_size, total))
        images, labels = material.batch(rows % material.cases, rng)
        with torch.no_grad():
            features = backbone.encode(backbone.preprocess(images.to(device)))
        if not stores:  # half precision: a thousand cases with eight views take 1.6 GB at 192 pixels
            stores = [torch.empty((total, *feature.shape[1:]), dtype=torch.float16) for feature in features]
        for store, feature in zip(stores, features, strict=True):
            store[start : start + len(rows)] = feature.cpu()
        masks[start : start + len(rows)] = labels.byte()
        progress("encoding augmented views", start + len(rows), total)
    for _ in range(recipe.steps):
        drawn = torch.from_numpy(rng.integers(total, size=recipe.batch_size))
        yield tuple(store[drawn].float().to(device) for store in stores), masks[drawn].long().to(device)


def _named(dice: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    named = {f"dice_{name}": float(value) for name, value in zip(classes[1:], dice, strict=True)}
    return {"dice": float(dice.mean()), **named}


def recipe_for(name: str, **changes: Any) -> Recipe:
    """The default recipe of a backbone with the settings that are not None replaced."""
    backbone_class(name)
    return replace(RECIPES[name], **{key: value for key, value in changes.items() if value is not None})
