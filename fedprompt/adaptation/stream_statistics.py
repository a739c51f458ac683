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

_PRIOR = 4  # images that the spread between images of the source counts for


@dataclass(eq=False)
class StreamStatistics:
    """Running statistics of one layer over the images of a stream.

    Args:
        horizon: Images that the running means reach back.
        caution: A shift counts from this many times the variance of the stream's mean on.
    """

    horizon: int = 64
    caution: float = 2.0
    images: int = 0
    _values: dict[str, Tensor] = field(default_factory=dict)

    def add(self, source: Source, image: Moments) -> None:
        """Takes in the statistics (C,) of one more image."""
        self.images += 1
        rate = 1 / min(self.images, self.horizon)
        logarithm = _log(source, image)
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

    def blended(self, source: Source) -> Moments:
        """Statistics to normalise with: the source's, moved to the stream's as far as that is no accident."""
        weight = self.weight(source)
        if weight == 0.0:
            return Moments(source.mean, source.variance)
        grown = (self._total() / source.variance.clamp(min=1e-12)).clamp(1e-4, 1e4)
        return Moments(
            source.mean + weight * (self._values["mean"] - source.mean),
            source.variance * torch.where(living(source) > 0, grown, 1.0) ** weight,
        )

    def weight(self, source: Source) -> float:
        """Share of what the stream says about its mean that is no accident, 0 to 1."""
        if not self.images:
            return 0.0
        distance = (self._values["mean"] - source.mean).square() / self._between(source)
        excess = max(0.0, _mean(distance, living(source)) - self.caution / self._count)
        return excess / (excess + 1 / self._count)

    def shift(self, source: Source) -> float:
        """Squared shift of mean and log-variance in units of the variance between images; 0 in the source.

        About 1 where the stream's mean lies as far away as single images do.
        """
        if not self.images:
            return 0.0
        alive = living(source)
        mean = (self._values["mean"] - source.mean).square() / self._between(source)
        log = (self._total().log() - (source.variance + 1e-12).log()).square() / self._between_logs(source)
        parts = (_mean(value, alive) - self.caution / self._count for value in (mean, log))
        return sum(max(0.0, part) for part in parts)

    def distance(self, source: Source, recent: Sequence[Moments]) -> float:
        """Squared distance of the mean of some images from the stream's, in units as `shift`; 0 by chance."""
        alive, count = living(source), len(recent)
        mean = torch.stack([image.mean for image in recent]).mean(0) - self._values["mean"]
        logs = torch.stack([_log(source, image) for image in recent]).mean(0) - self._values["log"]
        chance = self.caution * (1 / count + 1 / self._count)
        parts = (
            _mean(mean.square() / self._between(source), alive) - chance,
            _mean(logs.square() / self._between_logs(source), alive) - chance,
        )
        return sum(max(0.0, part) for part in parts)

    def arrays(self) -> Arrays:
        """What `restore` takes."""
        return {name: value.cpu().numpy() for name, value in self._values.items()}

    def restore(self, images: int, arrays: Arrays, device: torch.device) -> None:
        """Goes on from what `arrays` gave after `images` images."""
        self.images = images
        self._values = {name: torch.from_numpy(array.copy()).to(device) for name, array in arrays.items()}

    @property
    def _count(self) -> int:
        return min(self.images, self.horizon)

    def _total(self) -> Tensor:
        """Variance over all positions of all images: within them and between their means."""
        return self._values["within"] + self._values["mean_spread"] + 1e-12

    def _between(self, source: Source) -> Tensor:
        """Variance of the mean between images (C,)."""
        seen = self._count * self._values["mean_spread"]
        return (seen + _PRIOR * source.between.clamp(min=1e-12)) / (self._count - 1 + _PRIOR)

    def _between_logs(self, source: Source) -> Tensor:
        seen = self._count * self._values["log_spread"]
        return (seen + _PRIOR * source.between_logs.clamp(min=1e-3)) / (self._count - 1 + _PRIOR)


def _log(source: Source, image: Moments) -> Tensor:
    """Logarithm of an image's variance, with a floor: a channel may be constant over an image."""
    return (image.variance + 1e-3 * source.variance + 1e-12).log()


def _mean(values: Tensor, alive: Tensor) -> float:
    return float((values * alive).sum() / alive.sum())
