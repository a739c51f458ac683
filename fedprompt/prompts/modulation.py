"""A channel gain and shift on every level of the frozen decoder (FiLM, AAAI 2018, without a generator)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedprompt.config import ModulationOptions
from fedprompt.manifest import Scope
from fedprompt.prompts.base import InjectionPoint, Prompt

__all__ = ["DecoderModulation"]


class DecoderModulation(Prompt):
    """Trainable gains (C,) and shifts (C,) per decoder level; ones and zeros at first."""

    scope = Scope.SHARED
    injection = InjectionPoint.DECODER

    def __init__(self, options: ModulationOptions, *, decoder_channels: tuple[int, ...]) -> None:  # noqa: ARG002
        super().__init__()
        self.gain = nn.ParameterList([nn.Parameter(torch.ones(c)) for c in decoder_channels])
        self.shift = nn.ParameterList([nn.Parameter(torch.zeros(c)) for c in decoder_channels])

    def reset(self, generator: torch.Generator) -> None:  # noqa: ARG002 - nothing random in the identity
        for gain, shift in zip(self.gain, self.shift, strict=True):
            nn.init.ones_(gain)
            nn.init.zeros_(shift)

    def forward(self, level: int, feature: Tensor) -> Tensor:
        """The feature (B, C, h, w) of one decoder level, scaled and shifted per channel."""
        gain, shift = self.gain[level], self.shift[level]
        return torch.addcmul(shift[:, None, None], feature, gain[:, None, None])
