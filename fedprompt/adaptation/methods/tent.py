"""TENT-style update: entropy descent on the gains and shifts of normalisation layers.

After Wang et al. (ICLR 2021). Gains and shifts are copies that live with the stream; the network keeps its
own. Statistics are the image's own, as there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fedprompt.adaptation.layers import affine_layers
from fedprompt.adaptation.methods.base import Method, Outcome
from fedprompt.adaptation.methods.batch_norm import mixing
from fedprompt.adaptation.network import Network
from fedprompt.adaptation.statistics import SourceStatistics
from fedprompt.errors import ConfigurationError
from fedprompt.manifest import Arrays

__all__ = ["Tent"]

_RATE = 1e-3


class Tent(Method):
    """One Adam step on the prediction's entropy per image; the prediction is the one before the step."""

    name: ClassVar[str] = "tent"

    def __init__(self, network: Network, statistics: SourceStatistics | None) -> None:
        super().__init__(network, statistics)
        self._trained: dict[str, nn.Parameter] = {}
        for name, layer in affine_layers(self.watched.module):
            for kind in ("weight", "bias"):
                trained = nn.Parameter(getattr(layer, kind).detach().clone())
                setattr(layer, kind, trained)
                self._trained[f"{name}.{kind}"] = trained
        if not self._trained:
            raise ConfigurationError(
                "method tent: expected a network with gains in its normalisation layers, got "
                f"{type(network.module).__name__} with none"
            )
        self._optimiser = torch.optim.Adam(self._trained.values(), lr=_RATE)

    def adapt(self, images: Tensor) -> Outcome:
        with torch.enable_grad():
            blend = mixing(1.0) if self.watched.batch_norm else None
            logits = self.watched(self.network.normalised(images), blend=blend)
            found = self.network.probabilities(logits)
            entropy = -(found * found.clamp(min=1e-9).log()).sum(dim=1).mean()
            self._optimiser.zero_grad()
            entropy.backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()
        return Outcome(found.detach(), None, accepted=True)

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        arrays: Arrays = {}
        for name, trained in self._trained.items():
            arrays[f"value/{name}"] = trained.detach().cpu().numpy().copy()
            for kind, value in self._optimiser.state.get(trained, {}).items():
                arrays[f"{kind}/{name}"] = np.array(value.cpu().numpy())
        return arrays, {}

    def restore(self, arrays: Arrays, metadata: Mapping[str, Any]) -> None:  # noqa: ARG002 - all in arrays
        for name, trained in self._trained.items():
            trained.data.copy_(_tensor(arrays[f"value/{name}"]))
            kinds = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}/{name}" in arrays]
            if len(kinds) not in (0, 3):
                raise ValueError(f"expected the whole optimiser state of {name}, got {kinds}")
            if kinds:
                moments = {key: _tensor(arrays[f"{key}/{name}"]) for key in kinds}
                self._optimiser.state[trained] = {
                    key: value if key == "step" else value.to(trained.device)
                    for key, value in moments.items()
                }


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))
