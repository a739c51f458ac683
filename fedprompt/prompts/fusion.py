"""Tri-prompt dual-attention fusion (TDF) of FedLPPA (IEEE TMI 2024), as a residual on a frozen feature.

Differences to the reference code: GroupNorm for BatchNorm (nothing mixes patients), one forward for the own
row instead of one per site, no dropout, channel energies divided by the number of positions (else the softmax
saturates), and an output projection that starts at zero, so that the first fused feature is the frozen one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedprompt.config import FusionOptions
from fedprompt.manifest import Scope
from fedprompt.prompts.base import InjectionPoint, Prompt

__all__ = ["TriPromptFusion"]

_GROUPS = 4


class TriPromptFusion(Prompt):
    """Fuses a feature (B, C, h, w) with prompt maps (P, h, w) into a residual of the same shape."""

    scope = Scope.SHARED
    injection = InjectionPoint.FEATURES

    def __init__(self, options: FusionOptions, *, feature_channels: int, prompt_channels: int) -> None:
        super().__init__()
        width = options.width
        self.reduce = nn.Conv2d(feature_channels + prompt_channels, width, 1)
        self.norm_1 = nn.GroupNorm(_GROUPS, width)
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.norm_2 = nn.GroupNorm(_GROUPS, width)
        self.query = nn.Conv2d(width, width // 4, (1, 3), padding=(0, 1))
        self.key = nn.Conv2d(width, width // 4, (3, 1), padding=(1, 0))
        self.value = nn.Conv2d(width, width, 1)
        self.gamma_spatial = nn.Parameter(torch.zeros(1))
        self.gamma_channel = nn.Parameter(torch.zeros(1))
        self.project = nn.Conv2d(width, feature_channels, 1)

    def reset(self, generator: torch.Generator) -> None:
        for conv in (self.reduce, self.mix, self.query, self.key, self.value):
            nn.init.kaiming_normal_(conv.weight, a=0.01, nonlinearity="leaky_relu", generator=generator)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]
        for norm in (self.norm_1, self.norm_2):
            nn.init.ones_(norm.weight)
            nn.init.zeros_(norm.bias)
        nn.init.zeros_(self.gamma_spatial)
        nn.init.zeros_(self.gamma_channel)

    def fuse(self, feature: Tensor, maps: Tensor) -> Tensor:
        """The fused prompt feature f = SAB(g) + CAB(g), shape (B, width, h, w)."""
        tokens = torch.cat([feature, maps.expand(feature.shape[0], *maps.shape)], dim=1)
        g = F.leaky_relu(self.norm_1(self.reduce(tokens)), 0.01)
        g = F.leaky_relu(self.norm_2(self.mix(g)), 0.01)
        return self._spatial_attention(g) + self._channel_attention(g)

    def forward(self, fused: Tensor) -> Tensor:
        """The residual (B, C, h, w) that a fused prompt feature adds to the frozen feature."""
        residual: Tensor = self.project(fused)
        return residual

    def _spatial_attention(self, g: Tensor) -> Tensor:
        query = F.relu(self.query(g)).flatten(2).transpose(1, 2)
        key = F.relu(self.key(g)).flatten(2).transpose(1, 2)
        value = self.value(g).flatten(2).transpose(1, 2)
        attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return self.gamma_spatial * attended.transpose(1, 2).reshape(g.shape) + g

    def _channel_attention(self, g: Tensor) -> Tensor:
        flat = g.flatten(2)
        energy = flat @ flat.transpose(1, 2) / flat.shape[-1]
        attention = torch.softmax(energy.amax(dim=-1, keepdim=True) - energy, dim=-1)
        return self.gamma_channel * (attention @ flat).reshape(g.shape) + g
