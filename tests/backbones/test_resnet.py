"""The ResNet encoder: the same numbers as transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_convolutional import save_resnet

from fedprompt.backbones.resnet import ResNet


@pytest.mark.parametrize(
    ("options", "strides"),
    [
        ({}, (4, 8, 16, 32)),
        ({"layer_type": "bottleneck", "hidden_sizes": [8, 16, 24, 32]}, (4, 8, 16, 32)),
        ({"downsample_in_first_stage": True, "hidden_sizes": [8, 12], "depths": [1, 2]}, (8, 16)),
    ],
)
def test_features_and_pooled_feature_are_those_of_transformers(
    tmp_path: Path, options: dict[str, Any], strides: tuple[int, ...]
) -> None:
    from transformers import ResNetModel

    save_resnet(tmp_path, **options)
    reference = ResNetModel.from_pretrained(tmp_path).eval()
    images = torch.randn((2, 3, 64, 96), generator=torch.Generator().manual_seed(4))
    segmenting, classifying = ResNet.from_pretrained(tmp_path, 2), ResNet.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = reference(images, output_hidden_states=True)
        features = segmenting.encode(images)
        pooled = classifying.pool(classifying.encode(images))
    assert (segmenting.geometry.strides, segmenting.geometry.multiple) == (strides, strides[-1])
    for got, wanted in zip(features, expected.hidden_states[1:], strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pooled, expected.pooler_output.flatten(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(segmenting.pool(features), pooled, rtol=1e-5, atol=1e-5)
