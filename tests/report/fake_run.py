"""A run directory as a simulation leaves it, with invented but plausible numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from fedprompt.artifacts import write_json
from fedprompt.config import Study, study_from_mapping
from fedprompt.config.template import study_toml
from fedprompt.report.cards import write_case_cards
from fedprompt.report.pictures import write_picture

__all__ = ["CLASSES", "CLINICS", "SITES", "write_run"]

SITES = {"aviano": "point", "oslo": "block", "padova": "box", "paris": "scribble"}
CLINICS = dict.fromkeys(SITES, "full")  # sites of a classification
CLASSES = ("mel", "nv", "bkl")
TESTED = 12  # test cases per site


def write_run(
    folder: Path,
    *,
    rounds: int = 12,
    finished: bool = True,
    pictures: int = 2,
    baselines: Sequence[str] = ("frozen", "local", "fedavg"),
    sites: dict[str, str] = SITES,
    strategy: str = "fedlppa",
    task: str = "segmentation",
    gain: float = 0.1,
    seed: int = 0,
) -> None:
    """Writes study.toml, events.jsonl, pictures and, where finished, summary.json and the baselines.

    In a classification the second site has test cases of one class only: it has no AUROC.
    """
    rng = np.random.default_rng(seed)
    study = _study(task, strategy)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.toml").write_text(study_toml(study))
    events = _Events()
    events.add(
        "study_started",
        study=study.name,
        strategy=strategy,
        rounds=rounds if finished else 15,
        seed=0,
        sites=len(sites),
    )
    parameters = {"backbone": 489_000, "shared": 9_120, "site": 614, "personal": 0}
    environment = {"python": "3.11.7", "torch": "2.13.0", "flwr": "1.41.0", "device": "cpu"}
    cases = {site: {"train": 24 - 4 * i % 9, "val": 6, "test": TESTED} for i, site in enumerate(sites)}
    extra = {site: _labels(cases[site]["train"]) if task == "classification" else {} for site in sites}
    for site, annotation in sites.items():
        events.add(
            "site_joined",
            site=site,
            cases=cases[site],
            annotation=annotation,
            **extra[site],
            backbone="embedded-unet",
            fingerprint="3f" * 32,
            parameters=parameters,
            environment=environment,
        )
    if rounds and strategy == "fedlppa":
        events.add("site_refused", node=7, code="refused", reason="the backbone's fingerprint differs")
    level = {site: float(rng.uniform(0.55, 0.68)) for site in sites}
    for number in range(1, rounds + 1):
        _round(events, number, list(sites), level, cases, gain, strategy, task, rng)
    if not finished:
        events.add("round_started", round=rounds + 1, sites=list(sites))
        events.add("site_reported", **_report(rounds + 1, next(iter(sites)), _validation(task, 0.7), 0.4, 20))
    tested = _scores if task == "classification" else _metrics
    results = {site: tested(level[site] + gain * (rounds > 0), rng) for site in sites}
    mean = {
        name: float(np.mean([r[name] for r in results.values()])) for name in next(iter(results.values()))
    }
    if task == "classification":
        one_class = results[list(sites)[1]]
        for name in [name for name in one_class if name.startswith("auroc")]:
            del one_class[name]
    if finished:
        events.add("evaluated", split="test", sites=results, mean=mean, seconds=3.1)
        events.add("study_finished", status="completed", rounds=rounds)
    (folder / "events.jsonl").write_text(events.text())
    for site in sites if pictures else ():
        if task == "classification":
            _cards(folder / "sites" / site / "pictures", site, rng)
        else:
            _pictures(folder / "sites" / site / "pictures", site, study.classes, rng, pictures)
    if not finished:
        return
    told = {}
    for count, name in enumerate(baselines):
        write_run(
            folder / "baselines" / name,
            rounds=0 if name == "frozen" else rounds,
            pictures=0,
            baselines=(),
            sites=sites,
            strategy="local" if name == "frozen" else name,
            task=task,
            gain=0.0 if name == "frozen" else 0.03 + 0.03 * count,
            seed=seed,
        )
        summary = json.loads((folder / "baselines" / name / "summary.json").read_text())
        told[name] = {"mean": summary["mean"], "sites": summary["sites"]}
    write_json(
        folder / "summary.json",
        {
            "schema": 1,
            "study": study.name,
            "strategy": strategy,
            "rounds": rounds,
            "status": "completed",
            "classes": list(study.classes),
            "sites": {
                site: {"cases": cases[site], "annotation": kind, "metrics": results[site], **extra[site]}
                for site, kind in sites.items()
            },
            "mean": mean,
            "baselines": told,
            "parameters": parameters,
            "bytes": {
                "up_per_site_round": 39_124 if rounds else 0,
                "down_per_site_round": 41_300 if rounds else 0,
                "total": 4_826_112 * bool(rounds),
            },
            "seconds": {"total": 83.2, "per_round": 5.31},
            "privacy": None,
            "backbone": {"name": "embedded-unet", "fingerprint": "3f" * 32},
            "environment": environment,
            "seed": 0,
        },
    )


def _study(task: str, strategy: str) -> Study:
    if task == "segmentation":
        return Study().changed(name="fundus-demo", strategy={"name": strategy})
    mapping = {"name": "skin-demo", "task": task, "classes": CLASSES, "strategy": {"name": strategy}}
    return study_from_mapping(mapping, "study")


def _labels(train: int) -> dict[str, dict[str, int]]:
    """Train cases per class of a site; it has none of the last class."""
    return {"labels": {"mel": train // 4, "nv": train - train // 4}}


def _validation(task: str, value: float) -> dict[str, float]:
    """What a site reports in every round."""
    if task == "segmentation":
        return {"dice": value}
    return {"auroc": value, "balanced_accuracy": value - 0.125}


class _Events:
    def __init__(self) -> None:
        self._lines: list[str] = []
        self._time = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)

    def add(self, event: str, **fields: Any) -> None:
        self._time += timedelta(seconds=1.3)
        time = self._time.isoformat(timespec="milliseconds")
        self._lines.append(json.dumps({"event": event, "time": time, **fields}))

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"


def _round(
    events: _Events,
    number: int,
    sites: list[str],
    level: dict[str, float],
    cases: dict[str, dict[str, int]],
    gain: float,
    strategy: str,
    task: str,
    rng: np.random.Generator,
) -> None:
    events.add("round_started", round=number, sites=sites)
    present = [s for i, s in enumerate(sites) if not (number == 4 and i == 1)]
    found = {}
    for site in present:
        grown = gain * (1 - np.exp(-(number - 1) / 4))
        found[site] = _validation(task, float(np.clip(level[site] + grown + rng.normal(0, 0.008), 0, 1)))
        loss = float(0.25 + 0.6 * np.exp(-number / 4) + rng.normal(0, 0.02))
        events.add("site_reported", **_report(number, site, found[site], loss, cases[site]["train"]))
    for site in set(sites) - set(present):
        reason = "the training loss is not finite"
        events.add("site_dropped", round=number, site=site, code="run", reason=reason)
    facts: dict[str, Any] = {}
    if strategy == "fedlppa":
        logits = rng.normal(0, 1, (len(sites), len(sites))) * number / 8
        weights = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        weights = 0.7 * weights + 0.3 * np.eye(len(sites))
        entropy = -(weights * np.log(weights)).sum(axis=1).mean() / np.log(len(sites))
        facts = {
            "affinity": {
                a: dict(zip(sites, map(float, row), strict=True))
                for a, row in zip(sites, weights, strict=True)
            },
            "affinity_entropy": float(entropy),
        }
    events.add(
        "round_finished",
        round=number,
        sites=len(present),
        mean={name: float(np.mean([f[name] for f in found.values()])) for name in _validation(task, 0)},
        loss=float(0.25 + 0.6 * np.exp(-number / 4)),
        seconds=5.3,
        bytes={"up": 39_124 * len(present), "down": 41_300 * len(sites)},
        strategy=facts,
    )


def _report(number: int, site: str, metrics: dict[str, float], loss: float, cases: int) -> dict[str, Any]:
    return {
        "round": number,
        "site": site,
        "cases": cases,
        "metrics": metrics,
        "loss": {"partial": loss * 0.8, "total": loss},
        "seconds": {"train": 1.1},
        "bytes": {"up": 39_124, "down": 41_300},
    }


def _metrics(dice: float, rng: np.random.Generator) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, scale in (("dice", 1.0), ("hd95", 24.0), ("assd", 8.0)):
        value = dice if name == "dice" else scale * (1 - dice)
        value += float(rng.normal(0, 0.005 * scale))
        found |= {name: value, f"{name}_rim": value * 0.93, f"{name}_cup": value * 1.07}
    return found


def _scores(auroc: float, rng: np.random.Generator) -> dict[str, float]:
    """Test metrics of a classifier; a better one is better calibrated too."""
    found = {name: auroc - lower for name, lower in (("balanced_accuracy", 0.12), ("macro_f1", 0.15))}
    found |= {"auroc": auroc, "accuracy": auroc - 0.05, "ece": 0.4 * (1 - auroc), "brier": 1 - auroc}
    found |= {f"auroc_{name}": auroc + shift for name, shift in zip(CLASSES, (-0.05, 0, 0.05), strict=True)}
    return {name: value + float(rng.normal(0, 0.005)) for name, value in found.items()}


def _cards(folder: Path, site: str, rng: np.random.Generator) -> None:
    labels = rng.integers(0, len(CLASSES), TESTED)
    logits = rng.normal(0, 1, (TESTED, len(CLASSES))) + 1.5 * np.eye(len(CLASSES))[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    rows, columns = np.mgrid[:120, :160]

    def image(index: int) -> np.ndarray:
        spot = np.hypot(rows - 60, columns - 80) < 20 + 10 * labels[index]
        return np.where(spot[..., None], (0.4, 0.25, 0.2), (0.85, 0.65, 0.55)).astype(np.float32)

    ids = [f"images/{site}_{index:03}.png" for index in range(TESTED)]
    write_case_cards(folder, ids, probabilities, labels, CLASSES, image)


def _pictures(
    folder: Path, site: str, classes: tuple[str, ...], rng: np.random.Generator, count: int
) -> None:
    listed = []
    rows, columns = np.mgrid[:192, :192] / 192
    for index in range(count):
        centre = rng.uniform(0.4, 0.6, 2)
        radius = np.hypot(rows - centre[0], columns - centre[1])
        truth = np.where(radius < 0.1, 2, np.where(radius < 0.2, 1, 0)).astype(np.uint8)
        prediction = np.roll(truth, (5 * index, -4), (0, 1))
        annotation = np.full_like(truth, 255)
        row = int(centre[0] * 192)
        annotation[row : row + 2] = truth[row : row + 2]
        annotation[10:13, 20:170] = 0
        field = np.clip(1.3 - 1.4 * np.hypot(rows - 0.5, columns - 0.5), 0, 1)[..., None]
        tint = np.array(
            ((0.8, 0.35, 0.2), (0.7, 0.45, 0.3), (0.9, 0.3, 0.25), (0.6, 0.4, 0.2))[len(site) % 4]
        )
        image = (
            field * tint
            + 0.3 * np.exp(-((radius / 0.17) ** 4))[..., None]
            + rng.normal(0, 0.02, (192, 192, 1))
        )
        file = f"{index}-case.png"
        write_picture(folder / file, image, annotation, prediction, truth, classes)
        listed.append({"file": file, "case": f"images/{site}_{index:03}.png", "dice": 0.9 - 0.1 * index})
    write_json(folder / "pictures.json", listed)
