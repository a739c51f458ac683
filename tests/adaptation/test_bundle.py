"""The prompt bundle as a network: the product's own predictions, whole files, the right backbone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_families import IMAGE, TINY

from fedprompt.adaptation.bundle import STATISTICS, load_bundle, prompted_network
from fedprompt.adaptation.network import Network
from fedprompt.adaptation.statistics import collect_statistics
from fedprompt.artifacts import read_arrays, read_json, write_arrays, write_json
from fedprompt.backbones import Backbone, fingerprint, load_backbone, save_backbone
from fedprompt.config import Annotation, BackboneSettings, Study
from fedprompt.config.template import study_toml
from fedprompt.errors import ConfigurationError, DataError
from fedprompt.manifest import Arrays, Scope
from fedprompt.models import PromptedSegmenter, build_model, study_manifest
from fedprompt.training.local import load_arrays, trained_arrays
from fedprompt.training.precision import Precision
from fedprompt.training.segmentation_evaluation import predict
from server.checkpoints import Checkpoint
from server.run_directory import RunDirectory

EMBEDDED = load_backbone(BackboneSettings(), task="segmentation", classes=3)


def study_of(**changes: Any) -> Study:
    return Study(**{"name": "bundled", "seed": 5, "image": {"size": 64}, **changes})


def trained_shared(backbone: Backbone, study: Study) -> Arrays:
    """The shared tensors of a study, each moved from its initial value."""
    model = build_model(backbone, study, Annotation.SCRIBBLE)
    names = study_manifest(model, study.strategy).select(Scope.SHARED).names()
    rng = np.random.default_rng(2)
    initial = trained_arrays(model)
    return {n: (initial[n] + 0.1 * rng.normal(size=initial[n].shape)).astype("f4") for n in names}


def write_run(folder: Path, backbone: Backbone, study: Study) -> Arrays:
    """A run directory with a bundle; returns its shared tensors."""
    model = build_model(backbone, study, Annotation.SCRIBBLE)
    shared = trained_shared(backbone, study)
    checkpoint = Checkpoint(
        round=3,
        study=study.digest(),
        fingerprint=fingerprint(backbone),
        manifest=study_manifest(model, study.strategy),
        sites=["a"],
        shared=shared,
        kept={},
        strategy={},
        strategy_metadata={},
        event={},
    )
    with RunDirectory.create(folder, study) as run:
        run.write_bundle(checkpoint, {"metrics": {"dice": 0.5}})
    return shared


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, EMBEDDED, study_of())
    return folder


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """A copy of the bundle to break, without the run around it."""
    return Path(shutil.copytree(run / "prompts", tmp_path / "bundle"))


def images(side: int, count: int = 4) -> torch.Tensor:
    """Smooth images (count, 3, side, side) in 0 to 1."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")


def balance(backbone: Backbone, side: int) -> None:
    """Lets a random head prefer no class, so that masks have several."""
    if backbone.head is not None and backbone.head.bias is not None:
        with torch.no_grad():
            found = backbone(backbone.preprocess(images(max(32, side))))
            mean = found.mean(dim=(0, 2, 3))
            spread = (found - mean.view(1, -1, 1, 1)).std()
            backbone.head.weight.div_(spread)
            backbone.head.bias.sub_(mean).div_(spread)


