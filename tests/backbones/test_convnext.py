"""The ConvNeXt encoders, of both versions: the same numbers as transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_convolutional import save_convnext, save_convnextv2

from fedprompt.backbones.convnext import ConvNeXt


@pytest.mark.parametrize("save", [save_convnext, save_convnextv2])
def test_features_and_pooled_feature_are_those_of_transformers(
    tmp_path: Path, save: Callable[[Path], None]
) -> None:
    from transformers import AutoModel

    save(tmp_path)
    reference = AutoModel.from_pretrained(tmp_path).eval()
    images = torch.randn((2, 3, 64, 96), generator=torch.Generator().manual_seed(4))
    segmenting, classifying = ConvNeXt.from_pretrained(tmp_path, 2), ConvNeXt.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = reference(images, output_hidden_states=True)
        features = segmenting.encode(images)
        pooled = classifying.pool(classifying.encode(images))
    assert segmenting.geometry.strides == (4, 8, 16, 32)
    for got, wanted in zip(features, expected.hidden_states[-4:], strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pooled, expected.pooler_output, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(segmenting.pool(features), pooled, rtol=1e-5, atol=1e-5)
