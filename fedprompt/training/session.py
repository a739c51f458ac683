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
from fedprompt.models import PromptedSegmenter, study_manifest
from fedprompt.training.evaluation import evaluate_cases, write_pictures
from fedprompt.training.local import Trained, load_arrays, train_round, trained_arrays
from fedprompt.training.material import Material, Workspace
from fedprompt.training.metrics import mean_metrics
from fedprompt.training.sampling import draw_batches, round_seed

__all__ = ["Session"]


class Session:
    """Trains and evaluates one site. No model is held between calls.

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
        cases = split_cases(read_cases(site.data), study.training.validation, study.seed)
        self.counts = CaseCounts(train=len(cases.train), val=len(cases.val), test=len(cases.test))
        self._material = Material(
            study,
            site,
            workspace,
            {"train": cases.train, "val": cases.val, "test": cases.test},
            simulate=simulate,
            encoded=study.strategy.name != "full-finetune",
        )
        self.manifest = study_manifest(self._model(), study.strategy)
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
            RunError: The loss is not finite.
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
        return train_round(
            model,
            self._material.view,
            batches,
            self._study,
            round=round,
            optimiser=optimiser,
            peers_row=peers.get("prompts.data_aware.row"),
            anchored=self.manifest.select(Scope.SHARED).names(),
            generator=torch.Generator().manual_seed(seed),
        )

    def evaluate(
        self, arrays: Arrays, *, split: Literal["val", "test"], pictures: Path | None = None
    ) -> dict[str, float]:
        """Mean metrics over the cases of a split; `pictures` is a folder of this site for overlays."""
        model = self._model()
        load_arrays(model, arrays)
        classes = self._study.classes
        rows, predictions = evaluate_cases(model, self._material, split, classes)
        if pictures is not None and rows:
            annotation = self._site.annotation
            write_pictures(pictures, self._material, split, rows, predictions, classes, annotation)
        return mean_metrics(rows)

    def _model(self) -> PromptedSegmenter:
        model = PromptedSegmenter(
            self._workspace.backbone,
            self._study.prompts,
            self._site.annotation,
            self._study.seed,
            trains_backbone=self._study.strategy.name == "full-finetune",
        )
        return model.to(self._workspace.device)
