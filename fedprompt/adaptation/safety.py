"""Label-free safety: is one adapted prediction sane, and is adaptation good for this stream at all?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CertaintyGate", "certainty", "entropy", "foreground", "most_probable", "objection"]

_ENTROPY_FACTOR = 2.0
_ENTROPY_SLACK = 0.1  # of the entropy of even odds
_FLOOD = 0.9  # of the pixels
_HORIZON = 64  # images that the running mean of certainty reaches back
_NEUTRAL = 0.75  # certainty of an empty prediction
_EVIDENCE = 0.15  # sum of certainty lost from which on adaptation stops
_SPECK = 0.001  # of the pixels: less may well be noise


def entropy(probabilities: Tensor) -> Tensor:
    """Mean entropy per image (B,) of (B, classes, H, W), as a share of that of even odds, 0 to 1."""
    logs = probabilities.clamp(min=1e-12).log()
    return -(probabilities * logs).sum(dim=1).mean(dim=(1, 2)) / math.log(probabilities.shape[1])


def foreground(probabilities: Tensor) -> Tensor:
    """Share (B,) of the pixels whose most probable class is not the background."""
    return (most_probable(probabilities)[0] > 0).float().mean(dim=(1, 2))


def most_probable(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable class (B, H, W) of (B, classes, H, W), the first of equals, and its probability.

    As `max`, which on a CPU takes as long as a small network's forward when the classes do not lie last.
    """
    highest = probabilities[:, 0]
    chosen = torch.zeros_like(highest, dtype=torch.uint8)
    for number in range(1, probabilities.shape[1]):
        above = probabilities[:, number] > highest
        chosen = chosen.masked_fill(above, number)
        highest = torch.maximum(highest, probabilities[:, number])
    return chosen, highest


def certainty(probabilities: Tensor) -> float | None:
    """Mean probability of the chosen class over the foreground of (1, classes, H, W); None without any.

    Entropy over the whole image does not tell a good prediction from one that has collapsed to background;
    how sure a network is of what it does call foreground does.
    """
    chosen, highest = most_probable(probabilities)
    found = chosen > 0
    return float(highest[found].mean()) if bool(found.any()) else None


@dataclass
class CertaintyGate:
    """Whether adaptation makes the network surer of its foreground, over the images of a stream.

    One image says little, so the difference is averaged over the stream, and adaptation goes on until enough
    speaks against it. A prediction without foreground is neither sure nor unsure: there adaptation gains by a
    foreground that is surely there, and loses by one that is not.

    Attributes:
        images: That had a foreground, with adaptation or without.
        gain: Running mean of the certainty with adaptation minus that without.
    """

    images: int = 0
    gain: float = 0.0

    def add(self, plain: Tensor, adapted: Tensor) -> bool:
        """Takes in one image's probabilities (1, classes, H, W) both ways; True where one may go on."""
        before, after = certainty(plain), certainty(adapted)
        if before != after and (after is None or math.isfinite(after)):
            gain = (_NEUTRAL if after is None else after) - (_NEUTRAL if before is None else before)
            self.images += 1
            self.gain += (gain - self.gain) / min(self.images, _HORIZON)
        return self.gain * min(self.images, _HORIZON) >= -_EVIDENCE


def objection(plain: Tensor, found: Tensor) -> str:
    """Why an adapted prediction must not be reported; empty where nothing speaks against it.

    Args:
        plain: Probabilities (1, classes, H, W) of the frozen network.
        found: Those with adaptation.
    """
    if not bool(torch.isfinite(found).all()):
        return "the adapted prediction is not finite"
    before, after = float(entropy(plain)), float(entropy(found))
    if after > _ENTROPY_FACTOR * before + _ENTROPY_SLACK:
        return f"the prediction's entropy rises from {before:.2f} to {after:.2f}"
    was, now = float(foreground(plain)), float(foreground(found))
    if now > _FLOOD > was:
        return f"the foreground floods the image, from {was:.0%} to {now:.0%}"
    if now == 0 and was >= _SPECK and after >= before:
        return f"the foreground vanishes, from {was:.1%}, without more certainty"
    return ""
