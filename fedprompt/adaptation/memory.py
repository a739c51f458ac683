"""What a stream remembers of earlier images: a ring of keys and the prompts that were accepted for them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedprompt.manifest import Arrays

__all__ = ["PromptMemory"]


class PromptMemory:
    """The last `capacity` pairs of key and prompt; the oldest goes first, equal images stay apart.

    A key says what an image's low frequencies look like, so it comes from a patient: the memory stays at the
    site.

    Args:
        key: Length of a key; keys have length 1.
        prompt: Shape of a prompt.
        capacity: Pairs kept.
        similarity: Cosine from which on a pair counts as alike.
        neighbours: Most alike pairs that a prompt is made of.
        temperature: Of the softmax over their cosines.
    """

    def __init__(
        self,
        key: int,
        prompt: tuple[int, ...],
        *,
        capacity: int = 40,
        similarity: float = 0.5,
        neighbours: int = 4,
        temperature: float = 0.1,
    ) -> None:
        self._keys = torch.zeros(capacity, key)
        self._prompts = torch.zeros(capacity, *prompt)
        self._similarity, self._neighbours, self._temperature = similarity, neighbours, temperature
        self.written = 0

    def __len__(self) -> int:
        return min(self.written, len(self._keys))

    def recall(self, key: Tensor) -> Tensor | None:
        """The prompt for an image with this key (D,), a mean over alike ones; None where none is alike."""
        count = len(self)
        cosines = self._keys[:count] @ key.cpu()
        alike = torch.nonzero(cosines >= self._similarity).flatten()
        if not len(alike):
            return None
        # Stable order: of equally alike pairs the one that was written first.
        nearest = alike[torch.argsort(cosines[alike], descending=True, stable=True)[: self._neighbours]]
        weights = torch.softmax(cosines[nearest] / self._temperature, dim=0)
        mean: Tensor = torch.tensordot(weights, self._prompts[nearest], dims=1)
        return mean.to(key.device)

    def add(self, key: Tensor, prompt: Tensor) -> None:
        """Writes a pair over the oldest one."""
        place = self.written % len(self._keys)
        self._keys[place] = key.cpu()
        self._prompts[place] = prompt.detach().cpu()
        self.written += 1

    def clear(self) -> None:
        """Forgets everything."""
        self.written = 0
        self._keys.zero_()
        self._prompts.zero_()

    def arrays(self) -> Arrays:
        """What `restore` takes."""
        return {"keys": self._keys.numpy().copy(), "prompts": self._prompts.numpy().copy()}

    def restore(self, written: int, arrays: Arrays) -> None:
        """Goes on from what `arrays` gave; raises `ValueError` for arrays of another memory."""
        for name, mine in (("keys", self._keys), ("prompts", self._prompts)):
            if arrays[name].shape != tuple(mine.shape) or arrays[name].dtype != np.float32:
                raise ValueError(f"expected {name} {tuple(mine.shape)}, got {arrays[name].shape}")
            mine.copy_(torch.from_numpy(arrays[name]))
        self.written = written
