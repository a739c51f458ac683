"""Box annotation: what a tight box around every object tells about its pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fedprompt.data.images import UNLABELLED

__all__ = ["draw_boxes"]

_CORE = 0.6  # share of the inscribed ellipse that counts as the object
_RING = 0.7  # the same for what lies between the inscribed ellipses of an outer and an inner object
_MARGIN = 1.08  # an inner object is taken to end within this multiple of its inscribed ellipse


@dataclass(frozen=True)
class _Box:
    value: int
    rows: slice
    columns: slice

    @property
    def area(self) -> int:
        return int((self.rows.stop - self.rows.start) * (self.columns.stop - self.columns.start))

    def holds(self, other: _Box) -> bool:
        """Whether an object of another class lies inside, as the cup does in the rim's box."""
        return (
            self.value != other.value
            and self.area > other.area
            and self.rows.start <= other.rows.start
            and self.rows.stop >= other.rows.stop
            and self.columns.start <= other.columns.start
            and self.columns.stop >= other.columns.stop
        )


def draw_boxes(mask: np.ndarray) -> np.ndarray:
    """Labels pixels from the tight boxes of all connected objects alone.

    Outside of all boxes is background, which is always right. Inside, the core of the inscribed ellipse is
    the object's class and the ring around it stays unlabelled. A box that holds a smaller object of another
    class (rim around cup) is labelled between the two inscribed ellipses instead, with unlabelled margins on
    both sides, so that the inner object is never labelled as the outer one where both are ellipses.

    Args:
        mask: uint8 (H, W) of class numbers; 255 counts as no object.

    Returns:
        uint8 (H, W): class numbers, 255 where a box leaves the class open.
    """
    drawn = np.zeros_like(mask)
    boxes = _tight_boxes(mask)
    for box in boxes:
        drawn[box.rows, box.columns] = UNLABELLED
    for box in boxes:
        distance = _elliptic_distance(box, mask.shape)
        foreign = (drawn != 0) & (drawn != box.value)
        drawn[foreign & (distance <= _MARGIN)] = UNLABELLED
        inner = max((np.sqrt(other.area / box.area) for other in boxes if box.holds(other)), default=0.0)
        core = _CORE if inner == 0 else max(_CORE, inner + _RING * (1 - inner))
        drawn[distance <= max(core, distance.min())] = box.value
    return drawn


def _tight_boxes(mask: np.ndarray) -> list[_Box]:
    """Boxes of all connected objects, large ones first, so that inner objects are drawn over outer ones."""
    boxes = []
    for value in np.unique(mask[(mask != 0) & (mask != UNLABELLED)]):
        objects, _ = ndimage.label(mask == value, structure=np.ones((3, 3)))
        boxes += [_Box(int(value), rows, columns) for rows, columns in ndimage.find_objects(objects)]
    return sorted(boxes, key=lambda box: -box.area)


def _elliptic_distance(box: _Box, shape: tuple[int, ...]) -> np.ndarray:
    """(H, W) distance from the box's centre, 1 on the ellipse inscribed in the box."""
    squares = []
    for side, length in zip((box.rows, box.columns), shape, strict=True):
        half = (side.stop - side.start) / 2
        squares.append(((np.arange(length) + 0.5 - side.start - half) / half) ** 2)
    distance: np.ndarray = np.sqrt(np.add.outer(squares[0], squares[1]))
    return distance
