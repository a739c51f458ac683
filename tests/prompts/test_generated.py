"""The generated prompt: identity at first, one affine map per image, never too large."""

from __future__ import annotations

import pytest
import torch

from fedprompt.config import GeneratedOptions
from fedprompt.prompts import GeneratedPrompt


def made(channels: int, width: int = 32, *, stirred: bool = False) -> GeneratedPrompt:
    prompt = GeneratedPrompt(GeneratedOptions(width=width), channels=channels)
    generator = torch.Generator().manual_seed(0)
    prompt.reset(generator)
    if stirred:
        torch.nn.init.normal_(prompt.generate.weight, generator=generator)
        torch.nn.init.normal_(prompt.generate.bias, generator=generator)
    return prompt


@pytest.mark.parametrize("shape", [(2, 6, 3, 5), (2, 6)])
def test_it_starts_as_the_identity(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(made(6)(x), x)


def test_it_is_a_gated_affine_map_per_channel_and_image() -> None:
    prompt = made(6, stirred=True)
    x = torch.randn(3, 6, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = prompt(x)
        for image in range(3):
            for channel in range(6):
                before, after = x[image, channel].flatten(), y[image, channel].flatten()
                slope = (after[1] - after[0]) / (before[1] - before[0])
                torch.testing.assert_close(
                    after, after[0] + slope * (before - before[0]), atol=1e-4, rtol=1e-4
                )
        torch.testing.assert_close(prompt(x[1:2]), y[1:2])
    assert not torch.allclose(y, x)


def test_the_pooled_form_is_the_mean_of_the_map_form() -> None:
    prompt = made(6, stirred=True)
    x = torch.randn(3, 6, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(prompt(x.mean(dim=(2, 3))), prompt(x).mean(dim=(2, 3)))


@pytest.mark.parametrize("channels", [16, 320, 768, 2048, 4096])
def test_it_never_has_more_than_a_hundred_thousand_parameters(channels: int) -> None:
    prompt = made(channels, width=256)
    assert sum(p.numel() for p in prompt.parameters()) <= 100_000
    assert prompt.squeeze.out_features >= 4
