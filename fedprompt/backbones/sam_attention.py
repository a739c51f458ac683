"""Prompt tokens in the transformer blocks of Segment Anything, which attend within windows or globally.

Zero-gated attention (LLaMA-Adapter, ICLR 2024) as `fedprompt.backbones.attention` describes it. What the
tokens give is added behind the library's own attention, so windows, their padding and the relative positions
stay its business. As the queries meet the tokens' keys apart from the image's, the query projection can be
folded into these keys, and the output projection into the values: P tokens then cost P numbers per head and
position, not a vector of the block's width, in time and in what the backward pass keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["SamBlock"]


@dataclass(frozen=True)
class SamBlock:
    """A block that tokens may enter, as `fedprompt.backbones.attention.run_blocks` runs it.

    Attributes:
        own: The library's block, a `SamVisionLayer`.
    """

    own: Any

    def prompted(
        self, x: Tensor, tokens: Tensor, gate: Tensor, *, travels: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The hidden state through the block with tokens, and the tokens themselves where they travel on.

        Args:
            x: Hidden state (B, h, w, D).
            tokens: (P, D) or (B, P, D).
            gate: (heads,).
            travels: Whether the next block sees these tokens.
        """
        normed = self.own.layer_norm1(x)
        if self.own.window_size:
            windows, padded = self.own.window_partition(normed, self.own.window_size)
            attended = self.own.attn(windows)[0]
            attended = self.own.window_unpartition(attended, self.own.window_size, padded, x.shape[1:3])
        else:
            attended = self.own.attn(normed)[0]
        positions, normed_tokens = normed.flatten(1, 2), self.own.layer_norm1(tokens)
        if tokens.ndim == 2:
            normed_tokens = normed_tokens[None]
        after = x + attended + self._from_tokens(positions, normed_tokens, gate).view_as(x)
        after = after + self.own.mlp(self.own.layer_norm2(after))
        if not travels:
            return after, None
        if self.own.window_size:
            return after, tokens  # they have no place in any window, hence nothing to attend to
        updated = tokens + self._to_all(positions, normed_tokens)
        return after, updated + self.own.mlp(self.own.layer_norm2(updated))

    def _from_tokens(self, positions: Tensor, tokens: Tensor, gate: Tensor) -> Tensor:
        """What gated attention to the tokens (B or 1, P, D) alone gives to every position (B, N, D)."""
        key, value = self._projected(tokens, "k"), self._projected(tokens, "v")  # (b, heads, P, d)
        weight, bias = self._projection("q")
        key = self.own.attn.scale * key
        scores = positions @ (key @ weight).flatten(1, 2).transpose(1, 2)  # (B, N, heads * P)
        if bias is not None:
            scores = scores + (key @ bias[..., None]).flatten(1)[:, None]
        attended = scores.unflatten(-1, (len(gate), -1)).softmax(dim=-1).flatten(-2)
        out = self.own.attn.proj.weight.unflatten(1, (len(gate), -1)).permute(1, 2, 0)  # (heads, d, D)
        given: Tensor = attended @ (gate[:, None, None] * value @ out).flatten(1, 2)
        return given

    def _to_all(self, positions: Tensor, tokens: Tensor) -> Tensor:
        """What the tokens (B or 1, P, D) get from the image and each other (B, P, D)."""
        tokens = tokens.expand(len(positions), -1, -1)
        seen = torch.cat([tokens, positions], dim=1)
        attended = F.scaled_dot_product_attention(
            self._projected(tokens, "q"),
            self._projected(seen, "k"),
            self._projected(seen, "v"),
            scale=self.own.attn.scale,
        )
        got: Tensor = self.own.attn.proj(attended.transpose(1, 2).flatten(2))
        return got

    def _projected(self, x: Tensor, part: str) -> Tensor:
        """Queries, keys or values per head (B, heads, N, d) of x (B, N, D)."""
        weight, bias = self._projection(part)
        projected = F.linear(x, weight.flatten(0, 1), None if bias is None else bias.flatten())
        return projected.view(*x.shape[:2], len(weight), -1).transpose(1, 2)

    def _projection(self, part: str) -> tuple[Tensor, Tensor | None]:
        """Weight (heads, d, D) and bias (heads, d) of the queries, keys or values."""
        layer, heads = self.own.attn.qkv, self.own.attn.num_attention_heads
        index = "qkv".index(part)
        bias = None if layer.bias is None else layer.bias.view(3, heads, -1)[index]
        return layer.weight.view(3, heads, -1, layer.in_features)[index], bias
