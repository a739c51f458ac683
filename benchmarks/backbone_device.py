"""Images per second and peak memory on this machine."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from backbone_models import (
    ENCODERS,
    Prompts,
    Row,
    make_study,
    random_backbone,
)

from fedprompt.config import Annotation
from fedprompt.families import Task
from fedprompt.models import PromptedClassifier, build_model
from fedprompt.training.classification import ClassificationObjective
from fedprompt.training.local import train_round
from fedprompt.training.precision import Precision
from fedprompt.training.segmentation import SegmentationObjective
from fedprompt.training.views import View

# With tokens the encoder's last blocks are part of every step.
DEVICE_PROMPTS: dict[str, dict[str, Prompts]] = {
    "vit": {name: {name: {}} for name in ("generated", "tokens", "domain")},
    "sam": {
        "class-prompts": {"class-prompts": {}},
        "class-prompts + tokens": {"class-prompts": {}, "tokens": {}},
    },
}


def device_rows(names: list[str], batch: int, repeat: int) -> list[Row]:
    """Speed and peak memory per backbone, precision and prompts, each in a process of its own."""
    precisions = ("fp32", "bf16") if torch.cuda.is_available() else ("fp32",)
    rows = []
    for name in names:
        for label in DEVICE_PROMPTS[name]:
            for precision in precisions:
                command = [sys.executable, "-W", "ignore", sys.argv[0], "one", name, label, precision]
                command += ["--batch", str(batch), "--repeat", str(repeat)]
                command += ["--threads", str(torch.get_num_threads())]
                result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                rows.append(json.loads(result.stdout.splitlines()[-1]))
    return rows


def one_device_row(name: str, label: str, wanted: str, batch: int, repeat: int) -> Row:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = Precision.choose(wanted, device)  # type: ignore[arg-type]
    task: Task = "segmentation" if name == "sam" else "classification"
    study = make_study(
        task,
        name,
        DEVICE_PROMPTS[name][label],
        training={"steps": 1, "batch-size": batch},
        strategy={"name": "fedavg"},
    )
    backbone = random_backbone(name, task, len(study.classes)).to(device)
    model = build_model(backbone, study, Annotation.SCRIBBLE).to(device)
    side = backbone.preprocessing.size
    generator = torch.Generator().manual_seed(0)

    def encode(count: int) -> tuple[torch.Tensor, ...]:
        images = torch.randn(count, 3, side, side, generator=generator).to(device)
        with torch.no_grad(), precision.autocast(), precision.memory(count):
            return model.encode(images)

    encode_one = _timed(lambda: encode(1), device, repeat)
    encode_batch = _timed(lambda: encode(batch), device, repeat)
    encode_peak = _peak_bytes(device)
    states = [encode(1) for _ in range(batch)]
    _reset_peak(device)
    targets = torch.randint(0, len(study.classes), (batch, side, side), generator=generator).to(device)

    def view(case: int, _view: int) -> View:
        target = targets[case] if task == "segmentation" else targets[case, 0, 0]
        return View(states[case], target, torch.zeros(3, 64, 64, device=device))

    objective: Any
    if isinstance(model, PromptedClassifier):
        prior = torch.zeros(len(study.classes), device=device)
        rng = np.random.default_rng(0)
        objective = ClassificationObjective(model, view, study, log_prior=prior, peers_row=None, rng=rng)
    else:
        objective = SegmentationObjective(
            model,  # type: ignore[arg-type]
            view,
            study,
            round=2,  # of 15: pseudo-labels have a weight
            peers_row=None,
            generator=generator,
        )

    def step() -> None:
        batches = [[(case, 0) for case in range(batch)]]
        with precision.memory(batch):
            train_round(
                model,
                objective,
                batches,
                study,
                round=2,
                optimiser={},
                anchored=[],
                precision=precision,
            )

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "backbone": ENCODERS[name][0],
        "side": side,
        "precision": wanted if device.type == "cuda" else "fp32",
        "prompts": label,
        "batch": batch,
        "encode_one": 1 / encode_one,
        "encode_batch": batch / encode_batch,
        "encode_peak": encode_peak,
        "step": batch / _timed(step, device, repeat),
        "step_peak": _peak_bytes(device),
    }


def _timed(work: Callable[[], object], device: torch.device, repeat: int) -> float:
    """Median seconds of a call after one that warms up."""
    times = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return median(times[1:])


def _peak_bytes(device: torch.device) -> int:
    """On CUDA what tensors took at most since the last reset; on a CPU the process's peak up to now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def print_device(rows: list[Row]) -> None:
    print(f"{rows[0]['device']}; images per second; peak memory with the backbone's weights")
    print("| backbone | precision | prompts | batch | encode, 1 | encode, batch | peak | step | peak |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['backbone']}, {row['side']} px | {row['precision']} | {row['prompts']} | {row['batch']} "
            f"| {row['encode_one']:.3g} | {row['encode_batch']:.3g} | {row['encode_peak'] / 2**30:.2f} GiB "
            f"| {row['step']:.3g} | {row['step_peak'] / 2**30:.2f} GiB |"
        )
