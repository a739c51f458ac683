"""The recipe by which a backbone is trained before it is frozen for good."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedprompt.backbones.base import Backbone, Features, freeze
from fedprompt.backbones.hub import HubBackbone
from fedprompt.backbones.material import FolderMaterial, Material, Scene, ShapeMaterial
from fedprompt.backbones.recipes import Recipe, check_trainable
from fedprompt.backbones.storage import DESCRIPTION, encoder_source, save_backbone
from fedprompt.data.images import UNLABELLED
from fedprompt.errors import ConfigurationError, RunError
from fedprompt.families import backbone_class
from fedprompt.training.metrics import dice_per_class

__all__ = ["evaluate", "pretrain", "segmentation_loss"]

Progress = Callable[[str, int, int], None]  # what is being done, steps done, steps in all
Batch = tuple[Features, Tensor]  # images or features, and masks

_KEPT = 4 << 30  # bytes of features
_KEPT_AS = torch.float16


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

    An encoder of transformers stays as it is and a new decoder is trained on its features; another network is
    trained as a whole.

    Args:
        name: Registry name.
        out: Folder to write; must not hold a backbone yet.
        recipe: The settings.
        classes: Class names, background first.
        data: Folder with `cases.csv`; without it synthetic shapes, which have three classes.
        encoder: Folder or hub id of the encoder, for the families that have one of transformers.
        device: A torch device, or `auto` for a GPU where there is one.
        command: How to do the same again, for the record.
        progress: Called with what is being done, the steps done and the steps in all.

    Returns:
        The provenance, as in `backbone.json`.

    Raises:
        ConfigurationError: The family has no decoder to train, or settings that do not fit together.
        DataError: Cases or the encoder cannot be used.
        RunError: The loss is not finite, or the hub cannot be reached.
    """
    if (out / DESCRIPTION).exists():
        raise ConfigurationError(f"{out}: expected a new folder, got one that holds a backbone already")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = _untrained(name, len(classes), encoder, recipe.seed)
    if recipe.size % backbone.geometry.multiple:
        raise ConfigurationError(
            f"size: backbone {name} expected a multiple of {backbone.geometry.multiple}, got {recipe.size}"
        )
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
        "encoder": encoder.name if isinstance(encoder, Path) else encoder,
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
def evaluate(backbone: Backbone, scenes: Sequence[Scene], batch_size: int) -> np.ndarray:
    """Dice (classes - 1,) of every foreground class, mean over scenes, in the resolution of their truth."""
    rows = []
    device = next(backbone.parameters()).device
    classes = backbone.classes or 0
    for start in range(0, len(scenes), batch_size):
        chunk = scenes[start : start + batch_size]
        logits = backbone(backbone.preprocess(torch.stack([scene.image for scene in chunk]).to(device)))
        for scene, one in zip(chunk, logits.cpu(), strict=True):
            full = F.interpolate(one[None], size=scene.truth.shape, mode="bilinear", align_corners=False)
            rows.append(dice_per_class(full[0].argmax(dim=0).numpy(), scene.truth, classes))
    return np.asarray(np.mean(rows, axis=0))


def _untrained(name: str, classes: int, encoder: Path | str | None, seed: int) -> Backbone:
    check_trainable(name)
    chosen = backbone_class(name)
    if chosen.encoder_folder != (encoder is not None):
        expected = "an encoder (folder or hub id)" if chosen.encoder_folder else "no encoder"
        raise ConfigurationError(f"backbone {name}: expected {expected}, got {encoder or 'none'}")
    with torch.random.fork_rng(devices=[]):  # torch's initialisers know the global generator alone
        torch.manual_seed(seed)
        if encoder is not None and issubclass(chosen, HubBackbone):
            return chosen.from_pretrained(encoder_source(name, encoder), classes)
        return chosen.rebuild({"classes": classes}, Path())


def _material(data: Path | None, classes: int, recipe: Recipe) -> Material:
    if data is not None:
        return FolderMaterial(data, classes, recipe.size, recipe.validation, recipe.seed)
    if classes != 3:
        raise ConfigurationError(
            f"synthetic shapes: expected three classes (background, outer, inner), got {classes}"
        )
    return ShapeMaterial(recipe.size, recipe.seed)


