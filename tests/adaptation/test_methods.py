"""Each method of adaptation against what it says it does."""

from __future__ import annotations

import copy

import pytest
import torch
from disc_networks import (
    ConvOnly,
    Grouped,
    LayerNormed,
    TinyUNet,
    TinyViT,
    darkened,
    disc_images,
    disc_network,
    disc_statistics,
    network_of,
    reddened,
    streamed,
)
from slow_vptta import slow_mixing
from torch import Tensor, nn

from fedprompt.adaptation import METHODS, Adapter
from fedprompt.adaptation.drift import DriftMonitor
from fedprompt.adaptation.layers import Moments
from fedprompt.adaptation.methods.batch_norm import mixing, share_of_image
from fedprompt.errors import ConfigurationError

OURS = ("low-frequency", "multi-scale")


def adapter_of(kind: type[nn.Module], method: str = "low-frequency") -> Adapter:
    statistics = None if kind is TinyUNet else disc_statistics(kind)
    return Adapter(disc_network(kind), method, statistics=statistics)


def dice(masks: Tensor, truth: Tensor) -> float:
    both = 2 * (masks.bool() & truth.bool()).sum((1, 2))
    return float((both / (masks.bool().sum((1, 2)) + truth.sum((1, 2)))).mean())


def masks_of(adapter: Adapter, images: Tensor) -> Tensor:
    return torch.stack([torch.from_numpy(found.mask) for found in streamed(adapter, images)])


def test_every_method_of_the_contract_is_there() -> None:
    assert list(METHODS) == ["none", "batch-norm", "reference", "low-frequency", "multi-scale", "tent"]
    assert all(method.name == name for name, method in METHODS.items())


@pytest.mark.parametrize(("images", "share"), [(1, 0.833), (5, 0.691), (25, 0.5), (100, 1 / 3), (400, 0.2)])
def test_the_share_of_the_image_falls_with_warm_up(images: int, share: float) -> None:
    assert share_of_image(images) == pytest.approx(share, abs=1e-3)


def test_mixing_is_linear_in_means_and_variances() -> None:
    source, image = (Moments(torch.tensor([a]), torch.tensor([b])) for a, b in ((1.0, 4.0), (3.0, 2.0)))
    found = mixing(0.25)("any", source, image)
    assert (float(found.mean), float(found.variance)) == (1.5, 3.5)


def test_none_is_the_frozen_network() -> None:
    network, images = disc_network(TinyUNet), darkened(disc_images(5, seed=3)[0])
    with torch.no_grad():
        expected = network.probabilities(network.module(network.normalised(images)))
    for found, image in zip(streamed(Adapter(network, "none"), images), expected, strict=True):
        torch.testing.assert_close(found.probabilities, image, atol=1e-5, rtol=0)
        assert not found.accepted
        assert found.agreement == 1


def test_batch_norm_mixing_equals_a_slow_version() -> None:
    network, images = disc_network(TinyUNet), darkened(disc_images(20, seed=3)[0])
    slow = slow_mixing(network.module, network.normalised(images))
    for found, expected in zip(streamed(Adapter(network, "batch-norm"), images), slow, strict=True):
        torch.testing.assert_close(found.probabilities, expected, atol=1e-4, rtol=0)


