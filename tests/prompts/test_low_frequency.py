"""The low-frequency prompt against slow transforms in float64; its keys, its window, its gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedprompt.manifest import Scope
from fedprompt.prompts.base import InjectionPoint
from fedprompt.prompts.low_frequency import LowFrequencyPrompt, frequencies, window_radius


def images_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def prompt_of(channels: int, radius: int, *, spread: float = 0.5, seed: int = 0) -> LowFrequencyPrompt:
    prompt = LowFrequencyPrompt(channels, radius)
    drawn = torch.randn(prompt.log_gain.shape, generator=torch.Generator().manual_seed(seed))
    prompt.log_gain.data.copy_(spread * drawn)
    return prompt


def slow(image: np.ndarray, log_gain: np.ndarray, radius: int, limit: float) -> np.ndarray:
    """One image (C, H, W) through a whole transform, in float64: every frequency and its mirror image."""
    spectrum = np.fft.fft2(image.astype(np.float64))
    gain = np.ones(spectrum.shape)
    for channel in range(len(image)):
        for index, (u, v) in enumerate(frequencies(radius)):
            value = math.exp(min(max(float(log_gain[channel, index]), -limit), limit))
            gain[channel, u, v] = value
            gain[channel, -u, -v] = value
    changed = np.fft.ifft2(spectrum * gain)
    assert np.abs(changed.imag).max() < 1e-12 * max(1.0, np.abs(image).max())  # symmetric: real by itself
    return changed.real


def slow_autograd(images: Tensor, log_gain: Tensor, radius: int, limit: float) -> Tensor:
    """The same for a batch in torch, float64 and with gradient."""
    gain = torch.ones(*images.shape[1:], dtype=torch.float64)
    values = log_gain.clamp(-limit, limit).exp()
    for index, (u, v) in enumerate(frequencies(radius)):
        here = torch.zeros(images.shape[-2:], dtype=torch.float64)
        here[u, v] = here[-u, -v] = 1
        gain = gain + here * (values[:, index, None, None] - 1)
    return torch.fft.ifft2(torch.fft.fft2(images) * gain).real


def test_the_identity_prompt_returns_the_image_bit_by_bit() -> None:
    prompt = prompt_of(3, 2)
    images = images_of(2, 3, 21, 16)
    assert not torch.equal(prompt(images), images)
    prompt.reset(torch.Generator())
    assert torch.equal(prompt(images), images)
    assert torch.equal(prompt.window(), torch.ones(3, 5, 5))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_prompted_image_equals_a_slow_transform_at_any_size(data: st.DataObject) -> None:
    radius = data.draw(st.integers(0, 3), "radius")
    least = 2 * radius + 1
    height, width = (data.draw(st.integers(least, least + 20), side) for side in ("height", "width"))
    channels = data.draw(st.integers(1, 4), "channels")
    seed = data.draw(st.integers(0, 1000), "seed")
    images = images_of(1, channels, height, width, seed=seed)
    prompt = prompt_of(channels, radius, spread=1.0, seed=seed)
    with torch.no_grad():
        found = prompt(images)
    expected = slow(images[0].numpy(), prompt.log_gain.detach().numpy(), radius, prompt.limit)
    np.testing.assert_allclose(found[0].numpy(), expected, atol=2e-5)


@pytest.mark.parametrize(("height", "width"), [(12, 12), (13, 9), (9, 14), (5, 5)])
@pytest.mark.parametrize("radius", [1, 2])
def test_the_gain_window_is_symmetric_and_is_what_the_spectrum_shows(
    height: int, width: int, radius: int
) -> None:
    prompt, images = prompt_of(2, radius, spread=0.3), images_of(1, 2, height, width)
    window = prompt.window()
    assert torch.equal(window, window.flip(-1, -2))
    assert (window > 0).all()
    with torch.no_grad():
        before, after = (torch.fft.fft2(x.double())[0] for x in (images, prompt(images)))
    ratio = torch.fft.fftshift(after / before, dim=(-2, -1))
    row, column = height // 2, width // 2
    inside = ratio[:, row - radius : row + radius + 1, column - radius : column + radius + 1]
    torch.testing.assert_close(inside.real.float(), window, atol=1e-3, rtol=0)
    assert inside.imag.abs().max() < 1e-3  # phases stay
    ratio[:, row - radius : row + radius + 1, column - radius : column + radius + 1] = 1
    assert (ratio - 1).abs().max() < 1e-3


def test_every_pair_of_mirrored_frequencies_has_one_parameter() -> None:
    for radius in range(4):
        found = set(frequencies(radius)) | {(-u, -v) for u, v in frequencies(radius)}
        side = range(-radius, radius + 1)
        assert found == {(u, v) for u in side for v in side}
        assert len(frequencies(radius)) == ((2 * radius + 1) ** 2 + 1) // 2
        assert frequencies(radius)[0] == (0, 0)


def test_a_batch_gives_what_single_images_give() -> None:
    prompt, images = prompt_of(3, 2), images_of(5, 3, 18, 23)
    with torch.no_grad():
        for find in (prompt, prompt.keys, prompt.coefficients):
            together = find(images)
            for place in range(5):
                alone = find(images[place : place + 1])[0]
                torch.testing.assert_close(together[place], alone, atol=1e-5, rtol=1e-5)


def test_coefficients_are_those_of_a_fourier_transform() -> None:
    images = images_of(2, 3, 15, 22)
    whole = torch.fft.fft2(images.double())
    found = LowFrequencyPrompt(3, 2).coefficients(images)
    for index, (u, v) in enumerate(frequencies(2)):
        torch.testing.assert_close(found[..., index].to(whole.dtype), whole[..., u, v], atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("size", [(11, 11), (12, 17)])
def test_gradients_are_those_of_the_slow_transform(size: tuple[int, int]) -> None:
    prompt, images = prompt_of(3, 2), images_of(2, 3, *size).requires_grad_()
    weights = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad((prompt(images) * weights).sum(), (prompt.log_gain, images))
    other, gains = images.detach().double().requires_grad_(), prompt.log_gain.detach().double()
    gains.requires_grad_()
    expected = torch.autograd.grad(
        (slow_autograd(other, gains, 2, prompt.limit) * weights.double()).sum(), (gains, other)
    )
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, atol=1e-4, rtol=1e-4)


def test_gradients_are_finite_differences() -> None:
    prompt, images = prompt_of(2, 1, spread=0.2), images_of(1, 2, 9, 10)
    weights = torch.randn(1, 2, 9, 10, generator=torch.Generator().manual_seed(2)).double()

    def value() -> float:
        with torch.no_grad():
            return float((prompt(images).double() * weights).sum())

    (gradient,) = torch.autograd.grad((prompt(images) * weights).sum(), prompt.log_gain)
    step = 2**-6
    for place in range(prompt.log_gain.numel()):
        flat = prompt.log_gain.data.view(-1)
        flat[place] += step
        above = value()
        flat[place] -= 2 * step
        below = value()
        flat[place] += step
        expected = (above - below) / (2 * step)
        assert float(gradient.view(-1)[place]) == pytest.approx(expected, abs=2e-3, rel=1e-3)


def test_a_gain_beyond_the_limit_acts_as_the_limit_and_has_no_gradient() -> None:
    images = images_of(1, 1, 8, 8)
    prompt = LowFrequencyPrompt(1, 1, limit=0.5)
    prompt.log_gain.data.fill_(0.5)
    at_limit = prompt(images).detach()
    prompt.log_gain.data.fill_(30.0)
    found = prompt(images)
    assert torch.equal(found, at_limit)
    (gradient,) = torch.autograd.grad(found.sum(), prompt.log_gain)
    assert not gradient.any()
    assert float(prompt.window().max()) == pytest.approx(math.exp(0.5))


def test_the_constant_part_scales_a_constant_image() -> None:
    prompt = LowFrequencyPrompt(2, 1)
    prompt.log_gain.data[:, 0] = torch.tensor([0.3, -0.2])
    prompt.log_gain.data[:, 1:] = 0.4  # of frequencies that the image has not
    found = prompt(torch.full((1, 2, 7, 8), 0.5)).detach()
    for channel, gain in enumerate((0.3, -0.2)):
        expected = torch.full((7, 8), 0.5 * math.exp(gain))
        torch.testing.assert_close(found[0, channel], expected, atol=1e-6, rtol=0)


def test_keys_leave_out_the_constant_part_and_brightness() -> None:
    prompt, images = LowFrequencyPrompt(3, 2), 0.2 + 0.3 * images_of(4, 3, 24, 20)
    keys = prompt.keys(images)
    assert keys.shape == (4, 3 * (len(frequencies(2)) - 1))
    torch.testing.assert_close(keys.norm(dim=1), torch.ones(4))
    shift = torch.tensor([0.1, -0.1, 0.3]).view(3, 1, 1)
    torch.testing.assert_close(prompt.keys(images + shift), keys, atol=2e-3, rtol=0)
    for factor in (0.4, 1.7):
        torch.testing.assert_close(prompt.keys(factor * images), keys, atol=2e-3, rtol=0)


def test_keys_tell_images_apart_and_a_constant_image_has_a_finite_one() -> None:
    prompt = LowFrequencyPrompt(3, 2)
    keys = prompt.keys(images_of(6, 3, 24, 20))
    cosines = keys @ keys.T - torch.eye(6)
    assert cosines.abs().max() < 0.9
    assert torch.isfinite(prompt.keys(torch.full((1, 3, 24, 20), 0.5))).all()


@pytest.mark.parametrize(
    ("size", "radius"),
    [((8, 8), 1), ((256, 256), 1), ((352, 352), 1), ((512, 512), 2), ((1024, 1024), 5), ((512, 2000), 2)],
)
def test_the_window_grows_with_the_shorter_side(size: tuple[int, int], radius: int) -> None:
    assert window_radius(size) == window_radius((size[1], size[0])) == radius


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (1, 3, 4, 8), (1, 3, 8, 4), (3, 8, 8)])
def test_images_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    prompt = LowFrequencyPrompt(3, 2)
    for find in (prompt, prompt.keys, prompt.coefficients):
        with pytest.raises(ValueError, match=r"expected images \(B, 3, H, W\) with sides of at least 5"):
            find(torch.zeros(*shape))


@pytest.mark.parametrize(("channels", "radius", "limit"), [(0, 1, 0.5), (3, -1, 0.5), (3, 1, 0.0)])
def test_arguments_that_make_no_prompt_are_refused(channels: int, radius: int, limit: float) -> None:
    with pytest.raises(ValueError, match="expected channels >= 1"):
        LowFrequencyPrompt(channels, radius, limit)


def test_it_never_leaves_the_site() -> None:
    assert LowFrequencyPrompt(3).scope_of("log_gain") is Scope.EPHEMERAL
    assert LowFrequencyPrompt.injection is InjectionPoint.IMAGE
