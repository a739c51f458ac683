"""No adaptation: what the frozen network says."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedprompt.adaptation.methods.base import Method, Outcome

__all__ = ["Unadapted"]


class Unadapted(Method):
    """The network as it is."""

    name: ClassVar[str] = "none"

    def adapt(self, images: Tensor) -> Outcome:
        with torch.inference_mode():
            found = self.network.probabilities(self.watched(self.network.normalised(images)))
        return Outcome(found, found, accepted=False, reason="no adaptation asked for")
