"""Frozen DINOv2 encoders (Oquab et al., TMLR 2024) and their descendants, from `transformers`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from fedprompt.backbones.attention import Block
from fedprompt.backbones.base import Preprocessing
from fedprompt.backbones.hub import Encoder
from fedprompt.backbones.vit import ViT

__all__ = ["DINOv2"]


class DINOv2(ViT):
    """DINOv2 with or without registers, RAD-DINO: a Vision Transformer with LayerScale.

    Registers (Darcet et al., ICLR 2024) run through the blocks and are in no feature.
    """

    name: ClassVar[str] = "dinov2"
    model_types: ClassVar[tuple[str, ...]] = ("dinov2", "dinov2_with_registers")
    model_class: ClassVar[str] = "AutoModel"  # each of the two types has its own class
    load_options: ClassVar[Mapping[str, Any]] = {}
    unused: ClassVar[tuple[str, ...]] = ("embeddings.mask_token",)  # for self-supervised training
    usual: ClassVar[Preprocessing] = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224)

    @property
    def leading(self) -> int:
        return 1 + getattr(self.encoder.config, "num_register_tokens", 0)

    def _embed(self, images: Tensor) -> Tensor:
        embedded: Tensor = self.encoder.embeddings(images)
        return embedded

    def _blocks(self) -> list[Block]:
        return [_block(layer) for layer in self.encoder.encoder.layer]


def _block(layer: Encoder) -> Block:
    attention = layer.attention
    return Block(
        own=partial(layer, attention_mask=None),
        norm_attention=layer.norm1,
        query=attention.q_proj,
        key=attention.k_proj,
        value=attention.v_proj,
        out=attention.o_proj,
        norm_mlp=layer.norm2,
        mlp=layer.mlp,
        heads=attention.num_attention_heads,
        scale=attention.scaling,
        scale_attention=layer.layer_scale1,
        scale_mlp=layer.layer_scale2,
    )
