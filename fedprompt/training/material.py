"""From files to tensors: what training and evaluation of one site need, computed once and cached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedprompt.backbones import load_backbone
from fedprompt.backbones.base import Features, SegmentationBackbone, fingerprint
from fedprompt.config import Site, Study
from fedprompt.data.augmentation import augmented
from fedprompt.data.cache import FeatureCache, FeatureKey
from fedprompt.data.cases import Case
from fedprompt.data.samples import Sample, load_sample
from fedprompt.training.local import View

__all__ = ["Material", "Workspace"]

_GUIDE_SIDE = 64  # the gated CRF works on maps of at most this side


@dataclass(frozen=True)
class Workspace:
    """What the sites of one process share: the frozen backbone, its fingerprint and the feature cache."""

    backbone: SegmentationBackbone
    fingerprint: str
    cache: FeatureCache
    device: torch.device

    @classmethod
    def open(cls, study: Study, *, cache_bytes: int = 8 << 30) -> Workspace:
        """Loads the study's backbone, on the GPU where there is one."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        backbone = load_backbone(study.backbone, classes=len(study.classes))
        mark = fingerprint(backbone)
        backbone.to(device)
        return cls(backbone, mark, FeatureCache(cache_bytes), device)


class Material:
    """Views, features and truths of one site's cases.

    Args:
        study: Settings of images and views.
        site: The site.
        workspace: Backbone and cache.
        cases: Per split.
        simulate: Draw the site's annotation kind from full train masks.
        encoded: Give encoder features; False gives preprocessed images, for a backbone that trains.
    """

    def __init__(
        self,
        study: Study,
        site: Site,
        workspace: Workspace,
        cases: dict[str, list[Case]],
        *,
        simulate: bool,
        encoded: bool,
    ) -> None:
        self.cases = cases
        self._study = study
        self._site = site
        self._workspace = workspace
        self._simulate = simulate
        self._encoded = encoded
        self._recent: tuple[str, Sample] | None = None
        self._moved: tuple[str, int, np.ndarray, np.ndarray] | None = None
        self._truths: dict[str, tuple[np.ndarray, tuple[float, float]]] = {}
        self._hashes: dict[str, str] = {}
        self._labels: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    def view(self, index: int, view: int) -> View:
        """View `view` of train case `index`."""
        case = self.cases["train"][index]
        key = (case.id, view)
        if key not in self._labels:
            self._prepare(case)
        return View(self._features(case, view), *self._labels[key])

    def features(self, split: Literal["val", "test"], index: int) -> Features:
        """Features of an unaugmented case (1, C, h, w)."""
        return self._features(self.cases[split][index], 0)

    def truth(self, split: Literal["val", "test"], index: int) -> tuple[np.ndarray, tuple[float, float]]:
        """Truth (H, W) of a case at native resolution, and its pixel spacing."""
        case = self.cases[split][index]
        if case.id not in self._truths:
            sample = self._sample(case)
            self._truths[case.id] = sample.truth, sample.spacing
        return self._truths[case.id]

    def _prepare(self, case: Case) -> None:
        """All views of a case at its first visit: reading and drawing it cost more than a view."""
        device = self._workspace.device
        for view in range(self._study.training.views):
            image, annotation = self._augmented(case, view)
            self._labels[case.id, view] = (
                torch.from_numpy(annotation.astype(np.int64)).to(device),
                self._guide(torch.from_numpy(image).to(device)),
            )
            self._features(case, view)

    def _features(self, case: Case, view: int) -> Features:
        if case.id not in self._hashes:
            self._hashes[case.id] = self._sample(case).sha256
        key = FeatureKey(
            fingerprint=self._workspace.fingerprint,
            stage="encoder" if self._encoded else "image",
            sha256=self._hashes[case.id],
            transform=f"size={self._study.image.size} view={view} seed={self._study.seed}",
        )

        def compute() -> Features:
            image, _ = self._augmented(case, view)
            batch = torch.from_numpy(image)[None].to(self._workspace.device)
            backbone = self._workspace.backbone
            with torch.no_grad():
                prepared = backbone.preprocess(batch)
                return backbone.encode(prepared) if self._encoded else (prepared,)

        return self._workspace.cache.get(key, compute)

    def _augmented(self, case: Case, view: int) -> tuple[np.ndarray, np.ndarray]:
        if self._moved is None or self._moved[:2] != (case.id, view):
            sample = self._sample(case)
            moved = augmented(sample.image, sample.annotation, view, self._study.seed)
            self._moved = (case.id, view, *moved)
        return self._moved[2:]

    def _sample(self, case: Case) -> Sample:
        if self._recent is None or self._recent[0] != case.id:
            sample = load_sample(case, self._site, self._study, simulate=self._simulate)
            self._recent = (case.id, sample)
        return self._recent[1]

    def _guide(self, image: Tensor) -> Tensor:
        side = self._study.image.size
        while side > _GUIDE_SIDE:
            side //= 2
        return F.adaptive_avg_pool2d(image, side)
