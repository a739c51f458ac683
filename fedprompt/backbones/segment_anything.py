"""What the Segment Anything family has in common: a promptable mask decoder, one mask per class.

The decoder makes a mask from an image embedding, sparse tokens and a dense embedding. Here each foreground
class has its own learned set of both. Its tokens start as the embeddings of foreground points on a regular
grid, so that the untrained model is exactly the frozen network clicked at these points.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fedprompt.backbones.base import Features, Preprocessing
from fedprompt.backbones.hub import Encoder, HubBackbone
from fedprompt.errors import ConfigurationError

__all__ = ["Points", "SegmentAnything"]

Points = tuple[Tensor, Tensor]

_DECODER_SCALE = 4  # the mask decoder doubles the resolution of the image embedding twice


class SegmentAnything(HubBackbone):
    """Image encoder, prompt encoder and mask decoder, all frozen.

    It takes images of its native size only. It has neither a `head` nor a number of classes: `decode_masks`
    makes as many masks as it gets sets of prompts.

    Args:
        encoder: The whole network as transformers loads it.
        preprocessing: Of its images; the size is always the network's own.
        classes: Not used: the mask decoder serves any number of classes.
    """

    usual = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), size=1024)
    decoder_widths: ClassVar[tuple[int, ...]] = ()

    def __init__(self, encoder: Encoder, preprocessing: Preprocessing, classes: int | None = None) -> None:  # noqa: ARG002
        super().__init__(encoder, replace(preprocessing, size=encoder.prompt_encoder.input_image_size))

    @property
    def side(self) -> int:
        """Side in pixels of the images that the network takes."""
        return self.preprocessing.size

    def config(self) -> dict[str, object]:
        return {}

    def check_size(self, side: int) -> None:
        if side != self.side:
            raise ConfigurationError(
                f"image.size: backbone {self.name} expected {self.side}, the only size it takes, got {side}"
            )

    def mask_size(self) -> tuple[int, int]:
        """Height and width of what `decode_masks` gives."""
        height, width = self.encoder.prompt_encoder.image_embedding_size
        return _DECODER_SCALE * height, _DECODER_SCALE * width

    def start_points(self, count: int) -> Tensor:
        """Where the tokens of a class start (count, 2): x, y in pixels, evenly over the image, row by row."""
        rows = round(count**0.5)
        places = []
        for row in range(rows):
            columns = count // rows + (row < count % rows)
            places += [((column + 0.5) / columns, (row + 0.5) / rows) for column in range(columns)]
        return self.side * torch.tensor(places) - 0.5  # the library counts from the centres of pixels

    def decode_masks(
        self,
        features: Features,
        sparse: Tensor,
        dense: Tensor,
        *,
        points: Points | None = None,
        boxes: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, K + 1, 4h, 4w) of the background, which is 0, and K foreground classes.

        Args:
            features: What `encode` gave; the last one may be prompted.
            sparse: Learned offsets (K, P, C) to the embeddings of the P start points. With zeros here and in
                `dense` a class's logits are what the frozen network answers to these points.
            dense: Learned offset (K, C, g, g) to the embedding of "no mask", resized to (h, w).
            points: A user's clicks: x, y in pixels (B, K, Q, 2) and labels (B, K, Q): 1 inside of the class,
                0 outside, -1 no click. They join the learned tokens of their class.
            boxes: A user's boxes (B, K, 4): left, top, right, bottom in pixels; NaN where there is none.

        Raises:
            ConfigurationError: Points or boxes of another shape or outside of the image.
        """
        embedding, classes = features[-1], len(sparse)
        tokens, no_mask = self._embedded(len(embedding), sparse, points, boxes)
        offset = F.interpolate(dense, size=embedding.shape[-2:], mode="bilinear", align_corners=False)
        # The library offers a dimension for several masks of one image, but all of them share one dense
        # embedding; so the classes go into the batch, where that dimension ends up as well.
        masks: Tensor = self.encoder.mask_decoder(
            image_embeddings=embedding.repeat_interleave(classes, dim=0),
            image_positional_embeddings=self.encoder.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=tokens.flatten(0, 1)[:, None],
            dense_prompt_embeddings=(no_mask + offset).repeat(len(embedding), 1, 1, 1),
            multimask_output=False,
            **self._decoder_inputs(features, classes),
        )[0]
        foreground = masks.view(len(embedding), classes, *masks.shape[-2:])
        return torch.cat([torch.zeros_like(foreground[:, :1]), foreground], dim=1)

    def _decoder_inputs(self, features: Features, classes: int) -> dict[str, Any]:  # noqa: ARG002
        """What else the mask decoder reads, repeated per class."""
        return {}

    def _embedded(
        self, images: int, sparse: Tensor, points: Points | None, boxes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B, K, T, C) of all classes, and the embedding of "no mask" (1, C, h, w)."""
        classes, count, _ = sparse.shape
        places = self.start_points(count).to(sparse.device).expand(images, classes, -1, -1)
        labels = torch.ones(images, classes, count, dtype=torch.long, device=sparse.device)
        if points is not None:
            given, kinds = self._checked_points(points, images, classes)
            places = torch.cat([places, given.to(places)], dim=2)
            labels = torch.cat([labels, kinds.to(labels)], dim=2)
        absent = None
        if boxes is not None:
            boxes = self._checked_boxes(boxes, images, classes).to(places)
            absent = boxes.isnan().any(dim=-1)
            boxes = boxes.nan_to_num(0)
        tokens, no_mask = self.encoder.prompt_encoder(places, labels, boxes, None)
        tokens = torch.cat([tokens[:, :, :count] + sparse, tokens[:, :, count:]], dim=2)
        if absent is not None:
            instead = self.encoder.prompt_encoder.not_a_point_embed.weight
            corner = torch.arange(tokens.shape[2], device=tokens.device) >= places.shape[2]
            tokens = torch.where((absent[..., None] & corner)[..., None], instead, tokens)
        return tokens, no_mask[:1]

    def _checked_points(self, points: Points, images: int, classes: int) -> Points:
        places, labels = points
        if places.ndim != 4 or places.shape[:2] != (images, classes) or places.shape[3] != 2:
            raise ConfigurationError(
                f"points: expected x, y of shape ({images} images, {classes} classes, points, 2), "
                f"got {tuple(places.shape)}"
            )
        if labels.shape != places.shape[:3]:
            raise ConfigurationError(
                f"points: expected labels of shape {tuple(places.shape[:3])}, got {tuple(labels.shape)}"
            )
        if not torch.isin(labels, torch.tensor([-1, 0, 1], device=labels.device)).all():
            raise ConfigurationError(
                "points: expected labels 1 (inside), 0 (outside) or -1 (none), got others"
            )
        clicks = places[labels >= 0]
        outside = clicks[~self._inside(clicks).all(dim=-1)]
        if len(outside):
            x, y = outside[0].tolist()
            raise ConfigurationError(
                f"points: expected x and y from 0 to {self.side} (pixels of the image), got ({x:g}, {y:g})"
            )
        return places, labels

    def _checked_boxes(self, boxes: Tensor, images: int, classes: int) -> Tensor:
        if boxes.shape != (images, classes, 4):
            raise ConfigurationError(
                f"boxes: expected left, top, right, bottom of shape ({images} images, {classes} classes, 4), "
                f"got {tuple(boxes.shape)}"
            )
        given = boxes[~boxes.isnan().any(dim=-1)]
        good = self._inside(given).all(dim=-1) & (given[:, :2] < given[:, 2:]).all(dim=-1)
        if not good.all():
            found = ", ".join(f"{value:g}" for value in given[~good][0].tolist())
            raise ConfigurationError(
                f"boxes: expected left < right and top < bottom from 0 to {self.side} (pixels of the image), "
                f"got ({found})"
            )
        return boxes

    def _inside(self, coordinates: Tensor) -> Tensor:
        return (coordinates >= 0) & (coordinates <= self.side)
