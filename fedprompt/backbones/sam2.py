"""Segment Anything 2 (Ravi et al., ICLR 2025) for single images, from `transformers`: no memory, no video."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fedprompt.backbones.base import Features, Geometry
from fedprompt.backbones.segment_anything import SegmentAnything

__all__ = ["SAM2"]


class SAM2(SegmentAnything):
    """A Hiera encoder with a feature pyramid, and the mask decoder of `SegmentAnything`.

    `encode` gives the two high-resolution features that the mask decoder adds while it upsamples (strides 4
    and 8) and the image embedding (stride 16). Width and resolution change between its blocks, so it takes no
    tokens.
    """

    name = "sam2"
    model_types = (
        "sam2",
        "sam2_video",
    )  # the published folders name the video model, of which this is a part
    model_class = "Sam2Model"

    def _geometry(self, decoder_channels: tuple[int, ...]) -> Geometry:
        width = self.encoder.mask_decoder.hidden_size
        stride = self.side // self.encoder.prompt_encoder.image_embedding_size[0]
        return Geometry(
            channels=(width // 8, width // 4, width),
            strides=(stride // 4, stride // 2, stride),
            decoder_channels=decoder_channels,
            pooled=width,
            multiple=self.side,
        )

    def encode(self, images: Tensor, stop: int | None = None) -> Features:
        if stop is not None:
            raise NotImplementedError(f"{self.name} takes no tokens")
        decoder = self.encoder.mask_decoder
        fine, middle, deep = self.encoder.vision_encoder(images).fpn_hidden_states
        no_memory = self.encoder.no_memory_embedding.view(1, -1, 1, 1)
        return decoder.conv_s0(fine), decoder.conv_s1(middle), deep + no_memory

    def _decoder_inputs(self, features: Features, classes: int) -> dict[str, Any]:
        return {"high_resolution_features": [f.repeat_interleave(classes, dim=0) for f in features[:-1]]}
