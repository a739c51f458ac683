"""The adapter as one uses it: replay, state, neighbours; the network is never touched."""

from __future__ import annotations

import copy
import gc
import json

import numpy as np
import pytest
import torch
from adapter_streams import EVERY, OURS, equal, shifting, state_bytes, undisturbed
from disc_networks import (
    CLASSES,
    ConvOnly,
    Grouped,
    TinyUNet,
    TinyViT,
    darkened,
    digest,
    disc_images,
    disc_network,
    disc_statistics,
    network_of,
    reddened,
    same_result,
    streamed,
)
from torch import Tensor, nn

from fedprompt.adaptation import METHODS, Adapted, Adapter, Network
from fedprompt.adaptation.methods import low_frequency
from fedprompt.adaptation.safety import CertaintyGate
from fedprompt.artifacts import arrays_from_bytes, arrays_to_bytes
from fedprompt.errors import ConfigurationError, DataError


@EVERY
def test_the_same_stream_again_gives_the_same_bytes(method: str) -> None:
    expected, state = undisturbed(method, 22, 12)
    adapter = Adapter(disc_network(), method)
    assert equal(streamed(adapter, shifting()), expected)
    assert state_bytes(adapter) == state
    assert adapter.images == len(expected)


@EVERY
@pytest.mark.parametrize("cut", [0, 1, 14])
def test_a_stream_goes_on_from_its_state_as_if_undisturbed(method: str, cut: int) -> None:
    network, images = disc_network(), shifting()
    expected, state = undisturbed(method, 22, 12)
    half = Adapter(network, method)
    streamed(half, images[:cut])
    other = Adapter(network, method)
    streamed(other, images[5:8])  # what it did before does not matter
    other.restore(*arrays_from_bytes(state_bytes(half), "here"))
    assert other.images == cut
    assert equal(streamed(other, images[cut:]), expected[cut:])
    assert state_bytes(other) == state


@pytest.mark.parametrize("kind", [ConvOnly, TinyViT])
def test_so_does_one_with_collected_statistics(kind: type[nn.Module]) -> None:
    images = shifting()
    whole, half, other = (Adapter(disc_network(kind), statistics=disc_statistics(kind)) for _ in range(3))
    expected = streamed(whole, images)
    streamed(half, images[:14])
    other.restore(*half.state())
    assert equal(streamed(other, images[14:]), expected[14:])


@EVERY
def test_a_state_is_a_snapshot_of_its_moment(method: str) -> None:
    adapter, images = Adapter(disc_network(), method), shifting()
    streamed(adapter, images[:4])
    arrays, metadata = adapter.state()
    before = arrays_to_bytes(arrays, metadata)
    streamed(adapter, images[4:8])
    assert arrays_to_bytes(arrays, metadata) == before
    adapter.restore(arrays, metadata)
    assert state_bytes(adapter) == before


@EVERY
def test_the_callers_gradient_mode_does_not_matter(method: str) -> None:
    images = shifting(8, 8)
    for mode in (torch.no_grad, torch.inference_mode):
        adapter = Adapter(disc_network(), method)
        with mode():
            found = streamed(adapter, images)
        assert equal(found, undisturbed(method, 8, 8)[0])


@EVERY
def test_the_network_is_never_touched(method: str) -> None:
    module = copy.deepcopy(disc_network().module).train().requires_grad_(True)
    network = Network(module, CLASSES)
    before, layers = digest(module), [(type(m), m.training) for m in module.modules()]
    adapter = Adapter(network, method)
    streamed(adapter, shifting())
    adapter.restore(*adapter.state())
    assert digest(module) == before
    assert [(type(m), m.training) for m in module.modules()] == layers
    assert all(p.requires_grad and p.grad is None for p in module.parameters())


