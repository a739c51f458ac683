"""What foundation backbones cost: the feature cache at ViT-B/16, parameters and traffic per family, devices.

    python benchmarks/backbones.py cache
    python benchmarks/backbones.py parameters
    python benchmarks/backbones.py device --backbones vit,sam

All weights are random: time, memory and numbers of parameters do not depend on them, and no hub is needed.
Each subcommand prints a table, or with `--json` the same rows as JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers

from fedprompt.backbones.base import Backbone, freeze
from fedprompt.config import PHANTOM_CLASSES, Annotation, Study, study_from_mapping
from fedprompt.data.cache import FeatureCache
from fedprompt.data.federation import read_federation
from fedprompt.data.phantoms import write_phantoms
from fedprompt.families import Task, backbone_class, default_prompts, family
from fedprompt.manifest import Scope
from fedprompt.models import PromptedClassifier, build_model, study_manifest
from fedprompt.training import Session, Workspace
from fedprompt.training.classification import ClassificationObjective
from fedprompt.training.local import train_round
from fedprompt.training.precision import Precision
from fedprompt.training.segmentation import SegmentationObjective
from fedprompt.training.views import View

Row = dict[str, Any]
Prompts = dict[str, dict[str, Any]]  # tables of the study

# The usual size of every family: the defaults of transformers, but DINOv2 as published.
ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViT-B/16", "ViT", {}),
    "dinov2": ("DINOv2-B/14", "Dinov2", {"image_size": 518}),
    "clip": ("CLIP ViT-B/32", "CLIP", {}),
    "sam": ("SAM ViT-B", "Sam", {}),
    "sam2": ("SAM 2 Hiera-tiny", "Sam2", {}),
    "mobilenet-v2": ("MobileNetV2 1.0", "MobileNetV2", {}),
    "resnet": ("ResNet-50", "ResNet", {}),
    "convnext": ("ConvNeXt-tiny", "ConvNext", {}),
}
OTHERS = {
    "embedded-unet": "embedded U-Net",
    "monai-unet": "MONAI UNet",
    "swin-unetr": "MONAI SwinUNETR (width 24)",
}
# Prompts of the cache benchmark, all of classification. By default a step with tokens sees a part of the
# patches, with and without the cache; the last row sees all.
CACHED: dict[str, Prompts] = {
    "generated": {"generated": {}},
    "universal + data-aware + fusion": {"universal": {}, "data-aware": {}, "fusion": {}},
    "tokens in the last 4 blocks": {"tokens": {"blocks": 4}},
    "the same, all patches in each step": {"tokens": {"blocks": 4, "keep": 1.0}},
}
TASKS: tuple[Task, ...] = ("segmentation", "classification")
BATCH = 8


def make_study(task: str, name: str, prompts: Prompts, **tables: Any) -> Study:
    values = {"name": "benchmark", "task": task, "backbone": {"name": name}, "prompts": prompts}
    return study_from_mapping({**values, **tables}, "benchmark")


def random_network(name: str) -> Any:
    """The network of transformers at its usual size, as its own initialisation draws it."""
    _, prefix, options = ENCODERS[name]
    config = getattr(transformers, f"{prefix}Config")(**options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = {"add_pooling_layer": False} if name == "vit" else {}  # as the family loads it
        return getattr(transformers, f"{prefix}Model")(config, **options)


class Words:
    """Stands for CLIP's tokenizer, to count a text context: every word is one token, as in "a photo of a"."""

    def get_vocab(self) -> dict[str, int]:
        return {}

    def __call__(self, texts: list[str], **_options: Any) -> dict[str, torch.Tensor]:
        split = [["<start>", *text.split(), "<end>"] for text in texts]
        known = {word: i for i, word in enumerate(sorted({w for words in split for w in words}))}
        length = max(map(len, split))
        ids = [[known[w] for w in words] + [0] * (length - len(words)) for words in split]
        mask = [[1] * len(words) + [0] * (length - len(words)) for words in split]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def random_backbone(name: str, task: Task, classes: int) -> Backbone:
    """A frozen backbone of the usual size with random weights; segmentation gets a new decoder."""
    found: Any = backbone_class(name)
    if name not in ENCODERS:
        backbone = found(classes=classes)
    elif name == "clip":
        backbone = found(random_network(name), found.usual, Words())
    else:
        backbone = found(random_network(name), found.usual, classes if task == "segmentation" else None)
    freeze(backbone)
    return backbone


