"""Test-time adaptation to a stream of images, one at a time, with any method, around any frozen network."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedprompt.adaptation.layers import WatchedNetwork
from fedprompt.adaptation.methods import METHODS
from fedprompt.adaptation.methods.base import Outcome
from fedprompt.adaptation.network import Network
from fedprompt.adaptation.safety import entropy, foreground, most_probable
from fedprompt.adaptation.statistics import SourceStatistics
from fedprompt.errors import ConfigurationError, DataError
from fedprompt.manifest import Arrays
from fedprompt.prompts.low_frequency import LowFrequencyPrompt

__all__ = ["Adapted", "Adapter"]

_KIND = "adaptation-stream"
_SCHEMA = 1
_FAR = 100.0  # a value that no image in 0 to 1 has


@dataclass(frozen=True, eq=False)
class Adapted:
    """What became of one image.

    Attributes:
        probabilities: (classes, H, W) float32 on the CPU, at the size that the network saw.
        mask: uint8 (H, W), the most probable class.
        accepted: The adaptation was used.
        reason: Why the image went through unadapted; empty where it was adapted.
        loss_before: Alignment loss of the image as it is; None where the method has none.
        loss_after: Alignment loss of the prompted image.
        entropy: Mean entropy of the prediction as a share of that of even odds, 0 to 1.
        agreement: Dice of the foreground with the prediction without adaptation; None where that is not
            computed.
        foreground: Share of pixels that are not background.
        reused: The prompt began as a remembered one.
        restarted: The shift detector began warm-up anew with this image.
        seconds: Time it took.
    """

    probabilities: Tensor
    mask: np.ndarray
    accepted: bool
    reason: str
    loss_before: float | None
    loss_after: float | None
    entropy: float | None
    agreement: float | None
    foreground: float | None
    reused: bool
    restarted: bool
    seconds: float


class Adapter:
    """Adapts a frozen network to a stream of images; the order of the images matters.

    Equal networks, images and states give equal results. An adapter is for one stream and one thread; several
    may stand on one network at the same time.

    Args:
        network: The network; never changed.
        method: A name of `METHODS`.
        statistics: Source statistics for networks without BatchNorm layers.

    Attributes:
        network: As given.
        method: Its name.
        images: Seen so far.

    Raises:
        ConfigurationError: There is no such method, or it cannot work on this network.
        DataError: The statistics are those of another network.
    """

    def __init__(
        self, network: Network, method: str = "low-frequency", *, statistics: SourceStatistics | None = None
    ) -> None:
        if method not in METHODS:
            raise ConfigurationError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
        if statistics is not None and statistics.fingerprint != network.fingerprint:
            raise DataError(
                f"statistics: expected those of network {network.fingerprint[:12]}, got those of "
                f"{statistics.fingerprint[:12]}"
            )
        self.network = network
        self.method = method
        self.images = 0
        self._statistics = statistics
        self._method = METHODS[method](network, statistics)
        self._plain = WatchedNetwork(network.module)

    @property
    def prompt(self) -> LowFrequencyPrompt | None:
        """The prompt of the last image; None where the method has none."""
        return self._method.prompt

    def __call__(self, image: Tensor | np.ndarray) -> Adapted:
        """Predicts one image (channels, H, W) in 0 to 1, already of the network's size, and adapts to it.

        An image that cannot be adapted to gets the frozen network's prediction, and the stream is as if it
        had not been there.

        Raises:
            DataError: The network cannot predict it at all: wrong channels or size, or no finite prediction.
        """
        start = time.perf_counter()
        with torch.inference_mode(mode=False):  # whatever mode the caller is in
            return self._answer(self._checked(image), start)

    def _answer(self, batch: Tensor, start: float) -> Adapted:
        self.images += 1
        unfit = _unfit(batch)
        if unfit:
            outcome = self._unadapted(torch.nan_to_num(batch, nan=0.0, posinf=1.0, neginf=0.0), unfit)
        else:
            outcome = self._adapted(batch)
        outcome = _sized(outcome, batch)
        if not bool(torch.isfinite(outcome.probabilities).all()):
            raise DataError("image: expected a finite prediction, got NaN or infinity")
        return _told(outcome, start)

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """All that the next image depends on: arrays and JSON values."""
        arrays, metadata = self._method.state()
        facts = {"kind": _KIND, "schema": _SCHEMA, "network": self.network.fingerprint}
        return arrays, {**facts, "method": self.method, "images": self.images, "values": metadata}

    def restore(self, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave.

        Raises:
            DataError: It is the state of another network or method, or damaged.
        """
        if (metadata.get("kind"), metadata.get("schema")) != (_KIND, _SCHEMA):
            raise DataError(f"state: expected an adaptation stream of schema {_SCHEMA}, got something else")
        for name, mine in (("network", self.network.fingerprint), ("method", self.method)):
            if metadata.get(name) != mine:
                raise DataError(
                    f"state: expected the state of {name} {mine[:20]}, got {str(metadata.get(name))[:20]}"
                )
        fresh = METHODS[self.method](self.network, self._statistics)
        try:
            fresh.restore(dict(arrays), metadata["values"])
            self.images = int(metadata["images"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"state: expected a whole state, got another ({error})") from None
        if fresh.state()[0].keys() != arrays.keys():
            raise DataError("state: expected a whole state, got another (its arrays are not those of it)")
        self._method = fresh

    def _adapted(self, batch: Tensor) -> Outcome:
        before = self._method.state()
        try:
            outcome = self._method.adapt(batch)
            if bool(torch.isfinite(outcome.probabilities).all()):
                return outcome
            reason = "the adapted prediction is not finite"
        except (ValueError, RuntimeError) as error:  # the prompt's, and what torch raises in a layer
            reason = str(error).partition("\n")[0]
        self._method = METHODS[self.method](self.network, self._statistics)
        self._method.restore(*before)
        return self._unadapted(batch, reason)

    def _unadapted(self, batch: Tensor, reason: str) -> Outcome:
        try:
            with torch.no_grad():
                logits = self._plain(self.network.normalised(batch))
        except RuntimeError as error:
            cause = str(error).partition("\n")[0]
            raise DataError(f"image: the network cannot take {_size(batch)} pixels ({cause})") from None
        found = self.network.probabilities(logits)
        return Outcome(found, found, accepted=False, reason=reason)

    def _checked(self, image: Tensor | np.ndarray) -> Tensor:
        if not isinstance(image, Tensor | np.ndarray) or image.dtype in (
            object,
            torch.complex64,
            np.complex128,
        ):
            raise DataError(
                f"image: expected an array or a tensor of real numbers, got {type(image).__name__}"
            )
        tensor = torch.as_tensor(np.ascontiguousarray(image) if isinstance(image, np.ndarray) else image)
        network = self.network
        if tensor.ndim != 3 or tensor.shape[0] != network.channels or 0 in tensor.shape:
            raise DataError(
                f"image: expected shape ({network.channels}, height, width), got {tuple(tensor.shape)}"
            )
        if network.size is not None and tuple(tensor.shape[1:]) != tuple(network.size):
            raise DataError(
                f"image: expected {network.size[0]} by {network.size[1]} pixels, got "
                f"{tensor.shape[1]} by {tensor.shape[2]}"
            )
        return tensor.detach().to(network.device, torch.float32)[None].contiguous().clone()


def _sized(outcome: Outcome, batch: Tensor) -> Outcome:
    """Probabilities at the size of the image, where the network gave another one."""
    size = batch.shape[-2:]
    if outcome.probabilities.shape[-2:] == size:
        return outcome

    def resized(values: Tensor) -> Tensor:
        return nn.functional.interpolate(values, size=size, mode="bilinear", align_corners=False)

    plain = None if outcome.plain is None else resized(outcome.plain)
    return replace(outcome, probabilities=resized(outcome.probabilities), plain=plain)


def _size(batch: Tensor) -> str:
    return f"{batch.shape[-2]} by {batch.shape[-1]}"


def _unfit(batch: Tensor) -> str:
    """Why one must not adapt to an image; empty where one may."""
    if not bool(torch.isfinite(batch).all()):
        return "the image has NaN or infinite pixels"
    if float(batch.abs().amax()) > _FAR:
        return "the image has values far from 0 to 1"
    if float(batch.amax()) == float(batch.amin()):
        return "the image is constant"
    return ""


def _told(outcome: Outcome, start: float) -> Adapted:
    probabilities = outcome.probabilities
    mask = most_probable(probabilities)[0][0]
    agreement = None
    if outcome.plain is not None:
        mine, theirs = mask > 0, most_probable(outcome.plain)[0][0] > 0
        both = float((mine & theirs).sum())
        total = float(mine.sum() + theirs.sum())
        agreement = 1.0 if total == 0 else 2 * both / total
    return Adapted(
        probabilities=probabilities[0].float().cpu(),
        mask=mask.cpu().numpy(),
        accepted=outcome.accepted,
        reason=outcome.reason,
        loss_before=outcome.loss_before,
        loss_after=outcome.loss_after,
        entropy=float(entropy(probabilities)),
        agreement=agreement,
        foreground=float(foreground(probabilities)),
        reused=outcome.reused,
        restarted=outcome.restarted,
        seconds=time.perf_counter() - start,
    )