class OwnBatchNorm(nn.BatchNorm2d):
    """Normalises with the image's own statistics, which count as constants."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x.detach(), (0, 2, 3), unbiased=False, keepdim=True)
        gain, shift = self.weight.view(1, -1, 1, 1), self.bias.view(1, -1, 1, 1)
        return (x - mean) / (variance + self.eps).sqrt() * gain + shift


@pytest.mark.parametrize("kind", [TinyUNet, Grouped, TinyViT])
def test_tent_equals_a_slow_version(kind: type[nn.Module]) -> None:
    network, images = disc_network(kind), darkened(disc_images(12, seed=3)[0])
    module = copy.deepcopy(network.module).requires_grad_(False)
    trained = []
    for layer in module.modules():
        if isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            layer.__class__ = OwnBatchNorm if kind is TinyUNet else layer.__class__
            trained += [layer.weight.requires_grad_(), layer.bias.requires_grad_()]
    adam = torch.optim.Adam(trained, lr=1e-3)
    plain, moved = streamed(Adapter(network, "none"), images), []
    for place, (found, image) in enumerate(
        zip(streamed(Adapter(network, "tent"), images), images, strict=True)
    ):
        probabilities = module(network.normalised(image[None])).softmax(1)
        torch.testing.assert_close(found.probabilities, probabilities[0].detach(), atol=1e-4, rtol=0)
        adam.zero_grad()
        (-(probabilities * probabilities.clamp(min=1e-9).log()).sum(1).mean()).backward()
        adam.step()
        moved.append(float((found.probabilities - plain[place].probabilities).abs().max()))
    assert moved[-1] > 1e-3


@pytest.mark.parametrize("method", OURS)
@pytest.mark.parametrize("kind", [TinyUNet, ConvOnly, Grouped, LayerNormed, TinyViT])
def test_the_alignment_loss_falls_on_a_shifted_stream(kind: type[nn.Module], method: str) -> None:
    for shifted in (darkened, reddened):
        found = streamed(adapter_of(kind, method), shifted(disc_images(14, seed=7)[0]))
        pairs = [(one.loss_before, one.loss_after) for one in found]
        assert all(after <= before for before, after in pairs)  # type: ignore[operator]
        last = [after / before for before, after in pairs[8:]]  # type: ignore[operator]
        assert sum(last) / len(last) < 0.95
        if kind is TinyUNet:
            assert any(one.accepted for one in found)
            assert any(one.reused for one in found)


@pytest.mark.parametrize("method", OURS)
def test_steps_that_raise_the_loss_are_not_taken(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS[method], "_step", lambda *given: 0.3 * given[2].sign())
    adapter = adapter_of(TinyViT, method)
    for found in streamed(adapter, darkened(disc_images(5, seed=7)[0])):
        assert found.loss_after == found.loss_before
        assert (found.accepted, found.reason) == (False, "no step lowers the alignment loss")
        assert not adapter.prompt.log_gain.any()  # type: ignore[union-attr]
    assert "written" not in adapter.state()[1]["values"]


@pytest.mark.parametrize("trust", [0.1, 0.6])
def test_the_prediction_moves_as_far_as_the_shift_is_trusted(
    trust: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = darkened(disc_images(1, seed=7)[0])[0]
    plain = adapter_of(TinyViT, "none")(image).probabilities

    def at(share: float) -> Tensor:
        monkeypatch.setattr(DriftMonitor, "trust", property(lambda _: share))
        return adapter_of(TinyViT)(image).probabilities

    whole = at(1.0)
    assert (whole - plain).abs().max() > 1e-3
    torch.testing.assert_close(at(trust), plain + trust * (whole - plain), atol=1e-6, rtol=0)


def test_an_image_that_is_not_adapted_to_has_no_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, images = adapter_of(TinyUNet), darkened(disc_images(3, seed=7)[0])
    streamed(adapter, images[:2])
    assert adapter.prompt.log_gain.any()  # type: ignore[union-attr]
    monkeypatch.setattr(DriftMonitor, "trust", 0.0)
    assert not adapter(images[2]).accepted
    assert not adapter.prompt.log_gain.any()  # type: ignore[union-attr]


@pytest.mark.parametrize(("shifted", "gain"), [(darkened, 0.5), (reddened, 0.2)])
def test_ours_finds_discs_that_the_frozen_network_loses(shifted: object, gain: float) -> None:
    images, truth = disc_images(24, seed=7)
    images = shifted(images)  # type: ignore[operator]
    plain = dice(masks_of(adapter_of(TinyUNet, "none"), images), truth)
    ours = dice(masks_of(adapter_of(TinyUNet), images), truth)
    reference = dice(masks_of(adapter_of(TinyUNet, "reference"), images), truth)
    assert ours > plain + gain
    assert ours > reference


@pytest.mark.parametrize("method", OURS)
def test_an_unshifted_stream_is_that_of_the_frozen_network_bit_by_bit(method: str) -> None:
    images = disc_images(40, seed=7)[0]
    plain = streamed(adapter_of(TinyUNet, "none"), images)
    for found, other in zip(streamed(adapter_of(TinyUNet, method), images), plain, strict=True):
        assert torch.equal(found.probabilities, other.probabilities)
        assert found.mask.tobytes() == other.mask.tobytes()
        assert not found.accepted
        assert found.reason == "the stream is not shifted"


@pytest.mark.parametrize("method", OURS)
def test_whatever_is_not_accepted_is_the_frozen_networks_bit_by_bit(method: str) -> None:
    images = torch.cat([disc_images(20, seed=7)[0], darkened(disc_images(20, seed=8)[0])])
    plain = streamed(adapter_of(TinyUNet, "none"), images)
    found = streamed(adapter_of(TinyUNet, method), images)
    refused = [place for place in range(40) if not found[place].accepted]
    assert 15 < len(refused) < 35
    for place in refused:
        assert torch.equal(found[place].probabilities, plain[place].probabilities)
        assert found[place].reason
        assert found[place].agreement == 1


def test_a_change_of_scanner_is_reported_and_only_then() -> None:
    parts = [
        disc_images(20, seed=7)[0],
        darkened(disc_images(20, seed=8)[0]),
        reddened(disc_images(20, seed=9)[0]),
    ]
    restarts = [
        place
        for place, found in enumerate(streamed(adapter_of(TinyUNet), torch.cat(parts)))
        if found.restarted
    ]
    assert len(restarts) == 2
    assert 20 <= restarts[0] < 24
    assert 40 <= restarts[1] < 44


def test_after_a_change_nothing_of_the_old_scanner_is_followed() -> None:
    adapter = adapter_of(TinyUNet)
    streamed(adapter, darkened(disc_images(20, seed=8)[0]))
    back = streamed(adapter, disc_images(20, seed=7)[0])
    (restart,) = [place for place, found in enumerate(back) if found.restarted]
    assert all(count <= 20 - restart for count in adapter.state()[1]["values"]["blends"].values())
    assert back[-1].reason == "the stream is not shifted"


def test_a_prediction_that_an_objection_speaks_against_is_not_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = darkened(disc_images(10, seed=7)[0])
    plain = streamed(adapter_of(TinyUNet, "none"), images)
    module = "fedprompt.adaptation.methods.low_frequency"
    monkeypatch.setattr(f"{module}.objection", lambda *_: "it looks wrong")
    adapter = adapter_of(TinyUNet)
    for found, other in zip(streamed(adapter, images), plain, strict=True):
        assert torch.equal(found.probabilities, other.probabilities)
        assert (found.accepted, found.reason) == (False, "it looks wrong")
    assert "written" not in adapter.state()[1]["values"]  # and no such prompt is remembered


def test_a_prompt_never_moves_further_than_its_limit() -> None:
    adapter = adapter_of(TinyUNet, "multi-scale")
    largest = []
    for image in darkened(disc_images(24, seed=7)[0]):
        adapter(image)
        assert adapter.prompt is not None
        assert adapter.prompt.radius == 2
        largest.append(float(adapter.prompt.log_gain.detach().abs().max()))
        assert largest[-1] <= adapter.prompt.limit + 1e-6
    assert largest[0] <= 3 * 0.05 + 1e-6  # three bounded steps
    assert max(largest) > 0.3  # which add up from image to image


def test_windows_of_several_scales_move_the_lowest_frequencies_most() -> None:
    adapter = adapter_of(TinyUNet, "multi-scale")
    streamed(adapter, darkened(disc_images(1, seed=7)[0]))
    window = adapter.prompt.window().log().abs().mean(0)  # type: ignore[union-attr]
    ring = torch.ones(5, 5)
    ring[1:4, 1:4] = 0
    assert window[2, 2] > window[ring > 0].max()


@pytest.mark.parametrize("method", ["batch-norm", "reference"])
@pytest.mark.parametrize("kind", [ConvOnly, TinyViT])
def test_some_methods_need_batch_norm_whatever_was_collected(kind: type[nn.Module], method: str) -> None:
    with pytest.raises(
        ConfigurationError, match=f"method {method}: expected a network with BatchNorm layers"
    ):
        adapter_of(kind, method)


def test_tent_needs_gains() -> None:
    with pytest.raises(ConfigurationError, match=r"method tent: expected a network with gains.*got ConvOnly"):
        adapter_of(ConvOnly, "tent")


@pytest.mark.parametrize("method", OURS)
def test_without_statistics_it_says_how_to_collect_them(method: str) -> None:
    for kind in (ConvOnly, TinyViT):
        with pytest.raises(
            ConfigurationError, match=f"method {method}.*`fedprompt adapt collect`.*{kind.__name__}"
        ):
            Adapter(disc_network(kind), method)


class Hybrid(nn.Module):
    """Both BatchNorm and GroupNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.batch = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.group, self.head = nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.group(self.batch(self.first(x)).relu()))


@pytest.mark.parametrize("method", list(METHODS))
def test_networks_with_several_kinds_of_normalisation_are_adapted(method: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = network_of(Hybrid())
    found = streamed(Adapter(network, method), darkened(disc_images(4, seed=7)[0]))
    assert all(one.accepted or method == "none" for one in found)
