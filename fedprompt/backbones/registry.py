"""Which backbones there are."""

from __future__ import annotations

from fedprompt.backbones.base import SegmentationBackbone
from fedprompt.backbones.embedded_unet import EmbeddedUNet
from fedprompt.backbones.mobilenet_v2 import MobileNetV2
from fedprompt.errors import ConfigurationError

__all__ = ["BACKBONES", "backbone_class"]

BACKBONES: dict[str, type[SegmentationBackbone]] = {
    family.name: family for family in (EmbeddedUNet, MobileNetV2)
}


def backbone_class(name: str) -> type[SegmentationBackbone]:
    """The class of a registry name; raises `ConfigurationError` that lists all names."""
    if name not in BACKBONES:
        raise ConfigurationError(f"backbone {name!r}: expected one of {', '.join(BACKBONES)}")
    return BACKBONES[name]
