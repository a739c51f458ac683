"""Frozen Vision Transformers (Dosovitskiy et al., ICLR 2021) from `transformers`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import isqrt
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedprompt.backbones.attention import Block, Tokens, run_blocks
from fedprompt.backbones.base import Features, Geometry, Preprocessing
from fedprompt.backbones.hub import Encoder, HubBackbone

__all__ = ["ViT"]


class ViT(HubBackbone):
    """A Vision Transformer: features are its class token (B, D, 1, 1) and its patch grid (B, D, h, w).

    Both are taken after the last LayerNorm. Position embeddings are interpolated (bicubic, as the library
    does it) where images are not of the size of the training.
    """

    name: ClassVar[str] = "vit"
    model_types: ClassVar[tuple[str, ...]] = ("vit",)
    model_class: ClassVar[str] = "ViTModel"
    load_options: ClassVar[Mapping[str, Any]] = {"add_pooling_layer": False}
    usual: ClassVar[Preprocessing] = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 224)
    decoder_widths: ClassVar[tuple[int, ...]] = (64, 32, 32)  # one grid: the others double its resolution

    @property
    def leading(self) -> int:
        """Rows of the hidden state in front of the patches."""
        return 1

    def encode(self, images: Tensor, stop: int | None = None) -> Features:
        height, width = images.shape[-2:]
        if stop is not None and height != width:
            raise ValueError(f"a hidden state has no sides: expected square images, got {height} x {width}")
        hidden = self._embed(images)
        if stop is not None:
            return (run_blocks(self._blocks()[:stop], hidden),)
        patch = self.geometry.strides[-1]
        return self._features(run_blocks(self._blocks(), hidden), (height // patch, width // patch))

    def resume(self, state: Features, start: int, tokens: Tokens | None = None) -> Features:
        hidden = run_blocks(self._blocks(), state[0], start, tokens)
        side = isqrt(hidden.shape[1] - self.leading)
        return self._features(hidden, (side, side))

    def pool(self, features: Features) -> Tensor:
        """The class token and the mean of the patch grid (B, 2 D)."""
        return torch.cat([features[0].flatten(1), features[-1].mean(dim=(2, 3))], dim=1)

    def _geometry(self, decoder_channels: tuple[int, ...]) -> Geometry:
        config = self.encoder.config
        width, patch = config.hidden_size, config.patch_size
        return Geometry(
            channels=(width, width),
            strides=(0, patch),
            decoder_channels=decoder_channels,
            pooled=2 * width,
            blocks=config.num_hidden_layers,
            width=width,
            heads=config.num_attention_heads,
            multiple=patch,
        )

    def _embed(self, images: Tensor) -> Tensor:
        """Images to the hidden state (B, N, D) in front of the first block."""
        embedded: Tensor = self.encoder.embeddings(images, interpolate_pos_encoding=True)
        return embedded

    def _blocks(self) -> list[Block]:
        return [_block(layer) for layer in self.encoder.layers]

    def _features(self, hidden: Tensor, grid: tuple[int, int]) -> Features:
        normed = self.encoder.layernorm(hidden)
        patches = normed[:, self.leading :].transpose(1, 2).unflatten(2, grid)
        return normed[:, 0, :, None, None], patches


def _block(layer: Encoder) -> Block:
    attention = layer.attention
    return Block(
        own=partial(layer, attention_mask=None),
        norm_attention=layer.layernorm_before,
        query=attention.q_proj,
        key=attention.k_proj,
        value=attention.v_proj,
        out=attention.o_proj,
        norm_mlp=layer.layernorm_after,
        mlp=layer.mlp,
        heads=attention.num_attention_heads,
        scale=attention.scaling,
    )
