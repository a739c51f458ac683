"""What every backbone with a decoder must do, whatever its family."""

from __future__ import annotations

import pickle

import pytest
import torch
from tiny_convolutional import FACTORIES
from torch.nn import functional as F

from fedprompt.backbones import Backbone, fingerprint, freeze
from fedprompt.backbones.base import weights
from fedprompt.backbones.convnext import ConvNeXt
from fedprompt.backbones.hub import HubBackbone
from fedprompt.errors import ConfigurationError
from fedprompt.families import backbone_class


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand((2, 3, 64, 96), generator=torch.Generator().manual_seed(0))


def test_forward_is_the_head_on_the_decoded_features_interpolated(
    backbone: Backbone, images: torch.Tensor
) -> None:
    prepared = backbone.preprocess(images)
    decoded = backbone.decode(backbone.encode(prepared))
    expected = F.interpolate(backbone.head(decoded), size=(64, 96), mode="bilinear", align_corners=False)
    assert backbone(prepared).shape == (2, backbone.classes, 64, 96)
    torch.testing.assert_close(backbone(prepared), expected, rtol=0, atol=0)


def test_geometry_tells_the_shapes(backbone: Backbone, images: torch.Tensor) -> None:
    geometry = backbone.geometry
    features = backbone.encode(images)
    shapes = [(2, c, 64 // s, 96 // s) for c, s in zip(geometry.channels, geometry.strides, strict=True)]
    assert [tuple(feature.shape) for feature in features] == shapes
    seen = {}
    decoded = backbone.decode(features, lambda level, x: seen.setdefault(level, x))
    assert list(seen) == list(range(len(geometry.decoder_channels)))
    assert [x.shape[1] for x in seen.values()] == list(geometry.decoder_channels)
    assert decoded is seen[len(seen) - 1]
    assert backbone.pool(features).shape == (2, geometry.pooled)
    assert backbone.head.in_channels == geometry.decoder_channels[-1]


def test_images_of_the_smallest_size_work(backbone: Backbone) -> None:
    side = backbone.geometry.multiple
    images = torch.rand((1, 3, side, 3 * side), generator=torch.Generator().manual_seed(1))
    assert backbone.encode(images)[-1].shape[-2:] == (1, 3)
    assert backbone(images).shape == (1, 3, side, 3 * side)
    assert torch.isfinite(backbone(images[..., :side])).all()
    backbone.check_size(3 * side)
    with pytest.raises(ConfigurationError, match=f"expected a multiple of {side}"):
        backbone.check_size(side + 8)


def test_every_level_and_the_deepest_feature_reach_the_output(
    backbone: Backbone, images: torch.Tensor
) -> None:
    features = backbone.encode(backbone.preprocess(images))
    untouched = backbone.decode(features)
    for changed in range(len(backbone.geometry.decoder_channels)):
        moved = backbone.decode(features, lambda level, x, at=changed: x + 0.5 * (level == at))
        assert not torch.equal(moved, untouched)
    assert not torch.equal(backbone.decode((*features[:-1], features[-1] + 0.5)), untouched)


def test_every_feature_reaches_the_output(backbone: Backbone, images: torch.Tensor) -> None:
    features = backbone.encode(backbone.preprocess(images))
    untouched = backbone.decode(features)
    for changed in range(len(features)):
        moved = tuple(2 * feature if at == changed else feature for at, feature in enumerate(features))
        assert not torch.equal(backbone.decode(moved), untouched)


def test_an_identity_modulation_changes_nothing(backbone: Backbone, images: torch.Tensor) -> None:
    features = backbone.encode(images)
    assert torch.equal(backbone.decode(features, lambda _, x: x), backbone.decode(features))


def test_one_image_gets_the_same_features_as_in_a_batch(backbone: Backbone, images: torch.Tensor) -> None:
    for together, alone in zip(backbone.encode(images), backbone.encode(images[1:]), strict=True):
        torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)


def test_prompts_get_gradients_through_the_frozen_decoder(backbone: Backbone, images: torch.Tensor) -> None:
    *skips, deepest = backbone.encode(backbone.preprocess(images))
    prompted = deepest.clone().requires_grad_()
    backbone.head(backbone.decode((*skips, prompted))).square().sum().backward()
    assert prompted.grad is not None
    assert prompted.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_frozen_means_no_gradient_and_stored_statistics(backbone: Backbone, images: torch.Tensor) -> None:
    before = fingerprint(backbone)
    backbone(images)
    assert fingerprint(backbone) == before
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.modules())


def test_training_the_decoder_leaves_an_encoder_of_transformers_in_eval_mode(backbone: Backbone) -> None:
    backbone.train()
    assert backbone.head.training
    assert isinstance(backbone, HubBackbone) == hasattr(backbone, "encoder")
    if isinstance(backbone, HubBackbone):
        assert backbone.decoder.training
        assert not any(module.training for module in backbone.encoder.modules())


def test_the_fingerprint_sees_every_tensor(backbone: Backbone) -> None:
    before = fingerprint(backbone)
    tensors = [tensor for tensor in weights(backbone).values() if tensor.is_floating_point()]
    for tensor in (tensors[0], tensors[len(tensors) // 2], tensors[-1]):
        kept = tensor.clone()
        tensor.view(-1)[0] += 1e-3
        assert fingerprint(backbone) != before
        tensor.copy_(kept)
    assert fingerprint(backbone) == before


def test_the_fingerprint_ignores_what_only_training_reads(unet: Backbone) -> None:
    before = fingerprint(unet)
    next(b for n, b in unet.named_buffers() if n.endswith("num_batches_tracked")).add_(1)
    assert fingerprint(unet) == before


def test_a_backbone_travels_between_processes(backbone: Backbone) -> None:
    again = pickle.loads(pickle.dumps(backbone))  # noqa: S301 - as engines with worker processes do
    assert fingerprint(again) == fingerprint(backbone)


def test_preprocessing_is_mean_and_deviation(backbone: Backbone) -> None:
    grey = torch.full((1, 3, 32, 32), 0.75)
    for channel in range(3):
        mean, std = backbone.preprocessing.mean[channel], backbone.preprocessing.std[channel]
        prepared = backbone.preprocess(grey)[:, channel]
        torch.testing.assert_close(prepared, torch.full_like(prepared, (0.75 - mean) / std))


def test_without_a_decoder_there_is_one_feature_to_pool(encoder: Backbone, images: torch.Tensor) -> None:
    features = encoder.encode(images)
    (channels,), (stride,) = encoder.geometry.channels, encoder.geometry.strides
    assert [tuple(feature.shape) for feature in features] == [(2, channels, 64 // stride, 96 // stride)]
    pooled = encoder.pool(features)
    assert pooled.shape == (2, encoder.geometry.pooled)
    if not isinstance(encoder, ConvNeXt):  # which normalises the mean
        torch.testing.assert_close(pooled, features[0].flatten(2).mean(dim=2))
    assert (encoder.classes, encoder.head, encoder.geometry.decoder_channels) == (None, None, ())
    with pytest.raises(NotImplementedError, match="has no decoder"):
        encoder.decode(features)
    with pytest.raises(NotImplementedError, match="has no decoder"):
        encoder(images)


def test_freezing_reaches_every_module() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)).train()
    freeze(network)
    assert not network[1].training
    assert not network[0].weight.requires_grad


def test_families_are_found_by_their_names() -> None:
    assert {name: backbone_class(name).name for name in FACTORIES} == {name: name for name in FACTORIES}
    with pytest.raises(ConfigurationError, match="'alexnet': expected one of embedded-unet, mobilenet-v2"):
        backbone_class("alexnet")
