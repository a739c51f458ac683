"""What the sites of one process share: the frozen backbone, its fingerprint, the feature cache, a device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from fedprompt.backbones import load_backbone
from fedprompt.backbones.base import Backbone, fingerprint
from fedprompt.config import Study
from fedprompt.data.cache import FeatureCache
from fedprompt.training.precision import Precision

__all__ = ["Workspace"]


@dataclass(frozen=True)
class Workspace:
    """One copy of the backbone for all sites of a process."""

    backbone: Backbone
    fingerprint: str
    cache: FeatureCache
    precision: Precision

    @property
    def device(self) -> torch.device:
        """Where backbone and prompts compute."""
        return self.precision.device

    @classmethod
    def open(
        cls,
        study: Study,
        *,
        cache_bytes: int = 8 << 30,
        folder: Path | None = None,
        disk_bytes: int = 20 << 30,
    ) -> Self:
        """Loads the study's backbone, on the GPU where there is one.

        Args:
            study: Names backbone, image size and precision.
            cache_bytes: Of features kept in memory.
            folder: Where features are kept over processes; None: nowhere.
            disk_bytes: Limit of that folder.

        Raises:
            ConfigurationError: The backbone does not fit the study, or the precision not the device.
            DataError: Its files cannot be used.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        precision = Precision.choose(study.backbone.precision, device)
        backbone = load_backbone(study.backbone, task=study.task, classes=len(study.classes))
        backbone.check_size(study.image.size)
        mark = fingerprint(backbone)
        backbone.to(device)
        cache = FeatureCache(cache_bytes, folder=folder, disk_limit=disk_bytes, device=device)
        return cls(backbone, mark, cache, precision)