def logits(network: Network, shown: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = network.module(network.normalised(shown))
    return found


PROMPTS: dict[str, dict[str, Any]] = {
    "vit": {"tokens": {"count": 3, "blocks": 2}, "modulation": {}},
    "sam": {"class_prompts": {"count": 2, "grid": 3, "rank": 2}, "tokens": {"count": 2, "blocks": 1}},
    "mobilenet-v2": {"universal": {"grid": 3}, "sparsity": {}, "fusion": {"width": 8}, "modulation": {}},
}


@pytest.mark.parametrize("name", ["embedded-unet", *PROMPTS])
def test_the_prediction_is_the_products_for_a_site_that_took_no_part(tmp_path: Path, name: str) -> None:
    if name == "embedded-unet":
        backbone, study, given = EMBEDDED, study_of(), None
    else:
        backbone, given = TINY[name](tmp_path / "source", 3), tmp_path / "backbone"
        balance(backbone, IMAGE[name])
        save_backbone(backbone, given, {})
        size = {"size": max(32, IMAGE[name])}
        study = study_of(
            image=size, backbone={"name": name}, prompts=PROMPTS[name], strategy={"name": "fedavg"}
        )
    shared = write_run(tmp_path / "run", backbone, study)
    network, statistics = load_bundle(tmp_path / "run" / "prompts", backbone=given)
    assert statistics is None

    model = PromptedSegmenter(backbone, study, Annotation.FULL)
    load_arrays(model, shared)
    shown = images(study.image.size)
    found = logits(network, shown)
    probabilities = network.probabilities(found)
    precision = Precision.choose("auto", torch.device("cpu"))
    plain = backbone.preprocess(shown)
    for index in range(len(shown)):
        state = model.encode(plain[index : index + 1])
        expected = predict(model, state, (study.image.size, study.image.size), precision)
        assert np.array_equal(found[index].argmax(dim=0).numpy(), expected)
        assert np.array_equal(probabilities[index].argmax(dim=0).numpy(), expected)
    assert torch.allclose(found.exp().sum(dim=1), torch.ones(()), atol=1e-5)
    assert len(np.unique(found.argmax(dim=1).numpy())) > 1  # else any network would do
    assert not torch.equal(
        found, logits(prompted_network(PromptedSegmenter(backbone, study, Annotation.FULL), study), shown)
    )


def test_a_run_directory_its_bundle_and_a_copy_of_it_are_the_same_network(run: Path, copied: Path) -> None:
    marks = {load_bundle(place)[0].fingerprint for place in (run, run / "prompts", copied)}
    assert len(marks) == 1


def test_what_a_site_keeps_for_itself_has_its_initial_value(run: Path) -> None:
    network, _ = load_bundle(run)
    model: PromptedSegmenter = network.module.model  # type: ignore[assignment]
    assert EMBEDDED.head is not None
    assert torch.equal(model.auxiliary_head.weight, EMBEDDED.head.weight)
    assert not torch.equal(model.head.weight, EMBEDDED.head.weight)
    assert not model.prompts["data_aware"].row.any()  # type: ignore[operator, union-attr]
    assert not model.prompts["sparsity"].kind.any()  # type: ignore[operator, union-attr]
    assert not any(parameter.requires_grad for parameter in network.module.parameters())
    assert not network.module.training
    assert network.size == (64, 64)
    assert network.mean == EMBEDDED.preprocessing.mean


def test_a_model_in_memory_shares_the_backbone_and_keeps_its_prompts(run: Path) -> None:
    study = study_of()
    model = PromptedSegmenter(EMBEDDED, study, Annotation.FULL)
    load_arrays(model, read_arrays(run / "prompts" / "shared.safetensors")[0])
    network = prompted_network(model, study)
    frozen: PromptedSegmenter = network.module.model  # type: ignore[assignment]
    places = {name: tensor.data_ptr() for name, tensor in EMBEDDED.state_dict().items()}
    assert {name: tensor.data_ptr() for name, tensor in frozen.backbone.state_dict().items()} == places
    assert model.head.weight.requires_grad  # training goes on
    before = logits(network, images(64))
    with torch.no_grad():
        model.head.weight.add_(1)
    assert torch.equal(logits(network, images(64)), before)
    assert network.fingerprint == load_bundle(run)[0].fingerprint
    assert network.fingerprint == prompted_network(frozen, study, backbone=fingerprint(EMBEDDED)).fingerprint
    assert network.fingerprint != prompted_network(model, study).fingerprint


def test_a_fully_finetuned_study_brings_its_own_backbone(tmp_path: Path) -> None:
    study = study_of(strategy={"name": "full-finetune"})
    shared = write_run(tmp_path / "run", EMBEDDED, study)
    network, _ = load_bundle(tmp_path / "run")
    model = PromptedSegmenter(EMBEDDED, study, Annotation.FULL)
    load_arrays(model, shared)
    in_memory = prompted_network(model, study)
    assert torch.equal(logits(network, images(64)), logits(in_memory, images(64)))
    assert in_memory.fingerprint == network.fingerprint
    assert not any(parameter.requires_grad for parameter in in_memory.module.parameters())
    weight = next(iter(in_memory.module.model.backbone.parameters()))  # type: ignore[union-attr, operator]
    assert weight.data_ptr() != next(iter(model.backbone.parameters())).data_ptr()  # which trains on


def test_statistics_in_the_bundle_come_with_it_and_others_are_refused(run: Path, copied: Path) -> None:
    network, _ = load_bundle(copied)
    collected = collect_statistics(network, images(64, 8))
    collected.save(copied / STATISTICS)
    found = load_bundle(copied)[1]
    assert found is not None
    assert found.layers.keys() == collected.layers.keys()
    other = Network(EMBEDDED, network.classes, network.mean, network.std, network.size)
    collect_statistics(other, images(64, 8)).save(copied / STATISTICS)
    with pytest.raises(DataError, match=f"statistics of network {network.fingerprint[:12]}"):
        load_bundle(copied)


def test_the_folder_that_the_study_names_is_found_beside_the_bundle(tmp_path: Path) -> None:
    backbone = TINY["embedded-unet"](tmp_path, 3)
    save_backbone(backbone, tmp_path / "own", {})
    study = study_of(backbone={"name": "embedded-unet", "folder": tmp_path / "own"})
    write_run(tmp_path / "run", backbone, study)
    assert (tmp_path / "run" / "study.toml").read_text() == study_toml(study)
    load_bundle(tmp_path / "run")
    shutil.rmtree(tmp_path / "own")
    with pytest.raises(ConfigurationError, match="expected a backbone with fingerprint") as refused:
        load_bundle(tmp_path / "run")  # the one of the package is another
    assert fingerprint(backbone) in str(refused.value)


def test_a_backbone_that_is_nowhere_or_another_is_one_sentence(tmp_path: Path) -> None:
    backbone = TINY["mobilenet-v2"](tmp_path / "source", 3)
    study = study_of(
        backbone={"name": "mobilenet-v2"}, prompts={"modulation": {}}, strategy={"name": "fedavg"}
    )
    write_run(tmp_path / "run", backbone, study)
    with pytest.raises(ConfigurationError, match="expected a folder with backbone mobilenet-v2") as refused:
        load_bundle(tmp_path / "run")
    assert "--backbone FOLDER" in str(refused.value)
    with torch.no_grad():
        next(iter(backbone.parameters())).add_(1)
    save_backbone(backbone, tmp_path / "changed", {})
    with pytest.raises(ConfigurationError, match="expected a backbone with fingerprint"):
        load_bundle(tmp_path / "run", backbone=tmp_path / "changed")


def rewritten(folder: Path, **changes: Any) -> None:
    write_json(folder / "bundle.json", {**read_json(folder / "bundle.json"), **changes})


def without(folder: Path, key: str) -> None:
    write_json(
        folder / "bundle.json", {k: v for k, v in read_json(folder / "bundle.json").items() if k != key}
    )


def with_another_tensor(folder: Path) -> None:
    arrays, metadata = read_arrays(folder / "shared.safetensors")
    arrays["head.bias"] = np.zeros(7, "f4")
    write_arrays(folder / "shared.safetensors", arrays, metadata)


def of_another_round(folder: Path) -> None:
    arrays, metadata = read_arrays(folder / "shared.safetensors")
    write_arrays(folder / "shared.safetensors", arrays, {**metadata, "round": 2})


BROKEN: dict[str, tuple[Callable[[Path], None], type[Exception], str]] = {
    "no tensors": (lambda f: (f / "shared.safetensors").unlink(), DataError, "no such file"),
    "no description": (
        lambda f: (f / "bundle.json").unlink(),
        ConfigurationError,
        "expected a prompt bundle",
    ),
    "another schema": (lambda f: rewritten(f, schema=2), DataError, "schema 1, got schema 2"),
    "no object": (lambda f: write_json(f / "bundle.json", [1]), DataError, "schema 1, got schema None"),
    "a key is gone": (lambda f: without(f, "image_size"), DataError, "image_size: Field required"),
    "an odd value": (lambda f: rewritten(f, image_size=1), DataError, "image.size"),
    "no such prompt": (lambda f: rewritten(f, prompts={"magic": {}}), DataError, "magic"),
    "fewer prompts": (
        lambda f: rewritten(f, prompts={"modulation": {}}, strategy="fedavg"),
        DataError,
        "got others",
    ),
    "no manifest": (lambda f: rewritten(f, manifest=[{}]), DataError, "expected the tensors of bundle.json"),
    "another round": (of_another_round, DataError, "round 3 of study"),
    "another shape": (with_another_tensor, DataError, r"head\.bias"),
    "another backbone": (
        lambda f: rewritten(f, backbone={"name": "embedded-unet", "fingerprint": "0" * 64}),
        ConfigurationError,
        "expected a backbone with fingerprint 0000",
    ),
    "no fingerprint": (
        lambda f: rewritten(f, backbone={"name": "embedded-unet", "fingerprint": "?"}),
        DataError,
        "fingerprint",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_bundle_is_one_sentence_that_names_the_file(copied: Path, case: str) -> None:
    break_it, kind, message = BROKEN[case]
    break_it(copied)
    with pytest.raises(kind, match=message) as refused:
        load_bundle(copied)
    assert "\n" not in str(refused.value)


def test_a_folder_without_a_bundle_says_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="got no such folder"):
        load_bundle(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="got a file"):
        load_bundle(tmp_path / "file")
    with pytest.raises(ConfigurationError, match="got neither"):
        load_bundle(tmp_path)
    RunDirectory.create(tmp_path / "run", study_of()).close()
    with pytest.raises(ConfigurationError, match="a run that has not come to its end"):
        load_bundle(tmp_path / "run")


def test_classification_and_strategies_that_share_nothing_are_refused(tmp_path: Path) -> None:
    backbone = load_backbone(BackboneSettings(), task="classification", classes=3)
    write_run(tmp_path / "lesions", backbone, study_of(task="classification"))
    with pytest.raises(ConfigurationError, match="adaptation is for masks, got one of classification"):
        load_bundle(tmp_path / "lesions")
    write_run(tmp_path / "local", EMBEDDED, study_of(strategy={"name": "local"}))
    with pytest.raises(ConfigurationError, match="with strategy local they stay at their sites"):
        load_bundle(tmp_path / "local")


def test_a_bundle_without_seed_and_annotation_is_one_of_the_first(run: Path, copied: Path) -> None:
    for key in ("seed", "annotation"):
        assert key in read_json(run / "prompts" / "bundle.json")
        without(copied, key)
    assert load_bundle(copied)[0].fingerprint == load_bundle(run)[0].fingerprint
