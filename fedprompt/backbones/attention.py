"""Prompt tokens in frozen transformer blocks, by zero-gated attention (LLaMA-Adapter, ICLR 2024).

In a prompted block every query attends to the image as before, and apart from that to the prompt tokens; what
the tokens give is added with a gate per head that starts at zero. So the model starts as the frozen one
exactly, the sequence keeps its length, and blocks that attend within windows can be prompted too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Block", "Tokens", "attend_to_tokens", "run_blocks"]

Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Tokens:
    """Prompt tokens on their way into the blocks.

    Attributes:
        enter: Tokens (P, width), or (B, P, width) where they differ between images, by the index of the block
            that they enter. They replace the tokens that came from the block before; in a block without an
            entry, those travel on.
        gates: Per block that sees tokens, the weight of the attention to them per head (heads,).
    """

    enter: Mapping[int, Tensor]
    gates: Mapping[int, Tensor]


@dataclass(frozen=True)
class Block:
    """The parts of a block x + attention(norm(x)), then x + mlp(norm(x)), as all plain ViTs have it.

    Attributes:
        own: The library's block as a whole.
        norm_attention: In front of the attention.
        query, key, value, out: Its projections.
        norm_mlp: In front of the MLP.
        heads: Attention heads.
        scale: Factor of query times key.
        scale_attention: LayerScale of the attention, where the family has it.
        scale_mlp: LayerScale of the MLP, likewise.
    """

    own: Layer
    norm_attention: Layer
    query: Layer
    key: Layer
    value: Layer
    out: Layer
    norm_mlp: Layer
    mlp: Layer
    heads: int
    scale: float
    scale_attention: Layer | None = None
    scale_mlp: Layer | None = None

    def prompted(
        self, x: Tensor, tokens: Tensor, gate: Tensor, *, travels: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The hidden state through the block with tokens, and the tokens themselves where they travel on.

        Args:
            x: Hidden state (B, N, width).
            tokens: (P, width) or (B, P, width).
            gate: (heads,).
            travels: Whether the next block sees these tokens.
        """
        normed = self.norm_attention(x)
        query, key, value = (self._heads(part(normed)) for part in (self.query, self.key, self.value))
        normed = self.norm_attention(tokens)
        token_key, token_value = self._heads(self.key(normed)), self._heads(self.value(normed))
        attended = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        attended = attended + attend_to_tokens(query, token_key, token_value, gate, self.scale)
        after = self._after_attention(x, attended)
        if not travels:
            return after, None
        # The tokens themselves attend to image and tokens alike (VPT), each image's copy to its own image.
        token_query, token_key, token_value = (
            part.expand(len(x), *part.shape[-3:])
            for part in (self._heads(self.query(normed)), token_key, token_value)
        )
        attended = F.scaled_dot_product_attention(
            token_query,
            torch.cat([key, token_key], dim=2),
            torch.cat([value, token_value], dim=2),
            scale=self.scale,
        )
        return after, self._after_attention(tokens, attended)

    def _heads(self, x: Tensor) -> Tensor:
        """(..., N, heads * d) to (..., heads, N, d)."""
        return x.reshape(*x.shape[:-1], self.heads, -1).transpose(-3, -2)

    def _after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        update = self.out(attended.transpose(-3, -2).flatten(-2))
        x = x + (update if self.scale_attention is None else self.scale_attention(update))
        update = self.mlp(self.norm_mlp(x))
        return x + (update if self.scale_mlp is None else self.scale_mlp(update))


def run_blocks(blocks: Sequence[Block], x: Tensor, start: int = 0, tokens: Tokens | None = None) -> Tensor:
    """A hidden state through the blocks from `start` on; those that see no tokens are the library's own.

    Raises:
        ValueError: Tokens for a block that does not run, or a gate where no tokens have entered.
    """
    gates = {} if tokens is None else tokens.gates
    enter = {} if tokens is None else tokens.enter
    for index in sorted(enter.keys() | gates.keys()):
        if not start <= index < len(blocks):
            raise ValueError(f"prompt tokens: expected blocks {start} to {len(blocks) - 1}, got {index}")
        if index not in gates:
            raise ValueError(f"prompt tokens: expected a gate for block {index}, which they enter, got none")
        if index not in enter and index - 1 not in gates:
            raise ValueError(f"prompt tokens: expected some to reach block {index}, which has a gate")
    present: Tensor | None = None
    for index in range(start, len(blocks)):
        if index not in gates:
            x = blocks[index].own(x)
            continue
        present = enter.get(index, present)
        assert present is not None  # noqa: S101 - checked above
        travels = index + 1 in gates and index + 1 not in enter
        x, present = blocks[index].prompted(x, present, gates[index], travels=travels)
    return x


def attend_to_tokens(query: Tensor, key: Tensor, value: Tensor, gate: Tensor, scale: float) -> Tensor:
    """Gated attention of queries (B, heads, N, d) to tokens, of the queries' shape.

    Args:
        query: Of the image.
        key: Of the tokens, (heads, P, d) or (B, heads, P, d).
        value: Of the tokens, likewise.
        gate: Weight per head (heads,); with zeros the result is exactly zero.
        scale: Factor of query times key.
    """
    gated = (value * gate[..., None, None]).to(value.dtype)  # the P values are fewer than the N results
    key, gated = (part.expand(len(query), *part.shape[-3:]) for part in (key, gated))
    return F.scaled_dot_product_attention(query, key, gated, scale=scale)
