"""What every backbone must do, whatever its family."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.nn import functional as F

from fedprompt.backbones import BACKBONES, SegmentationBackbone, backbone_class, fingerprint, freeze
from fedprompt.errors import ConfigurationError


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand((2, 3, 64, 96), generator=torch.Generator().manual_seed(0))


def test_forward_is_the_head_on_the_decoded_features_interpolated(
    backbone: SegmentationBackbone, images: torch.Tensor
) -> None:
    prepared = backbone.preprocess(images)
    decoded = backbone.decode(backbone.encode(prepared))
    expected = F.interpolate(backbone.head(decoded), size=(64, 96), mode="bilinear", align_corners=False)
    assert backbone(prepared).shape == (2, backbone.classes, 64, 96)
    torch.testing.assert_close(backbone(prepared), expected, rtol=0, atol=0)


def test_geometry_tells_the_shapes(backbone: SegmentationBackbone, images: torch.Tensor) -> None:
    geometry = backbone.geometry
    features = backbone.encode(images)
    shapes = [(2, c, 64 // s, 96 // s) for c, s in zip(geometry.channels, geometry.strides, strict=True)]
    assert [tuple(feature.shape) for feature in features] == shapes
    seen = {}
    decoded = backbone.decode(features, lambda level, x: seen.setdefault(level, x))
    assert list(seen) == list(range(len(geometry.decoder_channels)))
    assert [x.shape[1] for x in seen.values()] == list(geometry.decoder_channels)
    assert decoded is seen[len(seen) - 1]


def test_every_level_and_the_deepest_feature_reach_the_output(
    backbone: SegmentationBackbone, images: torch.Tensor
) -> None:
    features = backbone.encode(backbone.preprocess(images))
    untouched = backbone.decode(features)
    for changed in range(len(backbone.geometry.decoder_channels)):
        moved = backbone.decode(features, lambda level, x, at=changed: x + 0.5 * (level == at))
        assert not torch.equal(moved, untouched)
    assert not torch.equal(backbone.decode((*features[:-1], features[-1] + 0.5)), untouched)


def test_an_identity_modulation_changes_nothing(backbone: SegmentationBackbone, images: torch.Tensor) -> None:
    features = backbone.encode(images)
    assert torch.equal(backbone.decode(features, lambda _, x: x), backbone.decode(features))


def test_one_image_gets_the_same_features_as_in_a_batch(
    backbone: SegmentationBackbone, images: torch.Tensor
) -> None:
    for together, alone in zip(backbone.encode(images), backbone.encode(images[1:]), strict=True):
        torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)


def test_prompts_get_gradients_through_the_frozen_decoder(
    backbone: SegmentationBackbone, images: torch.Tensor
) -> None:
    *skips, deepest = backbone.encode(backbone.preprocess(images))
    prompted = deepest.clone().requires_grad_()
    backbone.head(backbone.decode((*skips, prompted))).square().sum().backward()
    assert prompted.grad is not None
    assert prompted.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_frozen_means_no_gradient_and_stored_statistics(
    backbone: SegmentationBackbone, images: torch.Tensor
) -> None:
    before = fingerprint(backbone)
    backbone(images)
    assert fingerprint(backbone) == before
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.modules())


def test_the_fingerprint_sees_one_weight_one_statistic_and_the_preprocessing(
    backbone: SegmentationBackbone,
) -> None:
    before = fingerprint(backbone)
    weight = backbone.head.weight.data
    kept = weight[0, 0, 0, 0].item()
    weight[0, 0, 0, 0] += 1e-6
    assert fingerprint(backbone) != before
    weight[0, 0, 0, 0] = kept
    assert fingerprint(backbone) == before
    next(b for n, b in backbone.named_buffers() if n.endswith("running_mean"))[0] += 1e-6
    assert fingerprint(backbone) != before


def test_the_fingerprint_ignores_what_only_training_reads(unet: SegmentationBackbone) -> None:
    before = fingerprint(unet)
    next(b for n, b in unet.named_buffers() if n.endswith("num_batches_tracked")).add_(1)
    assert fingerprint(unet) == before


def test_a_backbone_travels_between_processes(backbone: SegmentationBackbone) -> None:
    again = pickle.loads(pickle.dumps(backbone))  # noqa: S301 - as engines with worker processes do
    assert fingerprint(again) == fingerprint(backbone)


def test_preprocessing_is_mean_and_deviation(backbone: SegmentationBackbone) -> None:
    grey = torch.full((1, 3, 32, 32), 0.75)
    mean, std = backbone.preprocessing.mean[0], backbone.preprocessing.std[0]
    torch.testing.assert_close(backbone.preprocess(grey), torch.full_like(grey, (0.75 - mean) / std))


def test_freezing_reaches_every_module() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)).train()
    freeze(network)
    assert not network[1].training
    assert not network[0].weight.requires_grad


def test_an_unknown_backbone_is_answered_with_those_that_exist() -> None:
    with pytest.raises(ConfigurationError, match="'resnet': expected one of embedded-unet, mobilenet-v2"):
        backbone_class("resnet")
    assert all(family.name == name for name, family in BACKBONES.items())
