"""Predictions at native resolution, their metrics, and what a site keeps of them: pictures and a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from fedprompt.artifacts import write_atomic, write_json
from fedprompt.backbones.base import Features
from fedprompt.config import Annotation, Study
from fedprompt.data.annotations import draw_annotation
from fedprompt.data.images import read_picture
from fedprompt.models import PromptedSegmenter
from fedprompt.report.pictures import write_picture
from fedprompt.training.material import Material
from fedprompt.training.metrics import dice_per_class, mean_metrics, segmentation_metrics
from fedprompt.training.precision import Precision

__all__ = ["evaluate_segmentation", "predict"]

_PICTURES = 4  # worst, two between, best


def predict(
    model: PromptedSegmenter, features: Features, size: tuple[int, int], precision: Precision
) -> np.ndarray:
    """Class numbers (H, W) of one case from what the model takes (its image, where the backbone trains)."""
    with torch.no_grad(), precision.autocast(), precision.memory(1):
        state = model.encode(features[0]) if model.trains_backbone else features
        probabilities = model(state).probabilities().float()
    full = F.interpolate(probabilities, size=size, mode="bilinear", align_corners=False)
    return np.asarray(full.argmax(dim=1)[0].cpu().numpy().astype(np.uint8))


def evaluate_segmentation(
    model: PromptedSegmenter,
    material: Material,
    split: Literal["val", "test"],
    study: Study,
    precision: Precision,
    pictures: Path | None,
    annotation: Annotation,
) -> dict[str, float]:
    """Mean metrics over the cases of a split: Dice alone on `val`, which every round computes; all on `test`.

    Args:
        model: Loaded.
        material: The site's cases.
        split: Which of them.
        study: Names the classes.
        precision: Arithmetic of the forward pass.
        pictures: Folder of this site for overlays and its table of cases; None: nothing is written.
        annotation: The site's kind, drawn into the pictures.
    """
    classes = study.classes
    rows, predictions = [], []
    for index in range(len(material.cases[split])):
        features = material.features(split, index)
        truth, spacing = material.truth(split, index)
        prediction = predict(model, features, (truth.shape[0], truth.shape[1]), precision)
        if split == "val":
            rows.append({"dice": float(dice_per_class(prediction, truth, len(classes)).mean())})
        else:
            rows.append(segmentation_metrics(prediction, truth, classes, spacing))
        predictions.append(prediction)
    if pictures is not None and rows:
        _write_pictures(pictures, material, split, rows, predictions, classes, annotation)
    return mean_metrics(rows)


def _write_pictures(
    folder: Path,
    material: Material,
    split: Literal["val", "test"],
    rows: list[dict[str, float]],
    predictions: list[np.ndarray],
    classes: Sequence[str],
    annotation: Annotation,
) -> None:
    """Writes `cases.csv` (metrics per case) and overlays of the worst, two middle and the best case.

    The annotation tile shows what an annotator of this site's kind would draw on the case.
    """
    cases = material.cases[split]
    text = io.StringIO()
    table = csv.DictWriter(text, ["case", *rows[0]])
    table.writeheader()
    table.writerows({"case": c.id, **row} for c, row in zip(cases, rows, strict=True))
    write_atomic(folder / "cases.csv", text.getvalue().encode(), durable=False)

    ranked = sorted(range(len(cases)), key=lambda i: (rows[i]["dice"], cases[i].id))
    chosen = [ranked[round(place)] for place in np.linspace(0, len(ranked) - 1, min(_PICTURES, len(ranked)))]
    listed = []
    for number, index in enumerate(dict.fromkeys(chosen)):
        case = cases[index]
        truth, _ = material.truth(split, index)
        drawn = draw_annotation(truth, annotation, np.random.default_rng(number))
        name = f"{number}.png"
        write_picture(
            folder / name,
            read_picture(case.image).array,
            drawn,
            predictions[index],
            truth,
            classes,
        )
        listed.append({"file": name, "case": case.id, "dice": rows[index]["dice"]})
    write_json(folder / "pictures.json", listed, durable=False)
