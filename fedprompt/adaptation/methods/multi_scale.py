"""Windows of several scales: the low-frequency prompt on a wider window and with more steps.

In the spirit of MGIPT (BIBM 2025), which adds windows of side 1, 3 and 5. Gains multiply, so a sum of nested
windows is one window in which the lower frequencies move faster.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedprompt.adaptation.methods.low_frequency import LowFrequencyPrompting
from fedprompt.prompts.low_frequency import frequencies

__all__ = ["MultiScalePrompting"]

_RADIUS = 2


class MultiScalePrompting(LowFrequencyPrompting):
    """Windows of side 1, 3 and 5 with three steps per image."""

    name: ClassVar[str] = "multi-scale"
    steps: ClassVar[int] = 3

    def _radius(self, images: Tensor) -> int:  # noqa: ARG002 - the same for all
        return _RADIUS

    def _step(self, loss: Tensor, gradient: Tensor) -> Tensor:
        """A frequency is part of as many windows as there are scales that hold it."""
        scales = [_RADIUS + 1 - max(abs(u), v) for u, v in frequencies(_RADIUS)]
        return super()._step(loss, gradient * torch.tensor(scales, device=gradient.device))
