"""One site in one study: arrays come in, are trained or evaluated on the site's cases, and go out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from fedprompt.config import Site, Study
from fedprompt.contract import CaseCounts
from fedprompt.data.cases import read_cases
from fedprompt.data.samples import split_cases
from fedprompt.manifest import Arrays, Scope
from fedprompt.models import (
    PromptedClassifier,
    PromptedModel,
    PromptedSegmenter,
    build_model,
    study_manifest,
)
from fedprompt.training.classification import ClassificationObjective
from fedprompt.training.classification_evaluation import evaluate_classification
from fedprompt.training.classification_losses import log_prior
from fedprompt.training.local import Objective, Trained, load_arrays, train_round, trained_arrays
from fedprompt.training.material import Material
from fedprompt.training.sampling import draw_batches, round_seed
from fedprompt.training.segmentation import SegmentationObjective
from fedprompt.training.segmentation_evaluation import evaluate_segmentation
from fedprompt.training.workspace import Workspace

__all__ = ["Session"]


class Session:
    """Trains and evaluates one site. Beside the initial model, none is held between calls.

    Args:
        study: The study.
        site: The site; `annotation` is how its masks are drawn, or how to draw them.
        workspace: Shared between the sites of a process.
        simulate: Draw the site's annotation kind from full train masks.

    Attributes:
        manifest: Every tensor of the model with the scope that the study's strategy gives it.
        counts: Cases per split.
        parameters: Elements of the backbone and of every scope.
        fingerprint: Of the backbone.

    Raises:
        DataError: The site's cases cannot be used.
    """

    def __init__(self, study: Study, site: Site, workspace: Workspace, *, simulate: bool) -> None:
        self._study = study
        self._site = site
        self._workspace = workspace
        cases = split_cases(read_cases(site.data, study.task), study.training.validation, study.seed)
        self.counts = CaseCounts(train=len(cases.train), val=len(cases.val), test=len(cases.test))
        initial = self._model()
        self._material = Material(
            study,
            site,
            workspace,
            {"train": cases.train, "val": cases.val, "test": cases.test},
            initial,
            simulate=simulate,
        )
        self.manifest = study_manifest(initial, study.strategy)
        self.fingerprint = workspace.fingerprint
        self.parameters = {"backbone": sum(p.numel() for p in workspace.backbone.parameters())} | {
            scope.value: self.manifest.select(scope).size()
            for scope in (Scope.SHARED, Scope.SITE, Scope.PERSONAL)
        }

    def initial(self) -> Arrays:
        """All trained tensors of the initial model; they depend on the study alone."""
        return trained_arrays(self._model())

    def train(self, arrays: Arrays, optimiser: Arrays, *, round: int, peers: Arrays) -> Trained:
        """One local round from `arrays` (every trained tensor) and the optimiser state of the last one.

        Raises:
            RunError: The loss is not finite, or the accelerator's memory too small.
        """
        model = self._model()
        load_arrays(model, arrays)
        settings = self._study.training
        seed = round_seed(self._study.seed, self._site.id, round)
        batches = draw_batches(
            self.counts.train,
            settings.views,
            settings.steps,
            settings.batch_size,
            np.random.default_rng(seed),
        )
        with self._workspace.precision.memory(settings.batch_size):
            return train_round(
                model,
                self._objective(model, round, peers, seed),
                batches,
                self._study,
                round=round,
                optimiser=optimiser,
                anchored=self.manifest.select(Scope.SHARED).names(),
                precision=self._workspace.precision,
            )

    def evaluate(
        self, arrays: Arrays, *, split: Literal["val", "test"], pictures: Path | None = None
    ) -> dict[str, float]:
        """Metrics over the cases of a split; `pictures` is a folder of this site for what it keeps."""
        model = self._model()
        load_arrays(model, arrays)
        material, study, precision = self._material, self._study, self._workspace.precision
        if isinstance(model, PromptedClassifier):
            return evaluate_classification(model, material, split, study, precision, pictures)
        assert isinstance(model, PromptedSegmenter)  # noqa: S101 - for the type checker
        annotation = self._site.annotation
        return evaluate_segmentation(model, material, split, study, precision, pictures, annotation)

    def _objective(self, model: PromptedModel, round: int, peers: Arrays, seed: int) -> Objective:
        row = peers.get("prompts.data_aware.row")
        peers_row = None if row is None else torch.from_numpy(row).to(self._workspace.device)
        if isinstance(model, PromptedClassifier):
            prior = log_prior(torch.from_numpy(self._material.labels("train")), len(self._study.classes))
            return ClassificationObjective(
                model,
                self._material.view,
                self._study,
                log_prior=prior.to(self._workspace.device),
                peers_row=peers_row,
                rng=np.random.default_rng([seed, 1]),
            )
        assert isinstance(model, PromptedSegmenter)  # noqa: S101 - for the type checker
        return SegmentationObjective(
            model,
            self._material.view,
            self._study,
            round=round,
            peers_row=peers_row,
            generator=torch.Generator().manual_seed(seed),
        )

    def _model(self) -> PromptedModel:
        model = build_model(self._workspace.backbone, self._study, self._site.annotation)
        return model.to(self._workspace.device)
