"""MONAI's networks as backbones: the same numbers as MONAI's own forward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from monai.networks import nets

from fedprompt.backbones import Backbone
from fedprompt.backbones.monai_unet import MonaiUNet
from fedprompt.backbones.swin_unetr import SwinUNETR

GROUPS = ("group", {"num_groups": 4})


def monai_unet(classes: int) -> nets.UNet:
    return nets.UNet(2, 3, 4, (4, 8, 12, 16, 20), (2, 2, 2, 2), num_res_units=2, norm=GROUPS)


def swin_unetr(classes: int) -> nets.SwinUNETR:
    return nets.SwinUNETR(3, classes, feature_size=12, norm_name=GROUPS, spatial_dims=2)


def seeded(build: Callable[[int], torch.nn.Module]) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(6)
        return build(3).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn((2, 3, 64, 96), generator=torch.Generator().manual_seed(5))


def test_the_unrolled_unet_is_the_nested_one(images: torch.Tensor) -> None:
    backbone = seeded(lambda classes: MonaiUNet(classes, (4, 8, 12, 16, 20)))
    reference = seeded(monai_unet)
    with torch.no_grad():
        expected = reference(images)
        got = backbone.decode(backbone.encode(images))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(backbone(images), backbone.head(expected), rtol=0, atol=1e-6)
    bottom = reference.model[1].submodule[1].submodule[1].submodule[1].submodule
    assert backbone.geometry.pooled == bottom(torch.rand(1, 16, 4, 4)).shape[1] == 20


def test_the_split_swin_unetr_is_the_whole_one(images: torch.Tensor) -> None:
    backbone = seeded(lambda classes: SwinUNETR(classes, 12))
    reference = seeded(swin_unetr)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), reference(images), rtol=0, atol=1e-6)
    assert sum(p.numel() for p in backbone.parameters()) == sum(p.numel() for p in reference.parameters())


@pytest.mark.parametrize(
    ("backbone", "parameters"), [(MonaiUNet(3), 1_650_000), (SwinUNETR(3), 6_400_000)], ids=["unet", "swin"]
)
def test_the_default_widths_work(backbone: Backbone, parameters: int) -> None:
    features = backbone.encode(torch.rand(1, 3, 64, 64))
    assert [feature.shape[1] for feature in features] == list(backbone.geometry.channels)
    assert backbone.head(backbone.decode(features)).shape == (1, 3, 64, 64)
    assert sum(p.numel() for p in backbone.parameters()) == pytest.approx(parameters, rel=0.05)


def test_a_prompt_on_a_whole_channel_reaches_the_output(images: torch.Tensor) -> None:
    """Instance normalisation would take it away again; groups keep it."""
    for backbone in (MonaiUNet(3, (4, 8, 12, 16, 20)).eval(), SwinUNETR(3, 12).eval()):
        with torch.no_grad():
            *skips, deepest = backbone.encode(images)
            change = torch.zeros_like(deepest)
            change[:, :2] = 1.0
            moved = backbone.decode((*skips, deepest + change)) - backbone.decode((*skips, deepest))
        assert moved.abs().max() > 1e-3


def test_widths_that_cannot_be_grouped_are_refused() -> None:
    with pytest.raises(ValueError, match="num_groups"):
        MonaiUNet(2, (6, 8, 12, 16, 20))
    with pytest.raises(ValueError, match="divisible by 12"):
        SwinUNETR(2, 20)
