"""VPTTA as methods.md 2.2 to 2.4 describes it, as plainly and slowly as can be, on its own.

Whole transforms by matrices, BatchNorm layers replaced one by one, one Adam object for ever, a dictionary for
the memory. Images are square and come one at a time.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["SlowVPTTA", "slow_mixing", "slow_predictions"]

TAU = 5
NEIGHBOURS = 16
QUEUE = 40


class SlowBatchNorm(nn.Module):
    """Normalises with a mixture of the source's statistics and the image's; keeps its alignment loss."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps
        self.mean, self.var = layer.running_mean.clone(), layer.running_var.clone()  # type: ignore[union-attr]
        self.images = 0
        self.loss = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        m = 1 / (math.sqrt(self.images) / TAU + 1)
        positions = x.shape[2] * x.shape[3]
        flat = x[0].flatten(1)
        mean = flat.sum(1) / positions
        squares = (flat - mean[:, None]).square().sum(1)
        mixed_mean = m * mean.detach() + (1 - m) * self.mean
        mixed_var = m * squares.detach() / positions + (1 - m) * self.var
        deviation = flat.std(1)  # unbiased
        self.loss = (mixed_mean - mean).abs().mean() + (mixed_var.sqrt() - deviation).abs().mean()
        normal = (flat - mixed_mean[:, None]) / (mixed_var[:, None] + self.eps).sqrt()
        return (normal * self.weight[:, None] + self.bias[:, None]).view_as(x)


class SlowVPTTA:
    """The reference procedure around a network with BatchNorm layers.

    Args:
        module: The source model; copied.
        side: Of the images.
        rate: Of Adam.
    """

    def __init__(self, module: nn.Module, side: int, channels: int = 3, rate: float = 0.05) -> None:
        self.module = copy.deepcopy(module).eval()
        self.norms = replaced(self.module)
        self.side = side
        self.p = max(1, int(0.01 * side))
        self.prompt = nn.Parameter(torch.ones(1, channels, self.p, self.p))
        self.adam = torch.optim.Adam([self.prompt], lr=rate, betas=(0.9, 0.99), weight_decay=0)
        self.memory: dict[bytes, np.ndarray] = {}
        angles = np.outer(np.arange(side), np.arange(side)) * (-2 * np.pi / side)
        self.fourier = torch.from_numpy(np.exp(1j * angles))

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of one normalised image (1, channels, side, side)."""
        for norm in self.norms:
            norm.images += 1
        spectrum = self.fourier @ x.to(torch.complex128) @ self.fourier
        amplitude, phase = self.shifted(spectrum.abs()), spectrum.angle()
        start = (self.side - self.p) // 2
        key = amplitude[:, :, start : start + self.p, start : start + self.p].float().numpy().ravel()
        self.prompt.data.copy_(self.initial(key))
        self.module(self.prompted(amplitude, phase, start))
        loss = torch.stack([norm.loss for norm in self.norms]).sum() / len(self.norms)
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        with torch.no_grad():
            logits: Tensor = self.module(self.prompted(amplitude, phase, start))
        if len(self.memory) > QUEUE:
            del self.memory[next(iter(self.memory))]
        self.memory[key.tobytes()] = self.prompt.detach().numpy().copy()
        return logits

    def initial(self, key: np.ndarray) -> Tensor:
        if len(self.memory) < NEIGHBOURS:
            return torch.ones_like(self.prompt)
        cosines = []
        for kept in self.memory:
            other = np.frombuffer(kept, np.float32)
            cosines.append(float(key @ other / np.linalg.norm(key) / np.linalg.norm(other)))
        nearest = np.argsort(cosines)[::-1][:NEIGHBOURS]
        weights = np.exp(np.array(cosines)[nearest] / 0.2)
        prompts = list(self.memory.values())
        mean = sum(weight * prompts[place] for weight, place in zip(weights, nearest, strict=True))
        return torch.from_numpy(mean / weights.sum())

    def prompted(self, amplitude: Tensor, phase: Tensor, start: int) -> Tensor:
        rest = nn.functional.pad(
            self.prompt - 1, (start, self.side - start - self.p, start, self.side - start - self.p)
        )
        whole = self.unshifted(amplitude * (1 + rest)) * torch.exp(1j * phase)
        back = self.fourier.conj() / self.side
        return (back @ whole @ back).real.float()

    def shifted(self, x: Tensor) -> Tensor:
        """The constant part to the middle."""
        places = [(place + (self.side + 1) // 2) % self.side for place in range(self.side)]
        return x[:, :, places][:, :, :, places]

    def unshifted(self, x: Tensor) -> Tensor:
        places = [(place + self.side // 2) % self.side for place in range(self.side)]
        return x[:, :, places][:, :, :, places]


def replaced(module: nn.Module) -> list[SlowBatchNorm]:
    """Puts a `SlowBatchNorm` in the place of every BatchNorm layer."""
    found = []
    for child_name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            found.append(SlowBatchNorm(child))
            setattr(module, child_name, found[-1])
        else:
            found += replaced(child)
    return found


def slow_predictions(module: nn.Module, images: Tensor, rate: float = 0.05) -> list[Tensor]:
    """Probabilities (classes, side, side) of a stream of normalised images."""
    method = SlowVPTTA(module, images.shape[-1], images.shape[1], rate)
    return [method(image[None]).softmax(1)[0] for image in images]


def slow_mixing(module: nn.Module, images: Tensor) -> list[Tensor]:
    """The same of BatchNorm mixing without a prompt."""
    module = copy.deepcopy(module).eval()
    norms = replaced(module)
    found = []
    for place, image in enumerate(images):
        for norm in norms:
            norm.images = place + 1
        with torch.no_grad():
            found.append(module(image[None]).softmax(1)[0])
    return found
