"""Small networks and synthetic images of discs, with a source domain and others that are shifted from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedprompt.adaptation import Adapted, Adapter, Network, SourceStatistics, collect_statistics

__all__ = [
    "CLASSES",
    "KINDS",
    "Blocks",
    "ConvOnly",
    "FirstLayerNorm",
    "Grouped",
    "LayerNormed",
    "TinyUNet",
    "TinyViT",
    "darkened",
    "digest",
    "disc_images",
    "disc_network",
    "disc_statistics",
    "network_of",
    "reddened",
    "same_result",
    "streamed",
]

CLASSES = ("background", "disc")
SIDE = 32


class Blocks(nn.Module):
    """Encoder of two levels, decoder of one; `norm` makes the normalisation of a number of channels."""

    def __init__(self, norm: Callable[[int], nn.Module], width: int = 8, outputs: int = 2) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, width, 3, padding=1), norm(width)
        self.second, self.norm2 = nn.Conv2d(width, 2 * width, 3, padding=1), norm(2 * width)
        self.third, self.norm3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1), norm(2 * width)
        self.up, self.norm4 = nn.Conv2d(3 * width, width, 3, padding=1), norm(width)
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        shallow = F.relu(self.norm1(self.first(x)))
        deep = F.relu(self.norm2(self.second(F.max_pool2d(shallow, 2))))
        deep = F.relu(self.norm3(self.third(deep)))
        wide = F.interpolate(deep, size=shallow.shape[-2:], mode="bilinear", align_corners=False)
        return self.head(F.relu(self.norm4(self.up(torch.cat([shallow, wide], dim=1)))))


class TinyUNet(Blocks):
    """With BatchNorm."""

    def __init__(self, width: int = 8, outputs: int = 2) -> None:
        super().__init__(nn.BatchNorm2d, width, outputs)


class ConvOnly(Blocks):
    """Without normalisation layers."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(lambda _: nn.Identity(), width)


class Grouped(Blocks):
    """With GroupNorm."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(lambda channels: nn.GroupNorm(4, channels), width)


class FirstLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W), as ConvNeXt and SAM have it."""

    data_format = "channels_first"

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LayerNormed(Blocks):
    """With LayerNorm over channels that come first."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(FirstLayerNorm, width)


class TinyViT(nn.Module):
    """Patches of 4 pixels, two blocks with LayerNorm on (B, N, C), logits per patch made larger."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, stride=4)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.attention = nn.ModuleList(nn.MultiheadAttention(width, 2, batch_first=True) for _ in range(2))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(2)
        )
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.patch(x)
        tokens = grid.flatten(2).transpose(1, 2)
        for block in range(2):
            entering = self.norms[2 * block](tokens)
            tokens = tokens + self.attention[block](entering, entering, entering, need_weights=False)[0]
            tokens = tokens + self.mlp[block](self.norms[2 * block + 1](tokens))
        logits = self.head(tokens).transpose(1, 2).unflatten(2, grid.shape[-2:])
        return F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)


KINDS: tuple[type[nn.Module], ...] = (TinyUNet, ConvOnly, Grouped, LayerNormed, TinyViT)


def disc_images(count: int, seed: int = 0, size: tuple[int, int] = (SIDE, SIDE)) -> tuple[Tensor, Tensor]:
    """Images (count, 3, H, W) in 0 to 1 of a bright disc on tinted noise, and masks (count, H, W)."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    height, width = size
    rows, columns = torch.arange(height).float()[:, None], torch.arange(width).float()
    row, column = uniform(0.3, 0.7, 1, 1) * height, uniform(0.3, 0.7, 1, 1) * width
    radius = uniform(0.12, 0.28, 1, 1) * min(size)
    masks = ((rows - row).square() + (columns - column).square() < radius.square()).long()
    tint = torch.tensor([0.5, 0.3, 0.25]).view(1, 3, 1, 1) + uniform(-0.05, 0.05, 3, 1, 1)
    disc = torch.tensor([0.25, 0.25, 0.1]).view(1, 3, 1, 1) * masks[:, None]
    slope = uniform(-0.1, 0.1, 1, 1, 1) * (columns / width)
    noise = 0.04 * torch.randn(count, 3, height, width, generator=generator)
    return (tint + disc + slope + noise).clamp(0, 1), masks


def darkened(images: Tensor) -> Tensor:
    """As from another scanner: half the light, less contrast, a blue cast."""
    return (0.45 * images + torch.tensor([0.0, 0.05, 0.25]).view(3, 1, 1)).clamp(0, 1)


def reddened(images: Tensor) -> Tensor:
    """As from a third one: more light, steeper, a red cast."""
    return (1.3 * images**1.5 + torch.tensor([0.35, 0.1, 0.0]).view(3, 1, 1)).clamp(0, 1)


def network_of(module: nn.Module, *, size: tuple[int, int] | None = None) -> Network:
    """The module as a frozen network of two classes."""
    module.eval().requires_grad_(False)
    return Network(module, classes=CLASSES, mean=(0.5, 0.3, 0.25), std=(0.2, 0.2, 0.2), size=size)


@lru_cache(maxsize=8)
def disc_network(kind: type[nn.Module] = TinyUNet, steps: int = 60) -> Network:
    """A network that has learnt to find discs; about a second. For any size of image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = kind()
    network = network_of(module)
    module.train().requires_grad_(True)
    images, masks = disc_images(64, seed=1)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
    for step in range(steps):
        chosen = torch.arange(8 * step, 8 * step + 8) % len(images)
        logits = module(network.normalised(images[chosen]))
        optimiser.zero_grad()
        F.cross_entropy(logits, masks[chosen]).backward()
        optimiser.step()
    return network_of(module)


@lru_cache(maxsize=8)
def disc_statistics(kind: type[nn.Module]) -> SourceStatistics:
    """What such a network's features are like on the source."""
    return collect_statistics(disc_network(kind), disc_images(48, seed=5)[0])


def digest(module: nn.Module) -> str:
    """SHA-256 of every tensor of a module."""
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().numpy().tobytes())
    return found.hexdigest()


def same_result(one: Adapted, other: Adapted) -> bool:
    """Equal to the last bit, but for the seconds."""
    facts = [{name: vars(found)[name] for name in vars(found) if name != "seconds"} for found in (one, other)]
    arrays = [(fact.pop("probabilities").numpy().tobytes(), fact.pop("mask").tobytes()) for fact in facts]
    return arrays[0] == arrays[1] and facts[0] == facts[1]


def streamed(adapter: Adapter, images: Tensor) -> list[Adapted]:
    """The results of a stream."""
    return [adapter(image) for image in images]
