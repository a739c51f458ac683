"""The published method, window and update as they are in its reference code, for comparison only.

VPTTA (Chen et al., CVPR 2024). Its window is off centre, its gain not symmetric, its optimiser goes on over
images; one thing is left out that changes no prediction: that it also rolls the channels of batch size 1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedprompt.adaptation.layers import LayerStatistics, Moments
from fedprompt.adaptation.methods.base import Method, Outcome, source_of
from fedprompt.adaptation.methods.batch_norm import mixing, share_of_image
from fedprompt.adaptation.network import Network
from fedprompt.adaptation.statistics import SourceStatistics
from fedprompt.manifest import Arrays

__all__ = ["ReferencePrompting"]

_SHARE = 0.01  # window side over image side
_NEIGHBOURS = 16
_TEMPERATURE = 0.2
_CAPACITY = 41  # the code says 40 and keeps one more
_BETAS = (0.9, 0.99)
_EPSILON = 1e-8


class ReferencePrompting(Method):
    """One Adam step on a gain of the window, warm-up mixing at every BatchNorm layer.

    Args:
        network: With BatchNorm layers.
        statistics: Not used: the method aligns to BatchNorm's running statistics.
        rate: Of Adam; the reference code has 0.05 for retinal vessels and discs, 0.01 for polyps.
    """

    name: ClassVar[str] = "reference"

    def __init__(self, network: Network, statistics: SourceStatistics | None, *, rate: float = 0.05) -> None:
        super().__init__(network, statistics)
        self._source = source_of(self, collected=False)
        self._rate = rate
        self._images = 0
        self._memory: deque[tuple[Tensor, Tensor]] = deque()
        self._adam: tuple[Tensor, Tensor] | None = None

    def adapt(self, images: Tensor) -> Outcome:
        self._images += 1
        x = self.network.normalised(images)
        with torch.no_grad():
            amplitude, phase = _spectrum(x)
            rows, columns = window(x.shape[-2:])
            key = amplitude[..., rows, columns].flatten()
            prompt, reused = self._start(key, amplitude[..., rows, columns].shape)
        prompt.requires_grad_(True)
        share = share_of_image(self._images)
        with torch.enable_grad():
            prompted = _image(amplitude, phase, prompt, rows, columns)
            logits, observed = self.watched.observe(prompted, blend=mixing(share))
            loss = self._loss(observed, share)
            (gradient,) = torch.autograd.grad(loss, prompt)
        del logits
        with torch.inference_mode():
            prompt = self._step(prompt.detach(), gradient)
            prompted = _image(amplitude, phase, prompt, rows, columns)
            found = self.network.probabilities(self.watched(prompted, blend=mixing(share)))
        self._push(key, prompt)
        return Outcome(found, None, accepted=True, loss_before=float(loss.detach()), reused=reused)

    def _start(self, key: Tensor, shape: torch.Size) -> tuple[Tensor, bool]:
        if len(self._memory) < _NEIGHBOURS:
            return torch.ones(shape, device=key.device), False
        keys = torch.stack([kept for kept, _ in self._memory])
        cosines = torch.nn.functional.cosine_similarity(key[None], keys)
        nearest = cosines.topk(_NEIGHBOURS)
        weights = torch.softmax(nearest.values / _TEMPERATURE, dim=0)
        prompts = torch.stack([self._memory[int(index)][1] for index in nearest.indices])
        return torch.tensordot(weights, prompts, dims=1), True

    def _loss(self, observed: LayerStatistics, share: float) -> Tensor:
        layers = []
        for name, source in self._source.items():
            image = observed[name]
            mixed = mixing(share)(
                name,
                Moments(source.mean, source.variance),
                Moments(image.mean.detach(), image.variance.detach()),
            )
            pixels = self.watched.positions[name]
            deviation = (image.variance * pixels / (pixels - 1)).clamp(min=1e-20).sqrt()
            layers.append(
                (mixed.mean - image.mean).abs().mean() + (mixed.variance.sqrt() - deviation).abs().mean()
            )
        return torch.stack(layers).mean()

    def _step(self, prompt: Tensor, gradient: Tensor) -> Tensor:
        """Adam whose moments and step count go on from image to image."""
        zeros = torch.zeros_like(gradient)
        first, second = self._adam or (zeros, zeros)
        first = _BETAS[0] * first + (1 - _BETAS[0]) * gradient
        second = _BETAS[1] * second + (1 - _BETAS[1]) * gradient.square()
        self._adam = (first, second)
        corrected = second / (1 - _BETAS[1] ** self._images)
        return prompt - self._rate * (first / (1 - _BETAS[0] ** self._images)) / (corrected.sqrt() + _EPSILON)

    def _push(self, key: Tensor, prompt: Tensor) -> None:
        """A queue; an image that is there already keeps its place and gets the new prompt."""
        if len(self._memory) == _CAPACITY:
            self._memory.popleft()
        for place, (kept, _) in enumerate(self._memory):
            if torch.equal(kept, key):
                self._memory[place] = (key, prompt)
                return
        self._memory.append((key, prompt))

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        arrays: Arrays = {}
        for place, (key, prompt) in enumerate(self._memory):
            arrays |= {f"key/{place:02d}": key.cpu().numpy(), f"prompt/{place:02d}": prompt.cpu().numpy()}
        if self._adam is not None:
            arrays |= {"adam/first": self._adam[0].cpu().numpy(), "adam/second": self._adam[1].cpu().numpy()}
        return arrays, {"images": self._images, "memory": len(self._memory)}

    def restore(self, arrays: Arrays, metadata: Mapping[str, Any]) -> None:
        def tensor(name: str) -> Tensor:
            return torch.from_numpy(np.array(arrays[name])).to(self.network.device)

        self._images = int(metadata["images"])
        places = range(int(metadata["memory"]))
        self._memory = deque((tensor(f"key/{n:02d}"), tensor(f"prompt/{n:02d}")) for n in places)
        self._adam = (tensor("adam/first"), tensor("adam/second")) if "adam/first" in arrays else None


def window(size: torch.Size) -> tuple[slice, slice]:
    """Rows and columns of the reference's window in a shifted spectrum; not centred on the constant part."""
    sides = [max(1, int(_SHARE * length)) for length in size]
    rows, columns = (
        slice((length - side) // 2, (length - side) // 2 + side)
        for length, side in zip(size, sides, strict=True)
    )
    return rows, columns


def _spectrum(x: Tensor) -> tuple[Tensor, Tensor]:
    shifted = torch.fft.fftshift(torch.fft.fft2(x), dim=(-2, -1))
    return shifted.abs(), shifted.angle()


def _image(amplitude: Tensor, phase: Tensor, prompt: Tensor, rows: slice, columns: slice) -> Tensor:
    gain = torch.ones_like(amplitude)
    gain[..., rows, columns] = prompt
    spectrum = torch.fft.ifftshift(torch.polar(amplitude * gain, phase), dim=(-2, -1))
    image: Tensor = torch.fft.ifft2(spectrum).real
    return image
