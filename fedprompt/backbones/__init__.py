"""Frozen backbones by name: one registry, one folder format, one fingerprint."""

from __future__ import annotations

from fedprompt.backbones.base import (
    Features,
    Geometry,
    Preprocessing,
    SegmentationBackbone,
    fingerprint,
    freeze,
)
from fedprompt.backbones.registry import BACKBONES, backbone_class
from fedprompt.backbones.storage import load_backbone, load_folder, save_backbone

__all__ = [
    "BACKBONES",
    "Features",
    "Geometry",
    "Preprocessing",
    "SegmentationBackbone",
    "backbone_class",
    "fingerprint",
    "freeze",
    "load_backbone",
    "load_folder",
    "save_backbone",
]
