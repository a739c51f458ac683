"""Where a model computes and with which arithmetic, and what to say when its memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, Self

import torch

from fedprompt.errors import ConfigurationError, RunError

__all__ = ["Precision"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """Device and arithmetic of a process. Prompts and their optimiser are always kept in float32.

    Attributes:
        device: Of backbone and prompts.
        dtype: Of matrix products and convolutions.
    """

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def choose(cls, wanted: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> Self:
        """What a study asks for on a device; `auto` is bf16 on a CUDA device that has it, else fp32.

        A CPU computes in float32 whatever is asked, so that a study runs at sites with and without a GPU.

        Raises:
            ConfigurationError: bf16 on a CUDA device that does not have it.
        """
        if device.type != "cuda":
            return cls(device, torch.float32)
        able = torch.cuda.is_bf16_supported()
        if wanted == "bf16" and not able:
            name = torch.cuda.get_device_name(device)
            raise ConfigurationError(
                f"backbone.precision: expected fp16 or fp32 on a {name}, which lacks bf16; got bf16"
            )
        if wanted == "auto":
            wanted = "bf16" if able else "fp32"
        return cls(device, _DTYPES[wanted])

    def autocast(self) -> AbstractContextManager[None]:
        """Computes what is inside with `dtype`."""
        context: AbstractContextManager[None] = torch.autocast(
            self.device.type, self.dtype, enabled=self.dtype != torch.float32
        )
        return context

    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss where gradients in float16 would vanish; does nothing otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    @contextmanager
    def memory(self, batch: int) -> Iterator[None]:
        """Turns an exhausted GPU into one sentence with the numbers and what to change.

        Args:
            batch: Images that were computed together.
        """
        try:
            yield
        except torch.OutOfMemoryError as error:
            free, total = torch.cuda.mem_get_info(self.device) if self.device.type == "cuda" else (0, 0)
            advice = [f"training.batch-size below {batch}"] if batch > 1 else ["a smaller image.size"]
            if self.dtype == torch.float32:
                advice.append('backbone.precision "bf16"')
            raise RunError(
                f"GPU memory: expected enough for a batch of {batch}, got {free / 2**30:.1f} GiB free of "
                f"{total / 2**30:.1f} GiB; try {' or '.join(advice)}",
                public="the accelerator's memory is too small for the batch",
            ) from error
