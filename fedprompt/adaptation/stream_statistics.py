"""Statistics of a stream of images against those of the source: how far it is shifted, and how sure that is.

Images of one hospital differ from each other, also where nothing is shifted. So what the mean over a stream
says about a shift is weighed against how much its images vary: after n images that vary with variance V the
mean is known to V / n. The weight is the empirical-Bayes one (James and Stein, 1961), and there is nothing to
tune to a data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedprompt.adaptation.alignment import living
from fedprompt.adaptation.layers import Moments
from fedprompt.adaptation.statistics import Source
from fedprompt.manifest import Arrays

__all__ = ["StreamStatistics"]

_NAMES = {"mean", "within", "log", "mean_spread", "log_spread"}
_PRIOR = 4  # images that the spread between images of the source counts for


@dataclass(eq=False)
class StreamStatistics:
    """Running statistics of one layer over the images of a stream.

    Args:
        source: Of the layer.
        horizon: Images that the running means reach back.
        caution: A shift counts from this many times the variance of the stream's mean on.
    """

    source: Source
    horizon: int = 64
    caution: float = 2.0
    images: int = 0
    _values: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        source, alive = self.source, living(self.source)
        self._alive = alive / alive.sum()
        self._moves = alive > 0
        self._floor = 1e-3 * source.variance + 1e-12
        self._variance = source.variance.clamp(min=1e-12)
        self._assumed = _PRIOR * source.between.clamp(min=1e-12)
        self._assumed_logs = _PRIOR * source.between_logs.clamp(min=1e-3)

    def add(self, image: Moments) -> None:
        """Takes in the statistics (C,) of one more image."""
        self.images += 1
        rate = 1 / min(self.images, self.horizon)
        logarithm = self._log(image)
        if not self._values:
            zeros = torch.zeros_like(image.mean)
            self._values = {
                "mean": image.mean.clone(),
                "within": image.variance.clone(),
                "log": logarithm,
                "mean_spread": zeros,
                "log_spread": zeros.clone(),
            }
            return
        kept = self._values
        for name, value in (("mean", image.mean), ("log", logarithm)):
            step = value - kept[name]
            kept[name] = kept[name] + rate * step
            spread = f"{name}_spread"  # a running mean of squares about the running mean
            kept[spread] = (1 - rate) * (kept[spread] + rate * step.square())
        kept["within"] = kept["within"] + rate * (image.variance - kept["within"])

    def blended(self) -> Moments:
        """Statistics to normalise with: the source's, moved to the stream's as far as that is no accident."""
        weight, source = self.weight(), self.source
        if weight == 0.0:
            return Moments(source.mean, source.variance)
        grown = (self._total() / self._variance).clamp(1e-4, 1e4)
        return Moments(
            source.mean + weight * (self._values["mean"] - source.mean),
            source.variance * torch.where(self._moves, grown, 1.0) ** weight,
        )

    def weight(self) -> float:
        """Share of what the stream says about its mean that is no accident, 0 to 1."""
        if not self.images:
            return 0.0
        distance = (self._values["mean"] - self.source.mean).square() / self._between()
        excess = max(0.0, self._mean(distance) - self.caution / self._count)
        return excess / (excess + 1 / self._count)

    def shift(self) -> float:
        """Squared shift of mean and log-variance in units of the variance between images; 0 in the source.

        About 1 where the stream's mean lies as far away as single images do.
        """
        if not self.images:
            return 0.0
        mean = (self._values["mean"] - self.source.mean).square() / self._between()
        log = (self._total().log() - (self.source.variance + 1e-12).log()).square() / self._between_logs()
        parts = (self._mean(value) - self.caution / self._count for value in (mean, log))
        return sum(max(0.0, part) for part in parts)

    def distance(self, recent: Sequence[Moments]) -> float:
        """Squared distance of three or more images from the stream, in units as `shift`; 0 by chance."""
        count = len(recent)
        mean = _middle([image.mean for image in recent]) - self._values["mean"]
        logs = _middle([self._log(image) for image in recent]) - self._values["log"]
        chance = self.caution * (1 / count + 1 / self._count)
        parts = (
            self._mean(mean.square() / self._between()) - chance,
            self._mean(logs.square() / self._between_logs()) - chance,
        )
        return sum(max(0.0, part) for part in parts)

    def arrays(self) -> Arrays:
        """What `restore` takes."""
        return {name: value.cpu().numpy() for name, value in self._values.items()}

    def restore(self, images: int, arrays: Arrays, device: torch.device) -> None:
        """Goes on from what `arrays` gave after `images` images; raises `ValueError` for anything else."""
        if set(arrays) != (_NAMES if images else set()):
            raise ValueError(f"expected {sorted(_NAMES)} of a layer, got {sorted(arrays)}")
        self.images = images
        self._values = {name: torch.from_numpy(array.copy()).to(device) for name, array in arrays.items()}

    @property
    def _count(self) -> int:
        return min(self.images, self.horizon)

    def _total(self) -> Tensor:
        """Variance over all positions of all images: within them and between their means."""
        return self._values["within"] + self._values["mean_spread"] + 1e-12

    def _between(self) -> Tensor:
        """Variance of the mean between images (C,)."""
        return (self._count * self._values["mean_spread"] + self._assumed) / (self._count - 1 + _PRIOR)

    def _between_logs(self) -> Tensor:
        return (self._count * self._values["log_spread"] + self._assumed_logs) / (self._count - 1 + _PRIOR)

    def _log(self, image: Moments) -> Tensor:
        """Logarithm of an image's variance, with a floor: a channel may be constant over an image."""
        return (image.variance + self._floor).log()

    def _mean(self, values: Tensor) -> float:
        return float(torch.dot(values, self._alive))


def _middle(values: Sequence[Tensor]) -> Tensor:
    """Mean without the smallest and the largest value of every channel: one odd image is no new domain."""
    return torch.stack(list(values)).sort(dim=0).values[1:-1].mean(dim=0)