@EVERY
def test_adapters_on_one_network_do_not_see_each_other(method: str) -> None:
    network = disc_network()
    one, others = Adapter(network, method), [Adapter(network, name) for name in ("tent", method)]
    for image, alone in zip(shifting(8, 8), undisturbed(method, 8, 8)[0], strict=True):
        for other in others:
            other(reddened(image))
        assert same_result(one(image), alone)


def test_tent_tunes_copies_of_its_own() -> None:
    network, images = disc_network(), shifting(8, 8)
    plain = Adapter(network, "none")(images[0])
    streamed(Adapter(network, "tent"), images)
    assert same_result(Adapter(network, "none")(images[0]), plain)
    assert same_result(Adapter(network, "tent")(images[0]), Adapter(network, "tent")(images[0]))


@EVERY
def test_a_result_says_what_became_of_the_image(method: str) -> None:
    for found in streamed(Adapter(disc_network(), method), shifting(6, 6)):
        assert isinstance(found, Adapted)
        assert found.probabilities.shape == (2, 32, 32)
        assert found.probabilities.dtype == torch.float32
        torch.testing.assert_close(found.probabilities.sum(0), torch.ones(32, 32))
        assert found.mask.dtype == np.uint8
        assert np.array_equal(found.mask, found.probabilities.argmax(0).numpy())
        assert found.foreground == pytest.approx((found.mask > 0).mean())
        assert 0 <= found.entropy <= 1  # type: ignore[operator]
        assert found.seconds > 0
        assert found.accepted == (not found.reason)
        if method in OURS:
            assert found.loss_after <= found.loss_before  # type: ignore[operator]
            assert 0 <= found.agreement <= 1  # type: ignore[operator]


@EVERY
def test_networks_with_sigmoid_outputs_are_adapted_too(method: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = TinyUNet(outputs=2).eval()
    network = Network(module, ("background", "disc", "cup"), activation="sigmoid")
    for found in streamed(Adapter(network, method), shifting(4, 4)):
        assert found.probabilities.shape == (3, 32, 32)
        assert found.accepted or method == "none" or found.reason


@EVERY
def test_the_state_of_another_network_or_method_is_refused(method: str) -> None:
    adapter = Adapter(disc_network(), method)
    streamed(adapter, shifting(3, 3))
    arrays, metadata = adapter.state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        stranger = Adapter(network_of(TinyUNet()), method)
    before = state_bytes(stranger)
    with pytest.raises(DataError, match="expected the state of network"):
        stranger.restore(arrays, metadata)
    other = Adapter(disc_network(), "none" if method != "none" else "tent")
    with pytest.raises(DataError, match=f"expected the state of method {other.method}, got {method}"):
        other.restore(arrays, metadata)
    for changed in ({}, {**metadata, "kind": "something"}, {**metadata, "schema": 2}):
        with pytest.raises(DataError, match="expected an adaptation stream of schema 1"):
            adapter.restore(arrays, changed)
    assert (stranger.images, state_bytes(stranger)) == (0, before)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "none"])
def test_a_state_without_its_values_is_refused_and_changes_nothing(method: str) -> None:
    adapter, images = Adapter(disc_network(), method), shifting(8, 8)
    streamed(adapter, images[:4])
    arrays, metadata = adapter.state()
    before = state_bytes(adapter)
    without = {key: value for key, value in metadata.items() if key != "images"}
    broken = [{**metadata, "values": None}, without]
    if method != "tent":
        broken += [{**metadata, "values": {}}, {**metadata, "values": {"images": "many"}}]
    for changed in broken[0 if method != "tent" else 1 :]:
        with pytest.raises(DataError, match="expected a whole state"):
            adapter.restore(arrays, changed)
    assert state_bytes(adapter) == before
    assert adapter.images == 4


@pytest.mark.parametrize("method", ["reference", *OURS, "tent"])
def test_a_state_that_lacks_an_array_is_refused(method: str) -> None:
    adapter, images = Adapter(disc_network(), method), shifting(8, 8)
    streamed(adapter, images[:6])
    arrays, metadata = adapter.state()
    for name in arrays:
        less = {key: value for key, value in arrays.items() if key != name}
        with pytest.raises(DataError, match="expected a whole state"):
            Adapter(disc_network(), method).restore(less, metadata)


