"""Every backbone family with every prompt that fits it: identity, gradients, scopes, and the way to disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_families import IMAGE, TINY

from fedprompt.artifacts import read_arrays, write_arrays
from fedprompt.backbones import Backbone, fingerprint
from fedprompt.config import Annotation, PromptSettings, Study
from fedprompt.families import FAMILIES, Task
from fedprompt.manifest import Scope
from fedprompt.models import Branches, PromptedClassifier, PromptedModel, Scores, build_model
from fedprompt.training.local import load_arrays, trained_arrays

MAPS = {"universal", "data_aware", "sparsity"}
SMALL = {
    "universal": {"grid": 3},
    "data_aware": {"grid": 3},
    "fusion": {"width": 8},
    "generated": {"width": 4},
    "tokens": {"count": 3, "blocks": 2},
    "domain": {"count": 3, "blocks": 2, "domains": 2, "adapter": 4},
    "class_prompts": {"count": 2, "grid": 3, "rank": 2},
}


def rows() -> Iterator[tuple[str, Task, str]]:
    for name, entry in FAMILIES.items():
        for task, prompts in entry.prompts.items():
            yield from ((name, task, prompt) for prompt in sorted(prompts))


ROWS = list(rows())


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, Task], Backbone]:
    return {
        (name, task): TINY[name](tmp_path_factory.mktemp(name), 3 if task == "segmentation" else None)
        for name, entry in FAMILIES.items()
        for task in entry.prompts
    }


def study_of(name: str, task: Task, prompt: str) -> Study:
    kinds = {prompt, "fusion"} if prompt in MAPS else {prompt}
    if name in ("sam", "sam2"):
        kinds.add("class_prompts")
    return Study(
        task=task,
        classes=("a", "b", "c"),
        backbone={"name": name},
        prompts=PromptSettings.model_validate({kind: SMALL.get(kind, {}) for kind in kinds}),
        strategy={"name": "fedavg"},
    )


def images(name: str, batch: int = 2) -> torch.Tensor:
    side = IMAGE[name]
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def logits(found: Branches | Scores) -> torch.Tensor:
    return found.logits if isinstance(found, Scores) else torch.stack([found.main, found.auxiliary])


def frozen_logits(model: PromptedModel, x: torch.Tensor) -> torch.Tensor:
    """What the frozen backbone says without any prompt, by the shortest way through its own methods."""
    backbone = model.backbone
    features = backbone.encode(x)
    if hasattr(backbone, "text_features"):
        from fedprompt.prompts.text import fixed_text

        return backbone.logits(backbone.pool(features), fixed_text(backbone, ("a", "b", "c")))
    if "class_prompts" in model.prompts:
        sparse, dense = model.prompts["class_prompts"]()
        return backbone.decode_masks(features, torch.zeros_like(sparse), torch.zeros_like(dense))
    if not isinstance(model, PromptedClassifier):
        return backbone.head(backbone.decode(features))
    pooled = backbone.pool(features)
    return model.head(torch.nn.functional.layer_norm(pooled, pooled.shape[1:]))


def stirred(model: PromptedModel, seed: int = 8) -> None:
    """Moves every trained tensor off its initial value, where zeros block gradients."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)


def model_on(backbones, row: tuple[str, Task, str]) -> PromptedModel:
    name, task, prompt = row
    return build_model(backbones[name, task], study_of(name, task, prompt), Annotation.BOX)


@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_the_initial_model_is_the_frozen_backbone(backbones, row) -> None:
    model, x = model_on(backbones, row), images(row[0])
    if row[1] == "classification" and model.head_scopes:
        torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found, expected = logits(model(model.encode(x))), frozen_logits(model, x)
    assert (found - expected).abs().max() < 1e-5
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_gradients_reach_the_prompts_and_nothing_of_the_backbone(backbones, row) -> None:
    backbone = backbones[row[0], row[1]]
    before = fingerprint(backbone)
    model = model_on(backbones, row)
    for seed in (5, 8):  # two points: at one, all of a ReLU may be off
        stirred(model, seed)
        found = logits(model(model.encode(images(row[0]))))
        weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
        (found * weights).sum().backward()
    for name, parameter in model.named_parameters():
        if name.startswith("backbone."):
            assert parameter.grad is None, name
        elif not name.endswith("key.bias"):  # a constant on all keys cancels in the softmax, up to the ReLU
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    optimiser.step()
    assert fingerprint(backbone) == before


@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_the_manifest_lists_what_trains_and_arrays_survive_the_disk(backbones, row, tmp_path: Path) -> None:
    model, x = model_on(backbones, row), images(row[0])
    stirred(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    manifest = model.manifest()
    assert set(manifest.select(Scope.SHARED, Scope.SITE, Scope.PERSONAL).names()) == trained
    assert all(name.startswith("prompts.") for name in manifest.select(Scope.CONSTANT).names())
    arrays = trained_arrays(model)
    manifest.select(Scope.SHARED, Scope.SITE, Scope.PERSONAL).check(arrays)
    write_arrays(tmp_path / "prompts.safetensors", arrays)
    again = model_on(backbones, row)
    load_arrays(again, read_arrays(tmp_path / "prompts.safetensors")[0])
    with torch.no_grad():
        np.testing.assert_array_equal(
            logits(model(model.encode(x))).numpy(), logits(again(again.encode(x))).numpy()
        )


def test_the_matrix_covers_every_family() -> None:
    assert {name for name, _, _ in ROWS} == set(FAMILIES) == set(TINY)
