"""What every method of test-time adaptation does: one image in, a prediction and what became of it out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from fedprompt.adaptation.layers import WatchedNetwork
from fedprompt.adaptation.network import Network
from fedprompt.adaptation.statistics import Source, SourceStatistics
from fedprompt.errors import ConfigurationError
from fedprompt.manifest import Arrays

if TYPE_CHECKING:
    from fedprompt.prompts.low_frequency import LowFrequencyPrompt

__all__ = ["Method", "Outcome", "source_of"]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a method made of one image.

    Attributes:
        probabilities: (1, classes, H, W).
        plain: The same without adaptation; None where the method does not compute it.
        accepted: The adaptation was used.
        reason: Why not.
        loss_before: Alignment loss of the image as it is.
        loss_after: Alignment loss of what was used.
        reused: It started from a remembered prompt.
        restarted: Warm-up began anew with this image.
    """

    probabilities: Tensor
    plain: Tensor | None
    accepted: bool
    reason: str = ""
    loss_before: float | None = None
    loss_after: float | None = None
    reused: bool = False
    restarted: bool = False


class Method(ABC):
    """One way to adapt a frozen network to a stream.

    Args:
        network: The network.
        statistics: Of the source, where they were collected.

    Attributes:
        prompt: The prompt of the last image; None where the method has none.
    """

    name: ClassVar[str]
    prompt: LowFrequencyPrompt | None = None

    def __init__(self, network: Network, statistics: SourceStatistics | None) -> None:
        self.network = network
        self.watched = WatchedNetwork(network.module)
        self.statistics = statistics

    @abstractmethod
    def adapt(self, images: Tensor) -> Outcome:
        """Adapts to one image (1, channels, H, W) in 0 to 1 and predicts it."""

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """All that the next image depends on."""
        return {}, {}

    def restore(self, arrays: Arrays, metadata: Mapping[str, Any]) -> None:  # noqa: B027 - some have none
        """Goes on from what `state` gave; raises `KeyError`, `TypeError` or `ValueError` for another's."""


def source_of(method: Method, *, collected: bool = True) -> Mapping[str, Source]:
    """Source statistics by layer: those collected, else those that BatchNorm layers keep.

    Args:
        method: Whose network.
        collected: Whether collected statistics will do.

    Raises:
        ConfigurationError: There are none.
    """
    if collected and method.statistics is not None:
        return method.statistics.on(method.network.device).layers
    kept = method.watched.batch_norm
    if not kept or (collected and not method.network.running_statistics):
        or_collected = " or collected source statistics (see `fedprompt adapt collect`)" if collected else ""
        raise ConfigurationError(
            f"method {method.name}: expected a network with BatchNorm layers that keep its source's "
            f"statistics{or_collected}, got {type(method.network.module).__name__} without"
        )
    return {name: Source.of_batch_norm(moments) for name, moments in kept.items()}
