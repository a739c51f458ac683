"""Panels of a case: its image and masks over it side by side, in colour-blind safe colours."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fedprompt.artifacts import write_atomic

__all__ = ["TILES", "class_colours", "mask_panel", "write_picture"]

TILES = ("image", "annotation", "prediction", "truth")
UNLABELLED = 255
TILE = 256  # longer side of a tile in pixels
GAP = 8
FILL = 0.35  # opacity of a class area
DIMMED = 0.45  # brightness of what the annotation leaves unlabelled

# Okabe and Ito's palette, ordered for contrast on tissue: sky blue, yellow, bluish green, vermilion, ...
_PALETTE = ("#56b4e9", "#f0e442", "#009e73", "#d55e00", "#cc79a7", "#0072b2", "#e69f00", "#999999")
_BACKGROUND = "#ffffff"  # labelled as background in a sparse annotation


def class_colours(classes: Sequence[str]) -> dict[str, str]:
    """Hexadecimal colour of every class, background first; colours repeat after eight foreground classes."""
    colours = [_BACKGROUND] + [_PALETTE[i % len(_PALETTE)] for i in range(len(classes) - 1)]
    return dict(zip(classes, colours, strict=True))


def write_picture(
    path: Path,
    image: np.ndarray,
    annotation: np.ndarray,
    prediction: np.ndarray,
    truth: np.ndarray,
    classes: Sequence[str],
) -> None:
    """Writes one panel of four tiles, transparent between them. Equal arguments give equal bytes.

    Args:
        path: Target PNG, written atomically.
        image: (H, W, 3) in 0 to 1; gives the tiles' shape.
        annotation: (h, w) class numbers, 255 unlabelled: what training sees.
        prediction: (h, w) class numbers.
        truth: (h, w) class numbers, 255 unlabelled. Each map may have a resolution of its own.
        classes: Names, background first.

    Raises:
        ValueError: An array has another number of dimensions.
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image: expected (H, W, 3), got {image.shape}")
    for name, labels in (("annotation", annotation), ("prediction", prediction), ("truth", truth)):
        if labels.ndim != 2:
            raise ValueError(f"{name}: expected (H, W), got {labels.shape}")
    base = _base(image)
    colours = [_rgb(colour) for colour in class_colours(classes).values()]
    tiles = [
        base,
        _annotated(base, annotation, colours),
        _outlined(base, prediction, colours),
        _outlined(base, truth, colours),
    ]
    buffer = io.BytesIO()
    _joined(tiles).save(buffer, "PNG", compress_level=4)
    write_atomic(path, buffer.getvalue(), durable=False)


def mask_panel(image: np.ndarray, masks: Sequence[np.ndarray], classes: Sequence[str]) -> Image.Image:
    """A panel of the image as it is and then with each of the masks over it, transparent between them.

    Args:
        image: (H, W, 3) in 0 to 1; gives the tiles' shape.
        masks: (h, w) class numbers, 255 unlabelled; each may have a resolution of its own.
        classes: Names, background first.
    """
    base = _base(image)
    colours = [_rgb(colour) for colour in class_colours(classes).values()]
    return _joined([base, *(_outlined(base, mask, colours) for mask in masks)])


def _joined(tiles: Sequence[np.ndarray]) -> Image.Image:
    """Tiles (height, width, 3) side by side."""
    height, width = tiles[0].shape[:2]
    panel = np.zeros((height, len(tiles) * width + (len(tiles) - 1) * GAP, 4), np.uint8)
    for position, tile in enumerate(tiles):
        left = position * (width + GAP)
        panel[:, left : left + width, :3] = np.rint(tile * 255).astype(np.uint8)
        panel[:, left : left + width, 3] = 255
    return Image.fromarray(panel)


def _base(image: np.ndarray) -> np.ndarray:
    """The image as large as a tile."""
    scale = TILE / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return _resized_image(image, height, width)


def _rgb(colour: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(colour[1:]), np.uint8).astype(np.float32) / 255


def _resized_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    pixels = Image.fromarray(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8))
    return np.asarray(pixels.resize((width, height), Image.Resampling.LANCZOS), np.float32) / 255


def _coverage(labels: np.ndarray, number: int, height: int, width: int) -> np.ndarray:
    """Share (height, width) of every tile pixel that has the class: thin strokes fade, they do not vanish."""
    share = Image.fromarray((labels == number).astype(np.float32))
    shrinks = height <= labels.shape[0] and width <= labels.shape[1]
    kind = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    resized: np.ndarray = np.asarray(share.resize((width, height), kind))
    return resized.clip(0, 1)


def _annotated(base: np.ndarray, annotation: np.ndarray, colours: list[np.ndarray]) -> np.ndarray:
    """What training sees: labelled pixels in their colour, the rest of the image dimmed."""
    if not (annotation == UNLABELLED).any():
        return _outlined(base, annotation, colours)
    height, width = base.shape[:2]
    labelled = 1 - _coverage(annotation, UNLABELLED, height, width)[..., None]
    tile = base * (DIMMED + (1 - DIMMED) * labelled)
    sparse = np.mean(annotation != UNLABELLED) < 0.2  # strokes and points need full colour to be seen
    for number, colour in enumerate(colours):
        share = _coverage(annotation, number, height, width)[..., None]
        if sparse:
            share = np.clip(3 * share, 0, 1)
        opacity = 0.95 if sparse else 0.15 if number == 0 else FILL
        tile = tile + (colour - tile) * share * opacity
    return tile


def _outlined(base: np.ndarray, labels: np.ndarray, colours: list[np.ndarray]) -> np.ndarray:
    """Foreground classes as translucent areas with a contour two pixels wide."""
    height, width = base.shape[:2]
    tile = base
    for number, colour in list(enumerate(colours))[1:]:
        share = _coverage(labels, number, height, width)
        inside = share >= 0.5
        tile = tile + (colour - tile) * (FILL * share)[..., None]
        tile = np.where((inside & ~_eroded(inside))[..., None], colour, tile)
    return tile


def _eroded(inside: np.ndarray) -> np.ndarray:
    """The mask without its outermost two pixels; beyond the picture counts as inside."""
    for _ in range(2):
        padded = np.pad(inside, 1, mode="edge")
        inside = inside & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside
