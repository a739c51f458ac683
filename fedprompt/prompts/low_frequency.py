"""The low-frequency prompt of test-time adaptation: gains on the amplitudes of the lowest frequencies.

After VPTTA (Chen et al., CVPR 2024), with another window: centred on the constant part, of odd side, and
symmetric, so that the prompted image is real by construction; and with gains that are positive at any value.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedprompt.manifest import Scope
from fedprompt.prompts.base import InjectionPoint, Prompt

__all__ = ["LowFrequencyPrompt", "window_radius"]


def window_radius(size: tuple[int, int], share: float = 0.01) -> int:
    """Highest frequency of a window whose side is about `share` of the image's shorter side; at least 1.

    256 pixels give 1 (a window of 3 by 3), 512 give 2 (5 by 5).
    """
    return max(1, round((share * min(size) - 1) / 2))


class LowFrequencyPrompt(Prompt):
    """Gains exp(clamp(g)) on the amplitudes of frequencies (u, v) with |u|, |v| <= radius; phases stay.

    A frequency and its mirror image share one gain, so of (2 radius + 1)^2 frequencies K, a half and the
    constant part, have a parameter. At zero the image comes back as it is, bit by bit: what is added is the
    difference that the gains make, from a discrete Fourier transform of the window's frequencies alone. For
    a window this small that is two thin matrix products, a tenth of the work of a whole transform.

    Args:
        channels: Of the images.
        radius: Highest frequency, in periods per image side.
        limit: Bound on |g|: no amplitude grows or shrinks by more than a factor of exp(limit).

    Attributes:
        log_gain: g (channels, K); in the order of `frequencies(radius)`, the constant part first.
    """

    scope: ClassVar[Scope] = Scope.EPHEMERAL
    injection: ClassVar[InjectionPoint] = InjectionPoint.IMAGE

    def __init__(self, channels: int, radius: int = 1, limit: float = math.log(2)) -> None:
        super().__init__()
        if channels < 1 or radius < 0 or not limit > 0:
            raise ValueError(
                f"expected channels >= 1, radius >= 0, limit > 0, got {channels}, {radius}, {limit}"
            )
        self.radius = radius
        self.limit = limit
        self.log_gain = nn.Parameter(torch.zeros(channels, len(frequencies(radius))))

    def reset(self, generator: torch.Generator) -> None:  # noqa: ARG002 - starts as the identity
        nn.init.zeros_(self.log_gain)

    def forward(self, images: Tensor) -> Tensor:
        """Prompted images (B, channels, H, W), float; every image by itself.

        Raises:
            ValueError: The images have other channels, or a side shorter than the window.
        """
        self.check(images)
        change = torch.expm1(self.log_gain.clamp(-self.limit, self.limit))
        return images + _synthesis(self.coefficients(images) * change, images.shape[-2:], self.radius)

    def coefficients(self, images: Tensor) -> Tensor:
        """Fourier coefficients (B, channels, K) of the window, complex, as `torch.fft.fft2` scales them."""
        self.check(images)
        return _analysis(images, self.radius)

    def keys(self, images: Tensor) -> Tensor:
        """One vector (B, channels * (K - 1)) per image that tells what its low frequencies look like.

        Logarithms of the amplitudes but for the constant part, standardised per image and of length 1.
        """
        amplitudes = self.coefficients(images)[..., 1:].abs().flatten(1)
        floor = 1e-6 * images.shape[-1] * images.shape[-2]
        logarithms = (amplitudes + floor).log()
        centred = logarithms - logarithms.mean(dim=1, keepdim=True)
        return nn.functional.normalize(centred, dim=1)

    def window(self) -> Tensor:
        """Gains (channels, 2 radius + 1, 2 radius + 1) with the constant part in the centre; symmetric."""
        gains = self.log_gain.detach().clamp(-self.limit, self.limit).exp()
        side = 2 * self.radius + 1
        full = gains.new_ones(gains.shape[0], side, side)
        for index, (u, v) in enumerate(frequencies(self.radius)):
            for sign in (1, -1):
                full[:, self.radius + sign * u, self.radius + sign * v] = gains[:, index]
        return full

    def check(self, images: Tensor) -> None:
        """Raises `ValueError` where the images do not fit the prompt."""
        channels, side = self.log_gain.shape[0], 2 * self.radius + 1
        if images.ndim != 4 or images.shape[1] != channels or min(images.shape[-2:]) < side:
            raise ValueError(
                f"expected images (B, {channels}, H, W) with sides of at least {side}, "
                f"got {tuple(images.shape)}"
            )


@lru_cache(maxsize=8)
def frequencies(radius: int) -> tuple[tuple[int, int], ...]:
    """One (u, v) of each mirrored pair in the window, (0, 0) first; u counts periods down, v across."""
    half = [(u, 0) for u in range(radius + 1)]
    return (*half, *((u, v) for v in range(1, radius + 1) for u in range(-radius, radius + 1)))


@lru_cache(maxsize=32)
def _basis(side: int, radius: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (side, radius + 1) of the whole periods up to `radius`; angles in float64."""
    steps = torch.outer(torch.arange(side, dtype=torch.float64), torch.arange(radius + 1.0).double())
    angles = 2 * math.pi / side * (steps % side)
    return angles.cos().to(device, dtype), angles.sin().to(device, dtype)


@lru_cache(maxsize=8)
def _places(radius: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """|u|, sign of u and v of every frequency."""
    u, v = torch.tensor(frequencies(radius), device=device).T
    return u.abs(), torch.where(u < 0, -1.0, 1.0).to(device), v


def _analysis(images: Tensor, radius: int) -> Tensor:
    images = images.float()
    height, width = images.shape[-2:]
    cos_w, sin_w = _basis(width, radius, images.dtype, images.device)
    cos_h, sin_h = _basis(height, radius, images.dtype, images.device)
    rows = images @ torch.cat([cos_w, sin_w], dim=1)  # (B, C, H, 2 (r + 1))
    both = torch.cat([cos_h, sin_h], dim=1).T @ rows  # (B, C, 2 (r + 1), 2 (r + 1))
    u, sign, v = _places(radius, images.device)
    count = radius + 1
    cc, cs = both[..., u, v], both[..., u, count + v]
    sc, ss = sign * both[..., count + u, v], sign * both[..., count + u, count + v]
    return torch.complex(cc - ss, -cs - sc)


def _synthesis(coefficients: Tensor, size: torch.Size, radius: int) -> Tensor:
    """The real image of the window's coefficients and their mirror images."""
    height, width = size
    u, sign, v = _places(radius, coefficients.device)
    twice = torch.where((u == 0) & (v == 0), 1.0, 2.0) / (height * width)
    real, imaginary = coefficients.real * twice, coefficients.imag * twice
    dtype = real.dtype
    cos_w, sin_w = _basis(width, radius, dtype, coefficients.device)
    cos_h, sin_h = _basis(height, radius, dtype, coefficients.device)
    # Sum over u first: columns (B, C, H, r + 1), complex in two parts; then over v.
    group = nn.functional.one_hot(v, radius + 1).to(dtype)  # (K, r + 1)
    cos_u, sin_u = cos_h[:, u], sign * sin_h[:, u]  # (H, K)
    columns_real = (real[..., None, :] * cos_u - imaginary[..., None, :] * sin_u) @ group
    columns_imaginary = (real[..., None, :] * sin_u + imaginary[..., None, :] * cos_u) @ group
    return torch.cat([columns_real, -columns_imaginary], dim=-1) @ torch.cat([cos_w, sin_w], dim=1).T
