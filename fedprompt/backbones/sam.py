"""Segment Anything (ICCV 2023) from `transformers`, and MedSAM, which has its architecture."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fedprompt.backbones.attention import Tokens, run_blocks
from fedprompt.backbones.base import Features, Geometry
from fedprompt.backbones.sam_attention import SamBlock
from fedprompt.backbones.segment_anything import SegmentAnything

__all__ = ["SAM"]


class SAM(SegmentAnything):
    """A vision transformer with windowed and global blocks, and the mask decoder of `SegmentAnything`.

    `encode` gives the image embedding (B, 256, 64, 64), or with `stop` the hidden state (B, 64, 64, D) in
    front of a block. Tokens may enter any block.
    """

    name = "sam"
    model_types = ("sam",)
    model_class = "SamModel"

    def _geometry(self, decoder_channels: tuple[int, ...]) -> Geometry:
        vision = self.encoder.config.vision_config
        return Geometry(
            channels=(vision.output_channels,),
            strides=(vision.patch_size,),
            decoder_channels=decoder_channels,
            pooled=vision.output_channels,
            blocks=vision.num_hidden_layers,
            width=vision.hidden_size,
            heads=vision.num_attention_heads,
            multiple=self.side,
        )

    def encode(self, images: Tensor, stop: int | None = None) -> Features:
        vision = self.encoder.vision_encoder
        hidden = vision.patch_embed(images)
        if vision.pos_embed is not None:
            hidden = hidden + vision.pos_embed
        hidden = run_blocks(self._blocks()[:stop], hidden)
        return (vision.neck(hidden),) if stop is None else (hidden,)

    def resume(self, state: Features, start: int, tokens: Tokens | None = None) -> Features:
        hidden = run_blocks(self._blocks(), state[0], start, tokens)
        return (self.encoder.vision_encoder.neck(hidden),)

    def _blocks(self) -> list[Any]:
        return [SamBlock(layer) for layer in self.encoder.vision_encoder.layers]
