"""The feature pyramid against the same computed step by step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedprompt.backbones.pyramid import PyramidDecoder


def normalised(block: torch.nn.Sequential, x: Tensor, padding: int) -> Tensor:
    """A convolution and its normalisation with the stored statistics."""
    convolution, norm = block[0], block[1]
    x = F.conv2d(x, convolution.weight, padding=padding)
    column = (1, -1, 1, 1)
    x = (x - norm.running_mean.view(column)) / (norm.running_var.view(column) + norm.eps).sqrt()
    return x * norm.weight.view(column) + norm.bias.view(column)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def trained(decoder: PyramidDecoder, generator: torch.Generator) -> PyramidDecoder:
    for tensor in decoder.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.3)
    for name, tensor in decoder.named_buffers():
        if name.endswith("running_var"):
            tensor.add_(1.0)
    return decoder.eval()


def test_levels_project_add_what_comes_from_below_and_smooth(generator: torch.Generator) -> None:
    decoder = trained(PyramidDecoder((5, 6, 7), (4, 0, 8), (3, 2, 2)), generator)
    shallow, pooled, deep = (
        torch.randn(shape, generator=generator) for shape in ((2, 5, 8, 4), (2, 6, 1, 1), (2, 7, 4, 2))
    )
    seen: list[Tensor] = []

    def record(level: int, x: Tensor) -> Tensor:
        assert level == len(seen)
        seen.append(x)
        return x

    with torch.no_grad():
        got = decoder((shallow, pooled, deep), record)
        first = F.relu(normalised(decoder.smooth[0], F.relu(normalised(decoder.lateral[0], deep, 0)), 1))
        below = F.conv2d(first, decoder.from_below[1].weight, decoder.from_below[1].bias)
        side = normalised(decoder.lateral[1], shallow, 0) + F.interpolate(
            below, scale_factor=2, mode="bilinear"
        )
        second = F.relu(normalised(decoder.smooth[1], F.relu(side), 1))
        third = F.interpolate(second, scale_factor=2, mode="bilinear")  # no third feature: twice as fine
        third = F.relu(normalised(decoder.smooth[2], F.relu(third), 1))
    for level, expected in zip(seen, (first, second, third), strict=True):
        torch.testing.assert_close(level, expected)
    assert got is seen[-1]


def test_the_modulated_level_is_what_goes_on(generator: torch.Generator) -> None:
    decoder = trained(PyramidDecoder((5, 7), (4, 8), (3, 2)), generator)
    features = (
        torch.randn((1, 5, 8, 8), generator=generator),
        torch.randn((1, 7, 4, 4), generator=generator),
    )
    with torch.no_grad():
        levels: dict[int, Tensor] = {}
        decoder(features, lambda level, x: levels.setdefault(level, 2 * x if level == 0 else x))
        plain: dict[int, Tensor] = {}
        decoder(features, lambda level, x: plain.setdefault(level, x))
    assert torch.equal(levels[0], 2 * plain[0])
    assert not torch.equal(levels[1], plain[1])


def test_a_level_for_every_feature_is_needed() -> None:
    with pytest.raises(ValueError, match="expected at least 2 decoder widths, got 1"):
        PyramidDecoder((5, 6, 7), (4, 0, 8), (3,))
