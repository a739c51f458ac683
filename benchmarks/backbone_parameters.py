"""Parameters and traffic of every family."""

from __future__ import annotations

import torch
from backbone_models import (
    ENCODERS,
    OTHERS,
    Prompts,
    Row,
    make_study,
    random_backbone,
)

from fedprompt.backbones.base import Backbone
from fedprompt.config import PHANTOM_CLASSES, Annotation, Study
from fedprompt.families import Task, default_prompts, family
from fedprompt.manifest import Scope
from fedprompt.models import build_model, study_manifest

TASKS: tuple[Task, ...] = ("segmentation", "classification")


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


# With tokens the encoder's last blocks are part of every step.
DEVICE_PROMPTS: dict[str, dict[str, Prompts]] = {
    "vit": {name: {name: {}} for name in ("generated", "tokens", "domain")},
    "sam": {
        "class-prompts": {"class-prompts": {}},
        "class-prompts + tokens": {"class-prompts": {}, "tokens": {}},
    },
}
