"""What `fedprompt backbone show` tells of a backbone is what the backbone does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_families import TINY

from fedprompt.backbones import fingerprint
from fedprompt.backbones.facts import facts, native_size


@pytest.mark.parametrize("name", TINY)
def test_memory_is_what_weights_and_features_take(name: str, tmp_path: Path) -> None:
    backbone = TINY[name](tmp_path, 3)
    found = facts(backbone)
    side = native_size(backbone)
    assert found["fingerprint"] == fingerprint(backbone)
    assert found["parameters"] == sum(p.numel() for p in backbone.parameters())
    tensors = [t for n, t in backbone.state_dict().items() if t.is_floating_point()]
    assert found["memory"]["weights_float32"] == sum(tensor.nbytes for tensor in tensors)
    assert found["memory"]["weights_bfloat16"] == sum(tensor.bfloat16().nbytes for tensor in tensors)
    images = torch.rand(1, 3, side, side)
    assert found["memory"]["features"] == sum(feature.nbytes for feature in backbone.encode(images))
    if backbone.geometry.blocks:
        (state,) = backbone.encode(images, backbone.geometry.blocks - 1)
        assert found["memory"]["hidden_state"] == state.nbytes
    else:
        assert found["memory"]["hidden_state"] is None
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("name", ["embedded-unet", "vit", "clip", "sam"])
def test_asking_leaves_a_backbone_as_it_was(name: str, tmp_path: Path) -> None:
    backbone = TINY[name](tmp_path, 3)
    images = torch.rand(1, 3, native_size(backbone), native_size(backbone))
    before = backbone.encode(images)
    facts(backbone)
    for one, other in zip(backbone.encode(images), before, strict=True):
        assert type(one) is torch.Tensor
        assert torch.equal(one, other)


def test_the_native_size_is_one_that_fits(tmp_path: Path) -> None:
    backbone = TINY["mobilenet-v2"](tmp_path, None)
    assert (backbone.geometry.multiple, backbone.preprocessing.size) == (32, 224)
    assert native_size(backbone) == 224
    object.__setattr__(backbone.preprocessing, "size", 230)
    assert native_size(backbone) == 256
