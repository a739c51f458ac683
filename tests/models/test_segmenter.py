"""The prompted segmenter: identity at first, gradients in prompts alone, scopes by strategy."""

import pytest
import torch

from fedprompt.backbones.base import fingerprint, freeze
from fedprompt.backbones.embedded_unet import EmbeddedUNet
from fedprompt.config import (
    Annotation,
    FedAvgOptions,
    FedLPPAOptions,
    FullFinetuneOptions,
    FusionOptions,
    LocalOptions,
    ModulationOptions,
    PromptSettings,
    Study,
    UniversalOptions,
)
from fedprompt.manifest import Scope
from fedprompt.models import PromptedSegmenter, study_manifest


@pytest.fixture(scope="module")
def backbone() -> EmbeddedUNet:
    generator = torch.Generator().manual_seed(7)
    network = EmbeddedUNet(classes=3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    freeze(network)
    return network


def images(batch: int = 2, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def model_of(
    backbone: EmbeddedUNet,
    annotation: Annotation,
    prompts: PromptSettings | None = None,
    strategy: str = "fedlppa",
) -> PromptedSegmenter:
    study = Study(seed=3, prompts=prompts or PromptSettings.all(), strategy={"name": strategy})
    return PromptedSegmenter(backbone, study, annotation)


SETTINGS = {
    "all": PromptSettings.all(),
    "fusion": PromptSettings(universal=UniversalOptions(grid=5), fusion=FusionOptions(width=16)),
    "modulation": PromptSettings(modulation=ModulationOptions()),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("size", [(64, 64), (96, 32)])
def test_the_initial_model_is_the_frozen_backbone(backbone, name, size) -> None:
    model = model_of(backbone, Annotation.BOX, SETTINGS[name], "fedavg")
    x = images(2, *size)
    with torch.no_grad():
        features = backbone.encode(x)
        branches = model(features, peers_row=torch.randn(1, 8, 8) if name == "all" else None)
        expected = backbone.head(backbone.decode(features))
    assert torch.equal(branches.main, expected)
    assert torch.equal(branches.auxiliary, expected)


def test_gradients_reach_every_trained_tensor_and_no_other(backbone) -> None:
    before = fingerprint(backbone)
    model = model_of(backbone, Annotation.POINT)
    with torch.no_grad():  # leave the point where the zero projection blocks gradients
        model.prompts["fusion"].project.weight.normal_(std=0.1)
        model.prompts["fusion"].gamma_spatial.fill_(0.5)
        model.prompts["fusion"].gamma_channel.fill_(0.5)
    branches = model(backbone.encode(images()))
    (branches.main.square().mean() + branches.auxiliary.square().mean()).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("backbone."):
            assert parameter.grad is None, name
        elif not name.endswith("key.bias"):  # a constant on all keys cancels in the softmax, up to the ReLU
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    assert fingerprint(backbone) == before


def test_the_own_row_and_the_annotation_kind_change_the_output(backbone) -> None:
    def output(annotation: Annotation, row: float) -> torch.Tensor:
        model = model_of(backbone, annotation)
        with torch.no_grad():
            model.prompts["fusion"].project.weight.fill_(0.1)
            model.prompts["data_aware"].row.fill_(row)
            return model(backbone.encode(images())).main

    base = output(Annotation.POINT, 0.0)
    assert not torch.allclose(base, output(Annotation.POINT, 1.0))
    assert not torch.allclose(base, output(Annotation.SCRIBBLE, 0.0))
    assert torch.equal(base, output(Annotation.POINT, 0.0))


def test_a_batch_gives_what_single_images_give(backbone) -> None:
    model = model_of(backbone, Annotation.POINT)
    with torch.no_grad():
        model.prompts["fusion"].project.weight.fill_(0.1)
        x = images(3)
        together = model(backbone.encode(x)).probabilities()
        single = torch.cat([model(backbone.encode(x[i : i + 1])).probabilities() for i in range(3)])
    torch.testing.assert_close(together, single, atol=1e-5, rtol=1e-4)


def test_scopes_by_strategy(backbone) -> None:
    model = model_of(backbone, Annotation.POINT)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    declared = study_manifest(model, FedLPPAOptions())
    assert set(declared.select(Scope.SHARED, Scope.SITE).names()) == trained
    assert set(declared.select(Scope.SITE).names()) == {
        "prompts.data_aware.row",
        "auxiliary_head.weight",
        "auxiliary_head.bias",
    }
    assert declared.select(Scope.CONSTANT).names() == ["prompts.sparsity.kind"]
    assert set(study_manifest(model, FedAvgOptions()).select(Scope.SHARED).names()) == trained
    assert set(study_manifest(model, LocalOptions()).select(Scope.PERSONAL).names()) == trained
    demoted = study_manifest(model, FedLPPAOptions(site_scope="personal"))
    assert demoted.select(Scope.PERSONAL).names() == declared.select(Scope.SITE).names()
    assert not demoted.select(Scope.SITE).names()


def test_full_finetuning_trains_a_copy_of_the_backbone_but_not_its_head_or_statistics(backbone) -> None:
    before = fingerprint(backbone)
    model = model_of(backbone, Annotation.POINT, strategy="full-finetune")
    shared = study_manifest(model, FullFinetuneOptions()).select(Scope.SHARED).names()
    assert "backbone.stages.0.0.weight" in shared
    assert not [n for n in shared if n.startswith("backbone.head")]
    model.backbone.stages[0][0].weight.data.add_(1)
    model(model.backbone.encode(images()))
    assert fingerprint(backbone) == before


def test_the_embedded_backbone_is_prompted_with_at_most_five_percent_of_its_parameters() -> None:
    network = EmbeddedUNet(classes=3)
    freeze(network)
    model = model_of(network, Annotation.POINT)
    trained = study_manifest(model, FedLPPAOptions()).select(Scope.SHARED, Scope.SITE).size()
    assert trained <= 0.05 * sum(p.numel() for p in network.parameters())
