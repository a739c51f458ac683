"""Class probabilities of a site's cases, their metrics, and what the site keeps of them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from fedprompt.config import Study
from fedprompt.data.images import read_picture
from fedprompt.models import PromptedClassifier
from fedprompt.report.cards import write_case_cards
from fedprompt.training.classification_metrics import classification_metrics
from fedprompt.training.material import Material
from fedprompt.training.precision import Precision

__all__ = ["evaluate_classification", "predict_probabilities"]

_BATCH = 32
_EVERY_ROUND = ("auroc", "balanced_accuracy")


def predict_probabilities(
    model: PromptedClassifier,
    material: Material,
    split: Literal["train", "val", "test"],
    precision: Precision,
) -> np.ndarray:
    """Class probabilities (N, classes) float32 of the cases of a split."""
    found = []
    count = len(material.cases[split])
    for start in range(0, count, _BATCH):
        rows = [material.features(split, index) for index in range(start, min(start + _BATCH, count))]
        batch = tuple(torch.cat(maps) for maps in zip(*rows, strict=True))
        with torch.no_grad(), precision.autocast(), precision.memory(len(rows)):
            state = model.encode(batch[0]) if model.trains_backbone else batch
            found.append(model.probabilities(state).float().cpu().numpy())
    return np.concatenate(found) if found else np.zeros((0, 0), dtype=np.float32)


def evaluate_classification(
    model: PromptedClassifier,
    material: Material,
    split: Literal["val", "test"],
    study: Study,
    precision: Precision,
    pictures: Path | None,
) -> dict[str, float]:
    """Metrics over the cases of a split: two on `val`, which every round computes; all on `test`.

    Args:
        model: Loaded.
        material: The site's cases.
        split: Which of them.
        study: Names the classes.
        precision: Arithmetic of the forward pass.
        pictures: Folder of this site for its table of cases and pictures of some; None: nothing is written.
    """
    labels = material.labels(split)
    if not len(labels):
        return {}
    probabilities = predict_probabilities(model, material, split, precision)
    metrics = classification_metrics(probabilities, labels, study.classes)
    if pictures is not None:
        cases = material.cases[split]
        write_case_cards(
            pictures,
            [case.id for case in cases],
            probabilities,
            labels,
            study.classes,
            lambda index: read_picture(cases[index].image).array,
        )
    if split == "val":
        return {name: metrics[name] for name in _EVERY_ROUND if name in metrics}
    return metrics
