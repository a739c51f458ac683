"""What a backbone is and what it costs, as JSON values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

# Shapes without arithmetic: a forward pass of the largest encoder at its full size in a second.
from torch._subclasses.fake_tensor import FakeTensorMode

from fedprompt.backbones.base import Backbone, fingerprint, weights
from fedprompt.families import FAMILIES

__all__ = ["facts"]

_FLOAT32, _BFLOAT16 = torch.float32.itemsize, torch.bfloat16.itemsize


def facts(backbone: Backbone) -> dict[str, Any]:
    """Name, parameters, geometry, preprocessing, fingerprint and memory of a backbone on the CPU.

    Memory is in bytes: the weights in float32 and in bfloat16, and per image of the size of the training what
    the feature cache keeps in float32: all features, or the hidden state in front of a transformer block.
    """
    floats = sum(tensor.numel() for tensor in weights(backbone).values() if tensor.is_floating_point())
    return {
        "name": backbone.name,
        "summary": FAMILIES[backbone.name].summary,
        "fingerprint": fingerprint(backbone),
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "classes": backbone.classes,
        "geometry": asdict(backbone.geometry),
        "preprocessing": asdict(backbone.preprocessing),
        "memory": {
            "weights_float32": floats * _FLOAT32,
            "weights_bfloat16": floats * _BFLOAT16,
            "features": _encoded_bytes(backbone, None),
            "hidden_state": _encoded_bytes(backbone, 0) if backbone.geometry.blocks else None,
        },
    }


def native_size(backbone: Backbone) -> int:
    """The side of the images of its training, or the next one that fits."""
    multiple = backbone.geometry.multiple
    return -(-backbone.preprocessing.size // multiple) * multiple


def _encoded_bytes(backbone: Backbone, stop: int | None) -> int:
    side = native_size(backbone)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        encoded = backbone.encode(torch.empty(1, 3, side, side), stop)
    return sum(tensor.numel() * _FLOAT32 for tensor in encoded)