@EVERY
def test_metadata_is_json_and_the_state_is_a_file(method: str) -> None:
    adapter = Adapter(disc_network(), method)
    streamed(adapter, shifting())
    arrays, metadata = adapter.state()
    assert json.loads(json.dumps(metadata, allow_nan=False)) == metadata
    assert all(isinstance(array, np.ndarray) and np.isfinite(array).all() for array in arrays.values())


def test_a_method_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"expected one of none, batch-norm.*got 'magic'"):
        Adapter(disc_network(), "magic")


def test_statistics_of_another_network_are_refused() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        other = network_of(Grouped())
    with pytest.raises((ConfigurationError, DataError), match="statistics"):
        Adapter(other, statistics=disc_statistics(Grouped))


def footprint(adapter: Adapter) -> tuple[int, int]:
    """Bytes of the state on disk but for growing digits, and tensors that are alive."""
    gc.collect()
    arrays, metadata = adapter.state()
    tensors = sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
    return sum(array.nbytes for array in arrays.values()), tensors + len(metadata)


def threshold() -> Network:
    """The least that can be adapted: one BatchNorm layer, and a threshold on what comes out of it."""
    norm, head = nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)
    images = disc_images(64, seed=1, size=(8, 8))[0]
    norm.running_mean = images.mean((0, 2, 3))
    norm.running_var = images.var((0, 2, 3))
    head.weight = nn.Parameter(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1).clone())
    head.bias = nn.Parameter(torch.tensor([0.0, -1.5]))
    return Network(nn.Sequential(norm, head).eval().requires_grad_(False), CLASSES)


def stream_of_tiny_images(method: str, marks: tuple[int, ...]) -> list[tuple[int, int]]:
    """Footprints of an adapter after so many images of 8 by 8 pixels."""
    adapter = Adapter(threshold(), method)
    images = darkened(disc_images(64, seed=4, size=(8, 8))[0])
    found = []
    for count in range(1, marks[-1] + 1):
        assert adapter(images[count % 64] + 1e-6 * count).accepted
        if count in marks:
            found.append(footprint(adapter))
    return found


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """No image is refused, so that whatever remembers images fills at once."""
    monkeypatch.setattr(low_frequency, "objection", lambda *_: "")
    monkeypatch.setattr(CertaintyGate, "add", lambda *_: True)


@pytest.mark.parametrize(
    ("method", "marks"),
    [
        ("low-frequency", (50, 400)),
        ("multi-scale", (50, 100)),
        ("reference", (50, 150)),
        ("tent", (50, 150)),
    ],
)
@pytest.mark.usefixtures("trusting")
def test_memory_does_not_grow_with_the_stream(method: str, marks: tuple[int, ...]) -> None:
    (early, tensors), (late, more) = stream_of_tiny_images(method, marks)
    assert late == early
    assert more <= tensors + 4


@pytest.mark.usefixtures("trusting")
def test_a_full_memory_goes_on_from_its_state() -> None:
    network, images = threshold(), darkened(disc_images(60, seed=4, size=(8, 8))[0])
    whole, other = Adapter(network), Adapter(network)
    streamed(whole, images[:47])
    other.restore(*whole.state())
    assert equal(streamed(other, images[47:]), streamed(whole, images[47:]))
    assert state_bytes(other) == state_bytes(whole)


@pytest.mark.slow
@pytest.mark.usefixtures("trusting")
def test_memory_does_not_grow_over_ten_thousand_images() -> None:
    found = stream_of_tiny_images("low-frequency", (50, 2_000, 10_000))
    assert len({size for size, _ in found}) == 1
    assert max(tensors for _, tensors in found) <= found[0][1] + 4
