"""Images that an adapter cannot adapt to or cannot take, and the stream that goes on all the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from adapter_streams import EVERY, OURS, equal, shifting, state_bytes, undisturbed
from disc_networks import CLASSES, darkened, disc_images, disc_network, same_result, streamed
from torch import Tensor

from fedprompt.adaptation import Adapter, Network
from fedprompt.errors import DataError


def holding(number: float) -> Callable[[Tensor], Tensor]:
    def spoilt(image: Tensor) -> Tensor:
        image = image.clone()
        image[1, 3:6, 7] = number
        return image

    return spoilt


BAD = {
    "NaN": (holding(torch.nan), "the image has NaN or infinite pixels"),
    "infinite": (holding(torch.inf), "the image has NaN or infinite pixels"),
    "negative infinite": (holding(-torch.inf), "the image has NaN or infinite pixels"),
    "constant": (lambda image: torch.full_like(image, 0.4), "the image is constant"),
    "black": (torch.zeros_like, "the image is constant"),
}


@EVERY
@pytest.mark.parametrize("kind", list(BAD))
def test_a_bad_image_passes_unadapted_and_the_stream_goes_on(method: str, kind: str) -> None:
    spoil, reason = BAD[kind]
    network, images = disc_network(), shifting(14, 9)
    adapter = Adapter(network, method)
    found = streamed(adapter, images[:7])
    bad = spoil(images[7])
    passed = adapter(bad)
    found += streamed(adapter, images[7:])
    assert equal(found, undisturbed(method, 14, 9)[0])
    assert adapter.images == len(images) + 1
    assert (passed.accepted, passed.reason) == (False, reason)
    assert passed.loss_before is None
    plain = Adapter(network, "none")(torch.nan_to_num(bad, nan=0.0, posinf=1.0, neginf=0.0))
    assert torch.equal(passed.probabilities, plain.probabilities)
    assert passed.mask.tobytes() == plain.mask.tobytes()
    assert passed.agreement == 1


@EVERY
def test_a_first_image_that_is_bad_leaves_no_trace(method: str) -> None:
    adapter = Adapter(disc_network(), method)
    adapter(torch.full((3, 32, 32), torch.nan))
    assert equal(streamed(adapter, shifting(8, 8)), undisturbed(method, 8, 8)[0])


@pytest.mark.parametrize("method", [*OURS, "tent"])
def test_a_pixel_beyond_all_measure_does_not_spoil_the_stream(method: str) -> None:
    adapter, images = Adapter(disc_network(), method), shifting(14, 9)
    found = streamed(adapter, images[:7])
    try:
        assert not adapter(holding(1e25)(images[7])).accepted
    except DataError as error:
        assert "finite prediction" in str(error)  # noqa: PT017 - either will do
    found += streamed(adapter, images[7:])
    assert equal(found, undisturbed(method, 14, 9)[0])


@pytest.mark.parametrize(("method", "least"), [("low-frequency", 3), ("multi-scale", 5)])
def test_an_image_smaller_than_the_window_passes_unadapted(method: str, least: int) -> None:
    network, images = disc_network(), shifting(14, 9)
    adapter = Adapter(network, method)
    found = streamed(adapter, images[:5])
    small = images[5][:, : least - 1, :20]
    passed = adapter(small)
    assert not passed.accepted
    assert f"sides of at least {least}" in passed.reason
    assert torch.equal(passed.probabilities, Adapter(network, "none")(small).probabilities)
    found += streamed(adapter, images[5:])
    assert equal(found, undisturbed(method, 14, 9)[0])
    assert "sides of" not in adapter(images[0][:, :least, :20]).reason


@EVERY
def test_images_of_changing_sizes_are_taken_where_the_network_takes_them(method: str) -> None:
    adapter = Adapter(disc_network(), method)
    for size in ((32, 32), (26, 46), (20, 20), (64, 33), (32, 32)):
        found = adapter(darkened(disc_images(1, seed=4, size=size)[0])[0])
        assert found.mask.shape == size
        assert found.accepted or method == "none"


@EVERY
def test_an_image_that_the_network_cannot_take_is_an_error_and_the_stream_goes_on(method: str) -> None:
    adapter, images = Adapter(disc_network(), method), shifting(8, 8)
    found = streamed(adapter, images[:4])
    with pytest.raises(DataError, match="image: the network cannot take 1 by 1 pixels"):  # it pools
        adapter(torch.rand(3, 1, 1, generator=torch.Generator().manual_seed(0)))
    found += streamed(adapter, images[4:])
    assert equal(found, undisturbed(method, 8, 8)[0])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 32, 32), r"expected shape \(3, height, width\), got \(1, 32, 32\)"),
        ((4, 32, 32), r"expected shape \(3, height, width\), got \(4, 32, 32\)"),
        ((32, 32), r"expected shape \(3, height, width\), got \(32, 32\)"),
        ((1, 3, 32, 32), r"expected shape \(3, height, width\), got \(1, 3, 32, 32\)"),
        ((3, 0, 32), r"expected shape \(3, height, width\), got \(3, 0, 32\)"),
        ((3, 32, 30), "expected 32 by 32 pixels, got 32 by 30"),
        ((3, 64, 64), "expected 32 by 32 pixels, got 64 by 64"),
    ],
)
def test_images_of_another_shape_are_refused_and_change_nothing(shape: tuple[int, ...], message: str) -> None:
    network = disc_network()
    sized = Network(network.module, CLASSES, network.mean, network.std, size=(32, 32))
    adapter = Adapter(sized)
    streamed(adapter, shifting(3, 3))
    before = state_bytes(adapter)
    with pytest.raises(DataError, match=message):
        adapter(torch.rand(*shape))
    assert state_bytes(adapter) == before
    assert adapter.images == 3


def test_arrays_of_every_kind_are_images() -> None:
    images = shifting(4, 4)
    expected = streamed(Adapter(disc_network()), images)
    for change in (
        lambda image: image.numpy(),
        lambda image: image.double().numpy(),
        lambda image: image.double(),
        lambda image: image.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        lambda image: image.numpy()[:, ::-1].copy()[:, ::-1],  # a mirrored view
    ):
        adapter = Adapter(disc_network())
        for image, found in zip(images, expected, strict=True):
            assert same_result(adapter(change(image)), found)  # type: ignore[no-untyped-call]
