"""Seconds per image of test-time adaptation, as ratios to the published procedure and to one plain forward.

    python benchmarks/adaptation/speed.py --model SOURCES/unet-kvasir-0/model.toml --image IMAGE --rounds 30

The published procedure is written out as its paper and code have it: two forwards with statistics at every
BatchNorm layer, one backward through the whole network that also computes the gradients of all weights, and
four Fourier transforms. All contenders take turns in one process; a ratio is the median of the paired ratios.
The image is darkened, so that the stream is shifted and nothing is skipped; `unshifted` is the same image as
it is.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from fedprompt.adaptation import Adapter, Network
from fedprompt.adaptation.model_file import load_network
from fedprompt.adaptation.stream_files import network_input
from fedprompt.data.images import read_picture


class PublishedNorm(nn.Module):
    """BatchNorm as the published code replaces it: warm-up mixing and the layer's loss, in plain steps."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps
        self.register_buffer("source_mean", layer.running_mean)
        self.register_buffer("source_variance", layer.running_var)
        self.images, self.loss = 1, torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        share = 1 / (self.images**0.5 / 5 + 1)
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        mixed_mean = share * mean.detach() + (1 - share) * self.source_mean
        mixed_variance = share * variance.detach() + (1 - share) * self.source_variance
        deviation = x.std((0, 2, 3))
        self.loss = (mixed_mean - mean).abs().mean() + (mixed_variance.sqrt() - deviation).abs().mean()
        scale = (self.weight / (mixed_variance + self.eps).sqrt())[None, :, None, None]
        return (x - mixed_mean[None, :, None, None]) * scale + self.bias[None, :, None, None]


class Published:
    """The whole procedure of one image; the memory is left out, it costs next to nothing."""

    def __init__(self, network: Network, shape: tuple[int, int]) -> None:
        self.network = network
        self.module = copy.deepcopy(network.module).requires_grad_(True)
        self.layers: list[PublishedNorm] = []
        for name, layer in list(self.module.named_modules()):
            if isinstance(layer, nn.BatchNorm2d):
                parent, _, child = name.rpartition(".")
                self.layers.append(PublishedNorm(layer))
                setattr(self.module.get_submodule(parent), child, self.layers[-1])
        side = max(1, int(0.01 * shape[0]))
        self.start = (shape[0] - side) // 2
        self.prompt = nn.Parameter(torch.ones(1, network.channels, side, side))
        self.optimiser = torch.optim.Adam([self.prompt], lr=0.05, betas=(0.9, 0.99))

    def prompted(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.fft2(x)
        amplitude, phase = spectrum.abs(), spectrum.angle()
        mask = nn.functional.pad(self.prompt - 1, self._margins(x)) + 1
        shifted = torch.fft.ifftshift(torch.fft.fftshift(amplitude) * mask)
        return torch.fft.ifft2(torch.polar(shifted, phase)).real

    def _margins(self, x: Tensor) -> tuple[int, int, int, int]:
        side = self.prompt.shape[-1]
        rest = (x.shape[-1] - self.start - side, x.shape[-2] - self.start - side)
        return self.start, rest[0], self.start, rest[1]

    def __call__(self, image: Tensor) -> Tensor:
        x = self.network.normalised(image[None])
        nn.init.ones_(self.prompt)
        self.module(self.prompted(x))
        loss = torch.stack([layer.loss for layer in self.layers]).mean()
        self.optimiser.zero_grad()
        self.module.zero_grad()
        loss.backward()
        self.optimiser.step()
        with torch.no_grad():
            return self.module(self.prompted(x))


def plain(network: Network) -> Callable[[Tensor], object]:
    """One forward and nothing else."""
    module = network.module

    def run(image: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(network.normalised(image[None]))

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = load_network(options.model)
    image = network_input(read_picture(options.image), network)
    dark = image * 0.45
    published = Published(network, (image.shape[-2], image.shape[-1]))
    contenders: dict[str, Callable[[], object]] = {"plain forward": lambda: plain(network)(image)}
    contenders["published procedure"] = lambda: published(dark)
    for method in ("batch-norm", "reference", "low-frequency", "multi-scale", "tent"):
        contenders[method] = _stream(Adapter(network, method), dark)
    contenders["low-frequency, unshifted"] = _stream(Adapter(network), image)
    for run in contenders.values():
        for _ in range(3):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    found = {}
    for name, taken in seconds.items():
        found[name] = {
            "milliseconds": 1e3 * statistics.median(taken),
            "over_plain": _ratio(taken, seconds["plain forward"]),
            "over_published": _ratio(taken, seconds["published procedure"]),
        }
    if options.json:
        print(json.dumps(found))
        return
    print(
        "| | ms per image | over a plain forward | over the published procedure |\n| --- | --- | --- | --- |"
    )
    for name, row in found.items():
        cells = f"{row['milliseconds']:.0f} | {row['over_plain']:.2f} | {row['over_published']:.2f}"
        print(f"| {name} | {cells} |")


def _stream(adapter: Adapter, image: Tensor) -> Callable[[], object]:
    return lambda: adapter(image)


def _ratio(mine: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(mine, theirs, strict=True))


if __name__ == "__main__":
    main()