def _fit(
    backbone: Backbone, material: Material, recipe: Recipe, progress: Progress
) -> tuple[list[float], float]:
    """Trains in place and leaves the weights that validate best; returns all losses and the best Dice."""
    head = backbone.head
    assert head is not None  # noqa: S101 - a backbone that is trained has a decoder
    frozen = backbone.encoder_folder

    def own(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        return {name: value for name, value in named if not (frozen and name.startswith("encoder."))}

    trained = own(backbone.named_parameters()).values()
    optimiser = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, recipe.steps, pct_start=0.1
    )
    batches = _encoded if frozen else _fresh
    looks = {round(recipe.steps * (look + 1) / recipe.choices) for look in range(recipe.choices)}
    best, chosen, losses = -1.0, own(backbone.state_dict().items()), []
    for step, (inputs, masks) in enumerate(batches(backbone, material, recipe, progress), start=1):
        backbone.train()
        with torch.autocast(masks.device.type, torch.bfloat16, enabled=recipe.bfloat16):
            features = inputs if frozen else backbone.encode(inputs[0])
            logits = head(backbone.decode(features))
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
                best, chosen = dice, copy.deepcopy(own(backbone.state_dict().items()))
        progress(
            f"training, loss {losses[-1]:.3f}, best validation Dice {max(best, 0):.3f}", step, recipe.steps
        )
    backbone.load_state_dict(chosen, strict=False)  # an encoder that was not trained is as it was
    return losses, best


def _fresh(backbone: Backbone, material: Material, recipe: Recipe, progress: Progress) -> Iterator[Batch]:
    """Batches of preprocessed images, augmented anew in every step."""
    del progress
    device = next(backbone.parameters()).device
    rng = np.random.default_rng([recipe.seed, 0])
    for _ in range(recipe.steps):
        images, masks = material.batch(rng.integers(material.cases, size=recipe.batch_size), rng)
        yield (backbone.preprocess(images.to(device)),), masks.to(device)


def _encoded(backbone: Backbone, material: Material, recipe: Recipe, progress: Progress) -> Iterator[Batch]:
    """Batches of features, of which a frozen encoder made each before the first step.

    It sees every augmented view once. Where the features of all views take too much, it sees new ones in
    every step.
    """
    device = next(backbone.parameters()).device
    rng = np.random.default_rng([recipe.seed, 0])
    total = recipe.views * material.cases
    stores: list[Tensor] = []
    masks = torch.empty((total, recipe.size, recipe.size), dtype=torch.uint8)
    for start in range(0, total, recipe.batch_size):
        rows = np.arange(start, min(start + recipe.batch_size, total))
        images, labels = material.batch(rows % material.cases, rng)
        features = _features(backbone, backbone.preprocess(images.to(device)))
        if not stores:
            if sum(feature[0].numel() for feature in features) * total * _KEPT_AS.itemsize > _KEPT:
                for (prepared,), truths in _fresh(backbone, material, recipe, progress):
                    yield _features(backbone, prepared), truths
                return
            stores = [torch.empty((total, *feature.shape[1:]), dtype=_KEPT_AS) for feature in features]
        for store, feature in zip(stores, features, strict=True):
            store[start : start + len(rows)] = feature.cpu()
        masks[start : start + len(rows)] = labels.byte()
        progress("encoding augmented views", start + len(rows), total)
    for _ in range(recipe.steps):
        drawn = torch.from_numpy(rng.integers(total, size=recipe.batch_size))
        yield tuple(store[drawn].float().to(device) for store in stores), masks[drawn].long().to(device)


@torch.no_grad()
def _features(backbone: Backbone, prepared: Tensor) -> Features:
    return backbone.encode(prepared)


def _named(dice: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    named = {f"dice_{name}": float(value) for name, value in zip(classes[1:], dice, strict=True)}
    return {"dice": float(dice.mean()), **named}
