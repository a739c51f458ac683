"""Frozen backbones: one base class, one folder format, one fingerprint; `fedprompt.families` lists them."""

from __future__ import annotations

from fedprompt.backbones.base import Backbone, Features, Geometry, Preprocessing, fingerprint, freeze
from fedprompt.backbones.storage import load_backbone, load_folder, save_backbone

__all__ = [
    "Backbone",
    "Features",
    "Geometry",
    "Preprocessing",
    "fingerprint",
    "freeze",
    "load_backbone",
    "load_folder",
    "save_backbone",
]