# ---------------------------------------------------------------------------------------------------- cache


class Switched(FeatureCache):
    """Computes every feature anew while it is off."""

    on = True

    def get(self, key, compute):
        return super().get(key, compute) if self.on else compute()


class Unmapped(FeatureCache):
    """Opens and maps the file at every access, as a process does that has just started."""

    def get(self, key, compute):
        self._maps.clear()
        return super().get(key, compute)


def cache_rows(images: int, pairs: int, views: int) -> list[Row]:
    """Local epochs over one site's images: features computed anew, from memory, and from the disk.

    `disk` maps every file again at every access, with no memory for features; `restarted` is the first epoch
    of a process that finds the files of an earlier one, so that it also reads and augments the images.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        random_network("vit").save_pretrained(folder / "vit")
        write_phantoms(folder / "sites", seed=0, size=224, limit=images, task="classification")
        return [
            {"prompts": label, **_epochs(prompts, folder, images, pairs, views)}
            for label, prompts in CACHED.items()
        ]


def _epochs(prompts: Prompts, folder: Path, images: int, pairs: int, views: int) -> Row:
    study = make_study(
        "classification",
        "vit",
        prompts,
        backbone={"name": "vit", "folder": str(folder / "vit")},
        image={"size": 224},
        training={"steps": images // BATCH, "batch-size": BATCH, "views": views},
    )
    site = read_federation(folder / "sites", study)[0]
    kept = folder / "features"
    workspace = Workspace.open(study)

    def opened(cache: FeatureCache) -> Session:
        session = Session(study, site, replace(workspace, cache=cache), simulate=True)
        assert session.counts.train == images, f"--images: expected at most {session.counts.train}"
        return session

    def epoch(session: Session, number: int) -> float:
        initial = session.initial()
        start = time.perf_counter()
        session.train(initial, {}, round=number, peers={})
        return time.perf_counter() - start

    switched = Switched(workspace.cache.limit)
    memory, disk = opened(switched), opened(Unmapped(0, folder=kept))
    first = {"first_memory": epoch(memory, 1), "first_disk": epoch(disk, 1)}
    for session in (memory, disk):
        epoch(session, 2)  # warm
    times = []
    for number in range(3, 3 + pairs):
        switched.on = False
        without = epoch(memory, number)
        switched.on = True
        restarted = epoch(opened(FeatureCache(0, folder=kept)), number)
        times.append((without, epoch(memory, number), epoch(disk, number), restarted))
    columns = dict(zip(("without", "memory", "disk", "restarted"), zip(*times, strict=True), strict=True))
    row: Row = {"images": images, **first, **{name: median(values) for name, values in columns.items()}}
    for name in ("memory", "disk", "restarted"):
        ratios = sorted(a / b for a, b in zip(columns["without"], columns[name], strict=True))
        row[f"{name}_ratio"] = [median(ratios), ratios[0], ratios[-1]]
    files = list(kept.glob("*.safetensors"))
    row["stored_bytes_per_view"] = sum(file.stat().st_size for file in files) // len(files)
    for file in files:
        file.unlink()
    return row


def print_cache(rows: list[Row]) -> None:
    print(f"{rows[0]['images']} images per epoch; first: it fills the cache; ratios against `without`, range")
    print("| prompts | without | first, memory | first, disk | memory | disk | restarted | kB per view |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        sides = [
            f"{row[name] * 1e3:.0f} ms, {ratio[0]:.3g}x ({ratio[1]:.3g} to {ratio[2]:.3g})"
            for name in ("memory", "disk", "restarted")
            for ratio in [row[f"{name}_ratio"]]
        ]
        firsts = f"{row['without']:.2f} s | {row['first_memory']:.2f} s | {row['first_disk']:.2f} s"
        size = row["stored_bytes_per_view"] / 1e3
        print(f"| {row['prompts']} | {firsts} | {' | '.join(sides)} | {size:.0f} |")


# ----------------------------------------------------------------------------------------------- parameters


def parameter_rows() -> list[Row]:
    """What trains and what travels, for every family, task and a choice of prompts."""
    rows = []
    for name in (*ENCODERS, *OTHERS):
        for task in TASKS:
            if task not in family(name).prompts:
                continue
            classes = len(PHANTOM_CLASSES[task])
            # Shapes without numbers; but the context of CLIP is a copy of numbers, and MONAI reads some.
            with torch.device("cpu" if name == "clip" or name in OTHERS else "meta"):
                backbone = random_backbone(name, task, classes)
            for prompts in _choices(name, task):
                strategy = {"name": "fedlppa" if "data_aware" in prompts else "fedavg"}
                tables: Prompts = {prompt: {} for prompt in prompts}
                rows.append(_parameters(backbone, make_study(task, name, tables, strategy=strategy)))
    return rows


def _choices(name: str, task: Task) -> list[tuple[str, ...]]:
    """The default prompts of a family first, then others that fit."""
    fitting = family(name).prompts[task]
    needed = ("class_prompts",) if "class_prompts" in fitting else ()
    choices = [default_prompts(name, task), ("tokens", *needed), ("domain", *needed)]
    if task == "classification":
        choices += [("generated",), ("text",), ("universal", "data_aware", "fusion")]
    return list(dict.fromkeys(prompts for prompts in choices if fitting.issuperset(prompts)))


def _parameters(backbone: Backbone, study: Study) -> Row:
    model = build_model(backbone, study, Annotation.SCRIBBLE)
    names = dict(model.named_parameters())
    manifest = study_manifest(model, study.strategy)
    sizes = {scope.value: manifest.select(scope).size() for scope in Scope}
    trained = sum(names[spec.name].numel() for spec in manifest if spec.name in names)
    frozen = sum(parameter.numel() for parameter in backbone.parameters())
    return {
        "backbone": ENCODERS[backbone.name][0] if backbone.name in ENCODERS else OTHERS[backbone.name],
        "task": study.task,
        "prompts": list(study.prompts.used()),
        "strategy": study.strategy.name,
        "parameters": frozen,
        "trained": trained,
        "percent": 100 * trained / frozen,
        "scopes": {scope: size for scope, size in sizes.items() if size},
        "bytes_up": manifest.select(Scope.SHARED, Scope.SITE).nbytes(),
    }


def print_parameters(rows: list[Row]) -> None:
    print("| backbone | parameters | task | prompts | trained | share | up per site and round |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        prompts = " + ".join(name.replace("_", "-") for name in row["prompts"])
        print(
            f"| {row['backbone']} | {row['parameters']:,} | {row['task']}, {row['strategy']} | {prompts} | "
            f"{row['trained']:,} | {row['percent']:.2g} % | {row['bytes_up'] / 1e3:.0f} kB |"
        )


# --------------------------------------------------------------------------------------------------- device

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
                command = [sys.executable, "-W", "ignore", __file__, "one", name, label, precision]
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["cache", "parameters", "device", "one"])
    parser.add_argument("one", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--images", type=int, default=16, help="cache: images of an epoch, multiple of 8")
    parser.add_argument("--pairs", type=int, default=3, help="cache: repetitions")
    parser.add_argument("--views", type=int, default=1, help="cache: augmented views per image")
    parser.add_argument("--backbones", default="vit", help="device: some of vit,sam")
    parser.add_argument("--batch", type=int, default=8 if torch.cuda.is_available() else 2, help="device")
    parser.add_argument("--repeat", type=int, default=3, help="device: calls per median")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    if options.what == "one":
        print(json.dumps(one_device_row(*options.one, options.batch, options.repeat)))
        return
    if options.what == "cache":
        rows, show = cache_rows(options.images, options.pairs, options.views), print_cache
    elif options.what == "parameters":
        rows, show = parameter_rows(), print_parameters
    else:
        rows, show = device_rows(options.backbones.split(","), options.batch, options.repeat), print_device
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        show(rows)


if __name__ == "__main__":
    main()
