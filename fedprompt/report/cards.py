"""What a site keeps of its classified test cases: a table, cards of telling cases, confusion, reliability."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fedprompt.artifacts import write_atomic, write_json
from fedprompt.report.site_files import BINS

__all__ = ["CARDS", "write_case_cards"]

CARDS = 6  # at most; half of them for mistakes where there are enough of both
SIDE = 256  # longer side of a card in pixels, at most


def write_case_cards(
    folder: Path,
    cases: Sequence[str],
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    read_image: Callable[[int], np.ndarray],
) -> None:
    """Writes `cases.csv`, `confusion.json`, the cards as PNG and, last, `pictures.json`, each atomically.

    A prediction is the class of the highest probability (the first one of equals), its confidence that
    probability. Cards show the most confident mistakes, then the most confident right predictions. The
    reliability (Guo et al., ICML 2017) has the bins that hold cases, from the least to the most confident.
    Equal arguments give equal bytes.

    Args:
        folder: Pictures folder of the site.
        cases: N ids, distinct.
        probabilities: (N, C), rows in the order of `cases`.
        labels: (N,) class numbers of the truth.
        classes: C names.
        read_image: Gives the image of a case by its position: float (H, W, 3) in 0 to 1. Asked for what
            becomes a card only.

    Raises:
        ValueError: There is no case, a shape does not fit, a probability lies outside of 0 to 1, or a label
            is no class.
    """
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    _check(cases, probabilities, labels, classes)
    predictions = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1).clip(max=1)  # a softmax may round to a little more
    table = [
        [case, classes[truth], classes[guess], *(f"{p:.6f}" for p in row)]
        for case, truth, guess, row in zip(cases, labels, predictions, probabilities, strict=True)
    ]
    header = ["case", "truth", "prediction", *(f"p_{name}" for name in classes)]
    write_atomic(folder / "cases.csv", _csv([header, *table]), durable=False)
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (labels, predictions), 1)
    confusion = {
        "classes": list(classes),
        "counts": counts.tolist(),
        "reliability": _reliability(confidence, predictions == labels),
    }
    write_json(folder / "confusion.json", confusion, durable=False)
    listed = []
    for number, index in enumerate(_telling(cases, confidence, predictions == labels)):
        write_atomic(folder / f"{number}.png", _card(read_image(index)), durable=False)
        listed.append(
            {
                "file": f"{number}.png",
                "case": cases[index],
                "truth": classes[labels[index]],
                "prediction": classes[predictions[index]],
                "probability": float(confidence[index]),
            }
        )
    write_json(folder / "pictures.json", listed, durable=False)


def _check(
    cases: Sequence[str], probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> None:
    shape = (len(cases), len(classes))
    if not all(shape):
        raise ValueError(f"expected at least one case and one class, got {shape[0]} and {shape[1]}")
    if probabilities.shape != shape:
        raise ValueError(f"probabilities: expected {shape}, got {probabilities.shape}")
    if labels.shape != shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels: expected ({shape[0]},) integers, got {labels.shape} {labels.dtype}")
    if not ((probabilities >= 0) & (probabilities <= 1 + 1e-6)).all():
        raise ValueError("probabilities: expected values in 0 to 1, got others")
    if not ((labels >= 0) & (labels < shape[1])).all():
        raise ValueError(f"labels: expected 0 to {shape[1] - 1}, got {labels.min()} to {labels.max()}")


def _csv(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _reliability(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """Per bin that holds cases its mean confidence, share of right predictions and number of cases."""
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # open below, closed above
    return [
        {
            "confidence": float(confidence[place == number].mean()),
            "accuracy": float(right[place == number].mean()),
            "cases": int((place == number).sum()),
        }
        for number in np.unique(place)
    ]


def _telling(cases: Sequence[str], confidence: np.ndarray, right: np.ndarray) -> list[int]:
    """Positions of the cases that become cards: mistakes first, each kind from the most confident on."""
    ranked = sorted(range(len(cases)), key=lambda i: (-confidence[i], cases[i]))
    wrong = [i for i in ranked if not right[i]]
    good = [i for i in ranked if right[i]]
    mistakes = max(CARDS // 2, CARDS - len(good))
    shown = wrong[:mistakes]
    return shown + good[: CARDS - len(shown)]


def _card(image: np.ndarray) -> bytes:
    """The image as PNG, shrunk where it is larger than a card; never enlarged."""
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image: expected (H, W, 3), got {image.shape}")
    picture = Image.fromarray(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8))
    scale = min(1.0, SIDE / max(picture.size))
    width, height = (max(1, round(side * scale)) for side in picture.size)
    buffer = io.BytesIO()
    picture.resize((width, height), Image.Resampling.LANCZOS).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()
