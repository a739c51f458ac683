"""From files to tensors: what training and evaluation of one site need, computed once and cached."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedprompt.backbones.base import Features
from fedprompt.config import Site, Study
from fedprompt.data.augmentation import VERSION, augmented
from fedprompt.data.cache import FeatureKey
from fedprompt.data.cases import Case
from fedprompt.data.samples import Sample, load_sample
from fedprompt.models import PromptedModel
from fedprompt.training.domains import pseudo_domains
from fedprompt.training.views import View
from fedprompt.training.workspace import Workspace

__all__ = ["Material"]

_GUIDE_SIDE = 64  # the gated CRF works on maps of at most this side


class Material:
    """Views, features and truths of one site's cases.

    Args:
        study: Settings of images and views.
        site: The site.
        workspace: Backbone and cache.
        cases: Per split.
        model: Says what is in front of its first prompt; that is computed once per view and cached.
        simulate: Draw the site's annotation kind from full train masks.
    """

    def __init__(
        self,
        study: Study,
        site: Site,
        workspace: Workspace,
        cases: dict[str, list[Case]],
        model: PromptedModel,
        *,
        simulate: bool,
    ) -> None:
        self.cases = cases
        self._study = study
        self._site = site
        self._workspace = workspace
        self._model = model
        self._simulate = simulate
        self._recent: tuple[str, Sample] | None = None
        self._moved: tuple[str, int, np.ndarray, np.ndarray] | None = None
        self._truths: dict[str, tuple[np.ndarray, tuple[float, float]]] = {}
        self._hashes: dict[str, str] = {}
        self._targets: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    def view(self, index: int, view: int) -> View:
        """View `view` of train case `index`."""
        case = self.cases["train"][index]
        key = (case.id, view)
        if key not in self._targets:
            self._prepare(case)
        domain = int(self._domains[index]) if "domain" in self._model.prompts else 0
        return View(self._features(case, view), *self._targets[key], domain)

    def features(self, split: Literal["train", "val", "test"], index: int) -> Features:
        """Features of an unaugmented case (1, C, h, w), or what else the model takes."""
        return self._features(self.cases[split][index], 0)

    def truth(self, split: Literal["val", "test"], index: int) -> tuple[np.ndarray, tuple[float, float]]:
        """Truth (H, W) of a case at native resolution, and its pixel spacing."""
        case = self.cases[split][index]
        if case.id not in self._truths:
            sample = self._sample(case)
            assert sample.truth is not None  # noqa: S101 - a segmentation study
            self._truths[case.id] = sample.truth, sample.spacing
        return self._truths[case.id]

    def labels(self, split: Literal["train", "val", "test"]) -> np.ndarray:
        """Class numbers (N,) int64 of a split."""
        classes = self._study.classes
        return np.array([classes.index(str(case.label)) for case in self.cases[split]], dtype=np.int64)

    @cached_property
    def _domains(self) -> np.ndarray:
        """Pseudo-domain of every train case, by the style of its unaugmented image."""
        count = self._study.prompts.domain.domains if self._study.prompts.domain else 1
        styles = [self._style(index) for index in range(len(self.cases["train"]))]
        return pseudo_domains(torch.stack(styles).cpu().numpy(), count, self._study.seed)

    def _style(self, index: int) -> Tensor:
        state = self.features("train", index)
        if self._model.trains_backbone:  # its initial weights tell the style, whatever they become
            with torch.no_grad(), self._workspace.precision.autocast():
                state = self._model.encode(state[0])
        return state[1][0]

    def _prepare(self, case: Case) -> None:
        """All views of a case at its first visit: reading and drawing it cost more than a view."""
        device = self._workspace.device
        label = self._sample(case).label
        for view in range(self._study.training.views):
            image, annotation = self._augmented(case, view)
            target = torch.from_numpy(annotation.astype(np.int64)) if label is None else torch.tensor(label)
            guide = self._guide(torch.from_numpy(image)) if label is None else torch.zeros(0)
            self._targets[case.id, view] = target.to(device), guide.to(device)
            self._features(case, view)

    def _features(self, case: Case, view: int) -> Features:
        if case.id not in self._hashes:
            self._hashes[case.id] = self._sample(case).sha256
        precision = self._workspace.precision
        seed = self._study.seed if view else 0  # the image as it is does not depend on it
        key = FeatureKey(
            fingerprint=self._workspace.fingerprint,
            stage=f"{self._model.stage}/{str(precision.dtype).removeprefix('torch.')}",
            sha256=self._hashes[case.id],
            transform=f"augmentation={VERSION} size={self._study.image.size} view={view} seed={seed}",
        )

        def compute() -> Features:
            image, _ = self._augmented(case, view)
            batch = torch.from_numpy(image)[None].to(self._workspace.device)
            prepared = self._workspace.backbone.preprocess(batch)
            if self._model.trains_backbone:
                return (prepared,)
            with torch.no_grad(), precision.autocast(), precision.memory(1):
                return self._model.encode(prepared)

        return self._workspace.cache.get(key, compute)

    def _augmented(self, case: Case, view: int) -> tuple[np.ndarray, np.ndarray]:
        if self._moved is None or self._moved[:2] != (case.id, view):
            sample = self._sample(case)
            annotation = sample.annotation
            if annotation is None:
                annotation = np.zeros(sample.image.shape[1:], dtype=np.uint8)
            moved = augmented(sample.image, annotation, view, self._study.seed)
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
