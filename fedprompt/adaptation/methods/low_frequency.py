"""Ours: a low-frequency prompt per image, normalisation that follows the stream, and both only where shifted.

After VPTTA (Chen et al., CVPR 2024), with these differences: the stream's statistics stand for the image's
own, weighted by how sure they are; the prompt comes from a bounded step and has to lower the alignment loss;
and the prediction moves from the frozen network's to the adapted one as far as the stream is shifted, so that
a stream that is not shifted is left alone, bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedprompt.adaptation.alignment import alignment_loss
from fedprompt.adaptation.drift import LAYERS, DriftMonitor
from fedprompt.adaptation.layers import LayerStatistics, Moments
from fedprompt.adaptation.memory import PromptMemory
from fedprompt.adaptation.methods.base import Method, Outcome, source_of
from fedprompt.adaptation.network import Network
from fedprompt.adaptation.safety import CertaintyGate, objection
from fedprompt.adaptation.statistics import SourceStatistics
from fedprompt.adaptation.stream_statistics import StreamStatistics
from fedprompt.manifest import Arrays
from fedprompt.prompts.low_frequency import LowFrequencyPrompt, window_radius

__all__ = ["LowFrequencyPrompting"]

_LEAST_TRUST = 0.05  # below it nothing is adapted, and an image costs one forward
_OWN = 0.1  # share of the image's own statistics in a stream that is shifted for certain
_STEP = 0.05  # most that one step changes a logarithmic gain


class LowFrequencyPrompting(Method):
    """Needs BatchNorm layers or collected source statistics."""

    name: ClassVar[str] = "low-frequency"
    steps: ClassVar[int] = 1

    def __init__(self, network: Network, statistics: SourceStatistics | None) -> None:
        super().__init__(network, statistics)
        self._source = source_of(self)
        follows = statistics is None  # collected ones are no baseline for layers that keep others
        self._followed = tuple(self.watched.batch_norm) if follows else ()
        self._blends = self._unseen()
        self._gate = CertaintyGate()
        self._trust = 0.0
        self._aligned: tuple[str, ...] = ()
        self._drift: DriftMonitor | None = None
        self._memory: PromptMemory | None = None

    def adapt(self, images: Tensor) -> Outcome:
        with torch.no_grad():
            logits, observed = self.watched.observe(self.network.normalised(images), self._aligned)
            plain = self.network.probabilities(logits)
            drift = self._monitor()
            restarted = drift.add(observed)
            if restarted:
                self._blends = self._unseen()
                self._gate = CertaintyGate()
            before = self._loss(observed)
            self._trust = trust = drift.trust
        prompt = self._prompt_for(images)
        if trust < _LEAST_TRUST:
            reason = "the stream is not shifted"
            return Outcome(plain, plain, False, reason, float(before), float(before), False, restarted)
        key = prompt.keys(images)[0].detach()
        after, reused = self._improve(prompt, images, key, before)
        with torch.no_grad():
            prompted = self.network.normalised(prompt(images))
            adapted = self.network.probabilities(self.watched(prompted, blend=self._blended))
            found = plain + trust * (adapted - plain)
        identity = not bool(prompt.log_gain.any())
        if identity and not self._blends:
            reason = "no step lowers the alignment loss"
        else:
            surer = self._gate.add(plain, adapted)
            reason = objection(plain, found) or ("" if surer else "adaptation makes this stream less certain")
        if reason:
            return Outcome(plain, plain, False, reason, float(before), float(after), reused, restarted)
        if not identity:
            self._remember(key, prompt)
        return Outcome(found, plain, True, "", float(before), float(after), reused, restarted)

    def _improve(
        self, prompt: LowFrequencyPrompt, images: Tensor, key: Tensor, before: Tensor
    ) -> tuple[Tensor, bool]:
        """Sets the prompt to the best of identity, remembered prompt and steps from it; gives its loss."""
        recalled = self._memory.recall(key) if self._memory is not None else None
        gains, best = torch.zeros_like(prompt.log_gain), before
        start = gains if recalled is None else recalled
        for number in range(self.steps + 1):
            prompt.log_gain.data.copy_(start)
            last = number == self.steps
            with torch.set_grad_enabled(not last):
                shown = self.network.normalised(prompt(images))
                loss = self._loss(self.watched.observe_until(shown, self._aligned[-1]))
            if float(loss.detach()) < float(best):
                gains, best = start, loss.detach()
            if not last:
                (gradient,) = torch.autograd.grad(loss, prompt.log_gain)
                start = (start + self._step(loss.detach(), gradient)).clamp(-prompt.limit, prompt.limit)
        prompt.log_gain.data.copy_(gains)
        return best, recalled is not None and bool(gains.any())

    def _step(self, loss: Tensor, gradient: Tensor) -> Tensor:
        """The step to where the loss would be zero if it were linear (Polyak, 1987), bounded per gain."""
        if not bool(torch.isfinite(gradient).all()):
            return torch.zeros_like(gradient)
        step = -gradient * loss / gradient.square().sum().clamp(min=1e-12)
        return step * (_STEP / step.abs().max().clamp(min=_STEP))

    def _blended(self, name: str, kept: Moments, image: Moments) -> Moments:
        if name not in self._blends:
            return kept
        stream = self._blends[name]
        stream.add(image)
        share = _OWN * self._trust
        return Moments(*((1 - share) * s + share * i for s, i in zip(stream.blended(), image, strict=True)))

    def _loss(self, observed: LayerStatistics) -> Tensor:
        return alignment_loss({name: observed[name] for name in self._aligned}, self._source)

    def _monitor(self) -> DriftMonitor:
        if self._drift is None:
            names = [name for name in self.watched.names if name in self._source]
            self._aligned = tuple(names[:LAYERS])
            self._drift = DriftMonitor({name: self._source[name] for name in self._aligned})
        return self._drift

    def _prompt_for(self, images: Tensor) -> LowFrequencyPrompt:
        radius = self._radius(images)
        if self.prompt is None or self.prompt.radius != radius:
            self.prompt = LowFrequencyPrompt(images.shape[1], radius).to(images.device)
            self._memory = None  # gains of another window do not fit
        self.prompt.log_gain.data.zero_()
        self.prompt.check(images)
        return self.prompt

    def _unseen(self) -> dict[str, StreamStatistics]:
        return {name: StreamStatistics(self._source[name]) for name in self._followed}

    def _radius(self, images: Tensor) -> int:
        return window_radius((images.shape[-2], images.shape[-1]))

    def _remember(self, key: Tensor, prompt: LowFrequencyPrompt) -> None:
        if self._memory is None:
            self._memory = PromptMemory(len(key), tuple(prompt.log_gain.shape))
        self._memory.add(key, prompt.log_gain)

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        arrays: Arrays = {}
        values: dict[str, Any] = {
            "blends": {name: blend.images for name, blend in self._blends.items()},
            "gate": [self._gate.images, self._gate.gain],
        }
        for name, blend in self._blends.items():
            arrays |= {f"blend/{name}/{kind}": value for kind, value in blend.arrays().items()}
        if self._drift is not None:
            kept, values["drift"] = self._drift.state()
            arrays |= {f"drift/{name}": value for name, value in kept.items()}
            values["layers"] = list(self.watched.names)
        if self._memory is not None and self.prompt is not None:
            arrays |= {f"memory/{name}": value for name, value in self._memory.arrays().items()}
            values |= {"written": self._memory.written, "radius": self.prompt.radius}
        return arrays, values

    def restore(self, arrays: Arrays, metadata: Mapping[str, Any]) -> None:
        device = self.network.device
        for name, blend in self._blends.items():
            blend.restore(int(metadata["blends"][name]), _under(arrays, f"blend/{name}/"), device)
        counted, gain = metadata["gate"]
        self._gate = CertaintyGate(int(counted), float(gain))
        if "drift" in metadata:
            self.watched.names = tuple(metadata["layers"])
            self._monitor().restore(_under(arrays, "drift/"), metadata["drift"], device)
        if "written" in metadata:
            kept = _under(arrays, "memory/")
            self.prompt = LowFrequencyPrompt(self.network.channels, int(metadata["radius"])).to(device)
            self._memory = PromptMemory(kept["keys"].shape[1], tuple(self.prompt.log_gain.shape))
            self._memory.restore(int(metadata["written"]), kept)


def _under(arrays: Mapping[str, Any], prefix: str) -> Arrays:
    return {n.removeprefix(prefix): array for n, array in arrays.items() if n.startswith(prefix)}
