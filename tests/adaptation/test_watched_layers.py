"""Watched copies of frozen networks: tensors shared, statistics as computed by hand, nothing run in vain."""

from __future__ import annotations

import threading
from typing import ClassVar

import pytest
import torch
from disc_networks import (
    KINDS,
    Blocks,
    ConvOnly,
    Grouped,
    LayerNormed,
    TinyUNet,
    TinyViT,
    digest,
    disc_images,
    disc_network,
)
from torch import Tensor, nn
from torch.nn import functional as F

from fedprompt.adaptation.layers import Moments, WatchedNetwork, affine_layers, moments, shared_copy
from fedprompt.errors import ConfigurationError


def built(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind()


def channels_of(layer: nn.Module) -> int:
    """How many channels enter a layer."""
    for name in ("num_features", "num_channels", "in_channels"):
        if hasattr(layer, name):
            return int(getattr(layer, name))
    assert isinstance(layer, nn.LayerNorm)
    return layer.normalized_shape[0]


def by_hand(x: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of every channel; channels are the only dimension of that length."""
    (dim,) = [d for d in range(1, x.ndim) if x.shape[d] == channels]
    values = [x.select(dim, channel).double() for channel in range(channels)]
    means = [value.sum() / value.numel() for value in values]
    spreads = [
        (value - mean).square().sum() / value.numel() for value, mean in zip(values, means, strict=True)
    ]
    return torch.stack(means).float(), torch.stack(spreads).float()


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_shares_every_tensor_and_leaves_the_original_as_it_was(kind: type[nn.Module]) -> None:
    module = built(kind).train().requires_grad_(True)
    before = digest(module)
    copied = shared_copy(module)
    mine, theirs = (dict(m.state_dict(keep_vars=True)) for m in (copied, module))
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert tensor.data_ptr() == theirs[name].data_ptr()
        assert not tensor.requires_grad
    WatchedNetwork(module).observe(disc_images(1)[0])
    assert digest(module) == before
    assert module.training
    assert all(layer.training for layer in module.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())
    assert [type(layer) for layer in module.modules()] == [type(layer) for layer in copied.modules()]
    assert not any(layer._forward_pre_hooks for layer in module.modules())


def test_a_network_trains_while_its_copy_predicts_with_the_same_weights() -> None:
    module = built(Grouped).train()
    watched = WatchedNetwork(module)
    images, masks = disc_images(4)
    first = watched(images)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    F.cross_entropy(module(images), masks).backward()
    watched.observe(images)
    gradients = [parameter.grad.clone() for parameter in module.parameters()]  # type: ignore[union-attr]
    assert all(bool(gradient.any()) for gradient in gradients)
    optimiser.step()
    assert not torch.equal(watched(images), first)
    torch.testing.assert_close(watched(images), module(images).detach())
    for parameter, gradient in zip(module.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]


def test_statistics_of_batch_norm_stand_still_in_the_copy_of_a_training_network() -> None:
    module = built(TinyUNet).train()
    before = digest(module)
    watched = WatchedNetwork(module)
    watched.observe(disc_images(2)[0])
    watched(disc_images(2)[0], blend=lambda _, __, image: image)
    assert digest(module) == before


def test_tied_weights_stay_tied() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    copied = shared_copy(module)
    assert copied[0].weight is copied[1].weight  # type: ignore[index]


def test_what_cannot_be_copied_is_named() -> None:
    class Locked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

    with pytest.raises(ConfigurationError, match="expected a module that can be copied, got Locked"):
        shared_copy(Locked())


@pytest.mark.parametrize("kind", KINDS)
def test_a_watched_network_predicts_what_the_network_predicts(kind: type[nn.Module]) -> None:
    network = disc_network(kind)
    images = network.normalised(disc_images(3, seed=9)[0])
    watched = WatchedNetwork(network.module)
    with torch.no_grad():
        expected = network.module(images)
        torch.testing.assert_close(watched(images), expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(watched.observe(images)[0], watched(images))


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        (TinyUNet, ["norm1", "norm2", "norm3", "norm4"]),
        (Grouped, ["norm1", "norm2", "norm3", "norm4"]),
        (LayerNormed, ["norm1", "norm2", "norm3", "norm4"]),
        (ConvOnly, ["first", "second", "third", "up", "head"]),
        (TinyViT, ["norms.0", "norms.1", "norms.2", "norms.3"]),
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_statistics_are_those_of_the_inputs_of_the_layers(
    kind: type[nn.Module], layers: list[str], count: int
) -> None:
    network = disc_network(kind)
    images = network.normalised(disc_images(count, seed=9, size=(36, 44))[0])
    inputs: dict[str, Tensor] = {}
    module = shared_copy(network.module)
    for name in layers:
        keep = lambda _, given, name=name: inputs.setdefault(name, given[0])  # noqa: E731
        module.get_submodule(name).register_forward_pre_hook(lambda m, g, keep=keep: (keep(m, g), None)[1])
    with torch.no_grad():
        module(images)
        watched = WatchedNetwork(network.module)
        _, observed = watched.observe(images)
    assert list(observed) == list(watched.names) == layers
    assert set(watched.batch_norm) == (set(layers) if kind is TinyUNet else set())
    for name in layers:
        mean, variance = by_hand(inputs[name], channels_of(module.get_submodule(name)))
        torch.testing.assert_close(observed[name].mean, mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(observed[name].variance, variance, atol=1e-5, rtol=1e-3)
        assert watched.positions[name] == inputs[name].numel() // len(mean)


class Counted(nn.Conv2d):
    """Counts its forwards in all copies."""

    forwards: ClassVar[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.forwards.append(1)
        return super().forward(x)


def test_a_truncated_forward_computes_nothing_after_its_last_layer() -> None:
    network = disc_network(TinyUNet)
    watched = WatchedNetwork(network.module)
    third, up = watched.module.get_submodule("third"), watched.module.get_submodule("up")
    third.__class__ = up.__class__ = Counted
    images = network.normalised(disc_images(1, seed=9)[0])
    x = images.clone().requires_grad_()
    Counted.forwards.clear()
    part = watched.observe_until(x, "norm2")
    assert list(part) == ["norm1", "norm2"]
    assert not Counted.forwards
    (gradient,) = torch.autograd.grad(part["norm2"].mean.sum() + part["norm1"].variance.sum(), x)
    y = images.clone().requires_grad_()
    _, whole = watched.observe(y)
    assert len(Counted.forwards) == 2
    for name in part:
        assert torch.equal(part[name].mean, whole[name].mean)
        assert torch.equal(part[name].variance, whole[name].variance)
    (expected,) = torch.autograd.grad(whole["norm2"].mean.sum() + whole["norm1"].variance.sum(), y)
    torch.testing.assert_close(gradient, expected)
    assert torch.equal(watched(images), watched.observe(images)[0])  # nothing stays behind


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_can_be_those_of_some_layers_only(kind: type[nn.Module]) -> None:
    network = disc_network(kind)
    watched = WatchedNetwork(network.module)
    images = network.normalised(disc_images(1, seed=9)[0])
    with torch.no_grad():
        logits, whole = watched.observe(images)
        some = list(whole)[1:3]
        again, part = watched.observe(images, some)
        assert list(watched.observe(images)[1]) == list(whole)
    assert torch.equal(logits, again)
    assert list(part) == some
    for name in some:
        assert torch.equal(part[name].mean, whole[name].mean)
        assert torch.equal(part[name].variance, whole[name].variance)


def test_a_blend_decides_what_batch_norm_normalises_with() -> None:
    network = disc_network(TinyUNet)
    watched = WatchedNetwork(network.module)
    images = network.normalised(disc_images(1, seed=9)[0])
    told: dict[str, tuple[Moments, Moments]] = {}

    def blend(name: str, source: Moments, image: Moments) -> Moments:
        told[name] = (source, image)
        return image

    found = watched(images, blend=blend)
    module = shared_copy(network.module)
    for name, layer in module.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert torch.equal(told[name][0].mean, layer.running_mean)  # type: ignore[arg-type]
            assert torch.equal(told[name][0].variance, layer.running_var)  # type: ignore[arg-type]
            assert not told[name][1].mean.requires_grad
            layer.running_mean = layer.running_var = None  # then it takes those of the batch
    torch.testing.assert_close(found, module(images), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(watched(images), network.module(images))


def test_a_layer_that_runs_twice_counts_the_first_time() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.GroupNorm(1, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.norm(x) + 5)

    x = torch.rand(1, 2, 4, 4)
    _, observed = WatchedNetwork(Twice()).observe(x)
    torch.testing.assert_close(observed["norm"].mean, x.mean((0, 2, 3)))


@pytest.mark.parametrize(
    ("shape", "dim"),
    [((1, 5, 6, 7), 1), ((3, 5, 6, 7), 1), ((2, 9, 5), -1), ((1, 9, 5), -1), ((2, 4, 3, 5), -1), ((2, 5), 1)],
)
@pytest.mark.parametrize("strided", [False, True])
def test_moments_and_their_gradients_are_those_of_float64(
    shape: tuple[int, ...], dim: int, strided: bool
) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(shape, generator=generator) * 2 + 1
    if strided:
        x = x.transpose(-1, -2).contiguous().transpose(-1, -2)
    x.requires_grad_()
    exact = x.detach().double().requires_grad_()
    others = [d for d in range(exact.ndim) if d != dim % exact.ndim]
    mean, variance = exact.mean(others), exact.var(others, unbiased=False)
    found = moments(x, dim)
    torch.testing.assert_close(found.mean.double(), mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.variance.double(), variance, atol=1e-4, rtol=1e-4)
    weights = torch.randn(2, len(mean), generator=generator)
    (gradient,) = torch.autograd.grad((weights[0] * found.mean + weights[1] * found.variance).sum(), x)
    (expected,) = torch.autograd.grad((weights[0] * mean + weights[1] * variance).sum(), exact)
    torch.testing.assert_close(gradient.double(), expected, atol=1e-5, rtol=1e-4)


def test_moments_of_channels_that_are_constant_or_far_from_zero() -> None:
    noise = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    x = torch.cat([torch.full_like(noise, 0.3), torch.zeros_like(noise), 30 + noise], dim=1)
    found = moments(x, 1)
    assert 0 <= float(found.variance[0]) < 1e-6
    assert float(found.variance[1]) == 0
    assert float(found.variance[2]) == pytest.approx(float(noise.var(unbiased=False)), rel=1e-3)


def test_affine_layers_are_the_normalisation_layers_with_gain_and_shift() -> None:
    module = Blocks(lambda channels: nn.BatchNorm2d(channels, affine=channels != 16))
    watched = WatchedNetwork(module)
    assert [name for name, _ in affine_layers(watched.module)] == ["norm1", "norm4"]
    assert not list(affine_layers(built(ConvOnly)))
    assert len(list(affine_layers(built(TinyViT)))) == 4
