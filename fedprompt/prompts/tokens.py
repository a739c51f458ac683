"""Visual prompt tokens in the last blocks of a frozen transformer (VPT, ECCV 2022), with zero gates."""

from __future__ import annotations

import torch
from torch import nn

from fedprompt.backbones.attention import Tokens
from fedprompt.backbones.base import Geometry
from fedprompt.config import TokenOptions
from fedprompt.errors import ConfigurationError
from fedprompt.manifest import Scope
from fedprompt.prompts.base import InjectionPoint, Prompt

__all__ = ["GATE_RATES", "TOKEN_SPREAD", "VisualTokens", "first_block"]

# A LayerNorm follows the tokens, so their initial size decides only how fast they turn. Gates must open
# within some ten steps, or the tokens, whose gradient they scale, learn nothing; a hyperbolic tangent bounds
# them.
TOKEN_SPREAD = 0.1
GATE_RATES = {"gates": 30.0}


def first_block(geometry: Geometry, blocks: int) -> int:
    """Index of the first of the last `blocks` transformer blocks; what lies before it is cached.

    Raises:
        ConfigurationError: The backbone has fewer blocks.
    """
    if blocks > geometry.blocks:
        raise ConfigurationError(
            f"blocks of a token prompt: expected at most the {geometry.blocks} of the backbone, got {blocks}"
        )
    return geometry.blocks - blocks


class VisualTokens(Prompt):
    """Tokens (E, P, width) of the E blocks that they enter, gates (L, heads) of the L blocks that see them.

    Deep tokens enter every one of these blocks, shallow ones the first and travel on. Gates start at zero and
    act through a hyperbolic tangent.
    """

    scope = Scope.SHARED
    injection = InjectionPoint.TOKENS
    rates = GATE_RATES

    def __init__(self, options: TokenOptions, geometry: Geometry) -> None:
        super().__init__()
        self.start = first_block(geometry, options.blocks)
        seeing = geometry.blocks - self.start
        entered = seeing if options.depth == "deep" else 1
        self.tokens = nn.Parameter(torch.zeros(entered, options.count, geometry.width))
        self.gates = nn.Parameter(torch.zeros(seeing, geometry.heads))

    def reset(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.tokens, std=TOKEN_SPREAD, generator=generator)
        nn.init.zeros_(self.gates)

    def forward(self) -> Tokens:
        """The tokens by block."""
        return Tokens(
            enter={self.start + i: tokens for i, tokens in enumerate(self.tokens)},
            gates={self.start + i: gate for i, gate in enumerate(self.gates.tanh())},
        )
