"""Is a stream shifted, how far, and did it just change? From the first layers' statistics of raw images.

First layers see colour, light, blur and noise, so the scanner; what is shown in an image moves them little.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch

from fedprompt.adaptation.layers import LayerStatistics, Moments
from fedprompt.adaptation.statistics import Source
from fedprompt.adaptation.stream_statistics import StreamStatistics
from fedprompt.manifest import Arrays

__all__ = ["LAYERS", "DriftMonitor"]

LAYERS = 3  # first watched layers that tell style

_RECENT = 4  # images that show a change of domain
_HALF = 2.0  # squared shift at which an adaptation is trusted by half
_CHANGE = 2.0  # squared distance between the recent images and the stream from which on it has changed


class DriftMonitor:
    """Watches raw images of one stream.

    Args:
        source: Source statistics of the layers to look at, first layers of the network.
    """

    def __init__(self, source: Mapping[str, Source]) -> None:
        self._source = dict(source)
        self._recent: deque[LayerStatistics] = deque(maxlen=_RECENT)
        self._stream = self._empty()

    @property
    def trust(self) -> float:
        """How far to trust an adaptation, 0 to 1: s^2 / (s^2 + 4) of the squared shift s.

        A stream no further from the source than its own images are from each other needs little.
        """
        squared = self.shift**2
        return squared / (squared + _HALF**2)

    @property
    def shift(self) -> float:
        """Mean squared shift of the layers in units of the variance between images."""
        shifts = [stream.shift() for stream in self._stream.values()]
        return sum(shifts) / len(shifts)

    def add(self, image: LayerStatistics) -> bool:
        """Takes in one image; True where the stream has changed domain with the last few images.

        It then begins anew with these, but for the first, which may be one of before.
        """
        found = {name: image[name] for name in self._source}
        self._recent.append(found)
        changed = self._changed()
        if changed:
            self._stream = self._empty()
        for moments in list(self._recent)[1:] if changed else [found]:  # three of four have changed
            for name, stream in self._stream.items():
                stream.add(moments[name])
        if changed:
            self._recent.clear()
        return changed

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """What `restore` takes."""
        arrays: Arrays = {}
        for name, stream in self._stream.items():
            arrays |= {f"stream/{name}/{kind}": value for kind, value in stream.arrays().items()}
            for place, moments in enumerate(self._recent):
                arrays[f"recent/{place}/{name}/mean"] = moments[name].mean.cpu().numpy()
                arrays[f"recent/{place}/{name}/variance"] = moments[name].variance.cpu().numpy()
        images = {name: stream.images for name, stream in self._stream.items()}
        return arrays, {"images": images, "recent": len(self._recent)}

    def restore(self, arrays: Arrays, metadata: Mapping[str, Any], device: torch.device) -> None:
        """Goes on from what `state` gave."""

        def tensor(name: str) -> torch.Tensor:
            return torch.from_numpy(arrays[name].copy()).to(device)

        for name, stream in self._stream.items():
            prefix = f"stream/{name}/"
            kept = {n.removeprefix(prefix): array for n, array in arrays.items() if n.startswith(prefix)}
            stream.restore(int(metadata["images"][name]), kept, device)
        self._recent.clear()
        for place in range(int(metadata["recent"])):
            both = {
                name: Moments(
                    tensor(f"recent/{place}/{name}/mean"), tensor(f"recent/{place}/{name}/variance")
                )
                for name in self._source
            }
            self._recent.append(both)

    def _changed(self) -> bool:
        """The recent images agree with each other and lie apart from the stream before them."""
        if len(self._recent) < _RECENT:
            return False
        distances = []
        for name, stream in self._stream.items():
            if stream.images < 2 * _RECENT:
                return False
            distances.append(stream.distance([moments[name] for moments in self._recent]))
        return sum(distances) / len(distances) > _CHANGE

    def _empty(self) -> dict[str, StreamStatistics]:
        return {name: StreamStatistics(source) for name, source in self._source.items()}
