"""Which backbone families there are, which tasks they can do and which prompts fit them. Imports no torch.

A family is one file under `fedprompt/backbones` and one entry here; both are looked up by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from fedprompt.errors import ConfigurationError

if TYPE_CHECKING:
    from fedprompt.backbones.base import Backbone

__all__ = ["FAMILIES", "Family", "Origin", "Task", "backbone_class", "default_prompts", "family", "misfit"]

Task = Literal["segmentation", "classification"]
Origin = Literal["package", "transformers", "pretrain"]

_MAPS = ("universal", "data_aware", "sparsity", "fusion")
_DENSE = frozenset({*_MAPS, "modulation", "generated"})
_POOLED = frozenset({"universal", "data_aware", "fusion", "generated"})
_TOKENS = frozenset({"tokens", "domain"})


@dataclass(frozen=True)
class Family:
    """One kind of backbone.

    Attributes:
        name: Registry name.
        implementation: Module under `fedprompt.backbones` and class in it.
        origins: Where its weights may come from: the package, a folder or hub id of `transformers`, a folder
            that `fedprompt backbone pretrain` wrote.
        prompts: Per task the prompts that fit, as the study's `[prompts]` tables name them.
        summary: What it is, in one line.
        side: Usual side of its images in pixels, which `fedprompt study new` writes.
    """

    name: str
    implementation: tuple[str, str]
    origins: tuple[Origin, ...]
    prompts: Mapping[Task, frozenset[str]]
    summary: str
    side: int = 224


def _convolutional(
    name: str, implementation: tuple[str, str], origins: tuple[Origin, ...], summary: str, side: int = 224
) -> Family:
    prompts: dict[Task, frozenset[str]] = {"segmentation": _DENSE, "classification": _POOLED}
    return Family(name, implementation, origins, prompts, summary, side)


def _transformer(name: str, implementation: tuple[str, str], summary: str) -> Family:
    prompts: dict[Task, frozenset[str]] = {
        "segmentation": _DENSE | _TOKENS,
        "classification": _POOLED | _TOKENS,
    }
    return Family(name, implementation, ("transformers", "pretrain"), prompts, summary)


_HUB: tuple[Origin, ...] = ("transformers", "pretrain")
_SAM = frozenset({*_MAPS, "generated", "class_prompts"})

FAMILIES: dict[str, Family] = {
    entry.name: entry
    for entry in (
        _convolutional(
            "embedded-unet",
            ("embedded_unet", "EmbeddedUNet"),
            ("package", "pretrain"),
            "U-Net of 0.8 M parameters that comes with the package",
            side=128,
        ),
        _convolutional(
            "mobilenet-v2", ("mobilenet_v2", "MobileNetV2"), _HUB, "MobileNetV2 with a light decoder"
        ),
        _convolutional("resnet", ("resnet", "ResNet"), _HUB, "ResNet with a light decoder"),
        _convolutional(
            "convnext", ("convnext", "ConvNeXt"), _HUB, "ConvNeXt and ConvNeXt V2 with a light decoder"
        ),
        _convolutional(
            "monai-unet", ("monai_unet", "MonaiUNet"), ("pretrain",), "MONAI's residual 2-D UNet", 128
        ),
        _convolutional(
            "swin-unetr", ("swin_unetr", "SwinUNETR"), ("pretrain",), "MONAI's 2-D SwinUNETR", 128
        ),
        _transformer("vit", ("vit", "ViT"), "Vision Transformer"),
        _transformer("dinov2", ("dinov2", "DINOv2"), "DINOv2 and its descendants, such as RAD-DINO"),
        Family(
            "clip",
            ("clip", "CLIP"),
            ("transformers",),
            {"classification": frozenset({"tokens", "domain", "generated", "text"})},
            "CLIP and its descendants, such as PubMedCLIP: classes by their names",
        ),
        Family(
            "sam",
            ("sam", "SAM"),
            ("transformers",),
            {"segmentation": _SAM | _TOKENS},
            "Segment Anything and MedSAM: learned class prompts, points, boxes",
            side=1024,
        ),
        Family(
            "sam2",
            ("sam2", "SAM2"),
            ("transformers",),
            {"segmentation": _SAM},
            "Segment Anything 2 for single images",
            side=1024,
        ),
    )
}

_DEFAULTS: Mapping[Task, tuple[str, ...]] = {
    "segmentation": (*_MAPS, "modulation", "class_prompts"),
    "classification": ("domain", "text", "generated"),
}
_INSTEAD = {"generated": {"domain", "text"}}  # left out of the defaults where one of these is in


def family(name: str) -> Family:
    """The family of a registry name; raises `ConfigurationError` that lists all names."""
    if name not in FAMILIES:
        raise ConfigurationError(f"backbone {name!r}: expected one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def backbone_class(name: str) -> type[Backbone]:
    """The class of a registry name; errors as in `family`."""
    module, attribute = family(name).implementation
    found: type[Backbone] = getattr(import_module(f"fedprompt.backbones.{module}"), attribute)
    return found


def default_prompts(name: str, task: Task) -> tuple[str, ...]:
    """The prompts of a study without a `[prompts]` table; none for an unknown family or task."""
    fitting = FAMILIES[name].prompts.get(task, frozenset()) if name in FAMILIES else frozenset()
    chosen = [prompt for prompt in _DEFAULTS[task] if prompt in fitting]
    return tuple(prompt for prompt in chosen if not _INSTEAD.get(prompt, set()) & set(chosen))


def misfit(name: str, task: Task, prompts: tuple[str, ...]) -> str | None:
    """Why a family cannot serve a study, in one sentence; None where it can."""
    if name not in FAMILIES:
        return f"backbone.name: expected one of {', '.join(FAMILIES)}, got {name!r}"
    fitting = FAMILIES[name].prompts.get(task)
    if fitting is None:
        able = [other.name for other in FAMILIES.values() if task in other.prompts]
        return f"backbone.name: expected one that can do {task} ({', '.join(able)}), got {name!r}"
    for prompt in prompts:
        if prompt not in fitting:
            able = [other.name for other in FAMILIES.values() if prompt in other.prompts.get(task, ())]
            where = f"those that take it in {task}: {', '.join(able)}" if able else f"none takes it in {task}"
            key = prompt.replace("_", "-")
            return (
                f"prompts.{key}: does not fit backbone {name} ({where}); for {name} expected some of "
                f"{', '.join(sorted(p.replace('_', '-') for p in fitting))}"
            )
    return None
