"""BatchNorm mixing without a prompt: normalise with a mixture of the source's and the image's statistics.

With the warm-up of VPTTA (Chen et al., CVPR 2024): the image's share falls as 1 / (sqrt(j) / 5 + 1) with the
number j of images seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedprompt.adaptation.layers import Blend, Moments
from fedprompt.adaptation.methods.base import Method, Outcome, source_of
from fedprompt.adaptation.network import Network
from fedprompt.adaptation.statistics import SourceStatistics
from fedprompt.manifest import Arrays

__all__ = ["BatchNormMixing", "mixing", "share_of_image"]

_WARM_UP = 5


def share_of_image(images: int) -> float:
    """Share of the image's own statistics at the `images`-th image of a stream, from 1 on."""
    return 1 / (math.sqrt(images) / _WARM_UP + 1)


def mixing(share: float) -> Blend:
    """A blend with a fixed share of the image's statistics."""

    def blend(name: str, source: Moments, image: Moments) -> Moments:  # noqa: ARG001 - the same everywhere
        return Moments(*(share * own + (1 - share) * kept for kept, own in zip(source, image, strict=True)))

    return blend


class BatchNormMixing(Method):
    """Needs BatchNorm layers."""

    name: ClassVar[str] = "batch-norm"

    def __init__(self, network: Network, statistics: SourceStatistics | None) -> None:
        super().__init__(network, statistics)
        source_of(self, collected=False)
        self._images = 0

    def adapt(self, images: Tensor) -> Outcome:
        self._images += 1
        with torch.inference_mode():
            blend = mixing(share_of_image(self._images))
            logits = self.watched(self.network.normalised(images), blend=blend)
            return Outcome(self.network.probabilities(logits), None, accepted=True)

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        return {}, {"images": self._images}

    def restore(self, arrays: Arrays, metadata: Mapping[str, Any]) -> None:  # noqa: ARG002 - it has none
        self._images = int(metadata["images"])
