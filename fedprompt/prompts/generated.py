"""A prompt that is generated from the image: a gated affine map of the deepest feature.

The idea of prompt-DA (MICCAI 2023), whose generator is a three-dimensional network of 37 M parameters; here a
small network on the pooled feature does it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedprompt.config import GeneratedOptions
from fedprompt.manifest import Scope
from fedprompt.prompts.base import InjectionPoint, Prompt

__all__ = ["GeneratedPrompt"]

MOST_PARAMETERS = 100_000


class GeneratedPrompt(Prompt):
    """x becomes x + g (x * gain + shift), with g, gain and shift generated from the pooled x; zeros at first.

    Args:
        options: The hidden width; it shrinks where the network would have more than 100,000 parameters.
        channels: Of the feature.
    """

    scope = Scope.SHARED
    injection = InjectionPoint.FEATURES

    def __init__(self, options: GeneratedOptions, *, channels: int) -> None:
        super().__init__()
        outputs = 2 * channels + 1
        width = min(options.width, max(1, (MOST_PARAMETERS - outputs) // (channels + outputs + 1)))
        self.squeeze = nn.Linear(channels, width)
        self.generate = nn.Linear(width, outputs)

    def reset(self, generator: torch.Generator) -> None:
        nn.init.kaiming_normal_(self.squeeze.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(self.squeeze.bias)
        nn.init.zeros_(self.generate.weight)
        nn.init.zeros_(self.generate.bias)

    def forward(self, x: Tensor) -> Tensor:
        """A feature (B, C, h, w), or a pooled one (B, C), to one of the same shape."""
        pooled = x if x.ndim == 2 else x.mean(dim=(2, 3))
        pooled = F.layer_norm(pooled, pooled.shape[1:])
        gate, gain, shift = self.generate(F.gelu(self.squeeze(pooled))).tensor_split(
            [1, 1 + x.shape[1]], dim=1
        )
        if x.ndim == 4:
            gate, gain, shift = gate[..., None, None], gain[..., None, None], shift[..., None, None]
        prompted: Tensor = x + torch.sigmoid(gate) * (x * gain + shift)
        return prompted
