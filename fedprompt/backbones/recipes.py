"""How backbones are pre-trained by default: one recipe per kind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fedprompt.errors import ConfigurationError
from fedprompt.families import FAMILIES, family

__all__ = ["Recipe", "check_trainable", "recipe_for"]


@dataclass(frozen=True)
class Recipe:
    """Every setting of a pre-training.

    Attributes:
        size: Side of the training images in pixels.
        steps: Optimiser steps.
        batch_size: Images per step.
        learning_rate: Peak of the one-cycle schedule.
        weight_decay: Of AdamW.
        views: Augmented views per case whose features are kept, where the encoder is frozen. Where that would
            take more than 4 GiB, every step encodes new views.
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


# 224 is a multiple of the patches and strides of all encoders, and most of them were trained at it.
_FROZEN_ENCODER = Recipe(size=224, steps=2000, batch_size=16, learning_rate=4e-3)
_WHOLE_NETWORK = Recipe(size=96, steps=2500, batch_size=16, learning_rate=4e-3, bfloat16=True)


def recipe_for(name: str, **changes: Any) -> Recipe:
    """The default recipe of a family with the settings that are not None replaced.

    Raises:
        ConfigurationError: The family is unknown or has no decoder to train.
    """
    check_trainable(name)
    default = _FROZEN_ENCODER if "transformers" in family(name).origins else _WHOLE_NETWORK
    return replace(default, **{key: value for key, value in changes.items() if value is not None})


def check_trainable(name: str) -> None:
    """Raises `ConfigurationError` where a family is unknown or has no decoder to train."""
    if "pretrain" not in family(name).origins:
        able = ", ".join(entry.name for entry in FAMILIES.values() if "pretrain" in entry.origins)
        raise ConfigurationError(f"backbone {name}: has no decoder to train; expected one of {able}")
