"""The reference method against a slow implementation that was written from its description alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from disc_networks import ConvOnly, TinyUNet, darkened, disc_images, disc_network, network_of, streamed
from slow_vptta import SlowVPTTA, slow_predictions
from torch import Tensor

from fedprompt.adaptation import Adapter, Network
from fedprompt.adaptation.methods.reference import ReferencePrompting, window
from fedprompt.errors import ConfigurationError


def differences(network: Network, images: Tensor) -> list[float]:
    """Largest difference of the probabilities, image by image."""
    adapted = streamed(Adapter(network, "reference"), images)
    slow = slow_predictions(network.module, network.normalised(images))
    return [float((a.probabilities - b).abs().max()) for a, b in zip(adapted, slow, strict=True)]


@pytest.mark.parametrize("side", [32, 27])
def test_a_stream_of_thirty_images_is_that_of_the_slow_implementation(side: int) -> None:
    images = torch.cat(
        [disc_images(12, seed=3, size=(side, side))[0], darkened(disc_images(18, 4, (side, side))[0])]
    )
    network = disc_network(TinyUNet)
    assert max(differences(network, images)) < 1e-4
    plain = streamed(Adapter(network, "none"), images)
    adapted = streamed(Adapter(network, "reference"), images)
    moved = [
        float((a.probabilities - b.probabilities).abs().max()) for a, b in zip(adapted, plain, strict=True)
    ]
    assert min(moved) > 1e-3  # there is something to compare
    assert [found.reused for found in adapted] == [False] * 16 + [True] * 14


def test_a_window_of_more_than_one_frequency_too() -> None:
    images = darkened(disc_images(7, seed=3, size=(208, 208))[0])
    assert window(images.shape[-2:]) == (slice(103, 105), slice(103, 105))
    assert max(differences(disc_network(TinyUNet), images)) < 1e-4


def test_the_optimiser_goes_on_while_prompts_begin_anew() -> None:
    network, images = disc_network(TinyUNet), darkened(disc_images(3, seed=3)[0])
    adapter = Adapter(network, "reference")
    slow = SlowVPTTA(network.module, 32)
    for image in images:
        adapter(image)
        slow(network.normalised(image[None]))
    moments = adapter.state()[0]
    state = slow.adam.state[slow.prompt]
    assert float(state["step"]) == 3
    np.testing.assert_allclose(moments["adam/first"], state["exp_avg"].numpy(), rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(moments["adam/second"], state["exp_avg_sq"].numpy(), rtol=1e-3, atol=1e-9)


def memories(images: Tensor) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Keys and prompts after a stream, ours and the slow ones, both in their order."""
    network = disc_network(TinyUNet)
    adapter, slow = Adapter(network, "reference"), SlowVPTTA(network.module, 32)
    for image in images:
        adapter(image)
        slow(network.normalised(image[None]))
    arrays, metadata = adapter.state()
    places = range(metadata["values"]["memory"])
    keys, prompts = ([arrays[f"{kind}/{place:02d}"] for place in places] for kind in ("key", "prompt"))
    return keys, prompts, [np.frombuffer(key, np.float32) for key in slow.memory], list(slow.memory.values())


@pytest.mark.parametrize("kind", ["before it is full", "full", "an image again", "an image again when full"])
def test_the_memory_holds_what_the_slow_queue_holds(kind: str) -> None:
    images = darkened(disc_images(44, seed=3)[0])
    order = {
        "before it is full": range(40),
        "full": range(44),
        "an image again": [*range(20), 4, 20, 4, 21],
        "an image again when full": [*range(41), 7],  # the oldest goes before it is looked for
    }[kind]
    keys, prompts, slow_keys, slow_prompts = memories(images[list(order)])
    assert len(keys) == len(slow_keys) == {"full": 41, "an image again": 22}.get(kind, 40)
    for mine, theirs in zip(keys, slow_keys, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3)
    for mine, theirs in zip(prompts, slow_prompts, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("side", "expected"),
    [(256, slice(127, 129)), (352, slice(174, 177)), (384, slice(190, 193)), (512, slice(253, 258))],
)
def test_the_window_is_off_the_centre_as_in_the_reference(side: int, expected: slice) -> None:
    assert window(torch.Size((side, side))) == (expected, expected)


def test_a_channel_without_variance_does_not_stop_it() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = TinyUNet()
    module.first.weight.data[0] = 0
    module.first.bias.data[0] = 0
    images = darkened(disc_images(3, seed=3)[0])
    network = network_of(module)
    assert all(found.accepted for found in streamed(Adapter(network, "reference"), images))
    assert max(differences(network, images)) < 1e-4


def test_its_rate_can_be_that_for_polyps() -> None:
    network, images = disc_network(TinyUNet), darkened(disc_images(4, seed=3)[0])
    method = ReferencePrompting(network, None, rate=0.01)
    slow = slow_predictions(network.module, network.normalised(images), rate=0.01)
    for image, expected in zip(images, slow, strict=True):
        torch.testing.assert_close(method.adapt(image[None]).probabilities[0], expected, atol=1e-4, rtol=0)


def test_it_needs_batch_norm() -> None:
    with pytest.raises(
        ConfigurationError, match="method reference: expected a network with BatchNorm layers"
    ):
        Adapter(disc_network(ConvOnly), "reference")
