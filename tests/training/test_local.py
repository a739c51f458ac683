"""The local round: learns, keeps its optimiser, is deterministic, anchors, and refuses NaN."""

import numpy as np
import pytest
import torch

from fedprompt.backbones.base import fingerprint, freeze
from fedprompt.backbones.embedded_unet import EmbeddedUNet
from fedprompt.config import (
    Annotation,
    FedProxOptions,
    LossSettings,
    RoundSettings,
    Study,
    TrainingSettings,
)
from fedprompt.errors import RunError
from fedprompt.models import PromptedSegmenter
from fedprompt.training.local import load_arrays, train_round, trained_arrays
from fedprompt.training.precision import Precision
from fedprompt.training.segmentation import SegmentationObjective
from fedprompt.training.views import View

STUDY = Study(
    seed=1,
    training=TrainingSettings(steps=4, batch_size=2, learning_rate=0.01),
    rounds=RoundSettings(count=4),
    loss=LossSettings(crf=0.1, ramp_up=0.5),
)
BATCHES = [[(0, 0), (1, 0)]] * 4


@pytest.fixture(scope="module")
def backbone() -> EmbeddedUNet:
    torch.manual_seed(0)
    network = EmbeddedUNet(classes=3, widths=(4, 8, 8, 16), decoder_widths=(8, 8))
    freeze(network)
    return network


@pytest.fixture(scope="module")
def views(backbone) -> list[View]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for _ in range(2):
        image = torch.rand(1, 3, 32, 32, generator=generator)
        with torch.no_grad():
            features = backbone.encode(image)
        annotation = torch.full((32, 32), 255)
        annotation[4:20, 4:20] = 1
        annotation[24:] = 0
        made.append(View(features, annotation, image[0]))
    return made


def model_of(backbone) -> PromptedSegmenter:
    return PromptedSegmenter(backbone, STUDY, Annotation.BLOCK)


def one_round(
    backbone, views, arrays=None, optimiser=None, *, study=STUDY, round=1, anchored=(), batches=BATCHES
):
    model = model_of(backbone)
    if arrays is not None:
        load_arrays(model, arrays)
    objective = SegmentationObjective(
        model,
        lambda case, _: views[case],
        study,
        round=round,
        peers_row=torch.ones(1, 8, 8),
        generator=torch.Generator().manual_seed(round),
    )
    return train_round(
        model,
        objective,
        batches,
        study,
        round=round,
        optimiser=optimiser or {},
        anchored=list(anchored),
        precision=Precision(torch.device("cpu"), torch.float32),
    )


def test_rounds_lower_the_loss_and_leave_the_backbone_alone(backbone, views) -> None:
    before = fingerprint(backbone)
    study = STUDY.changed(training=TrainingSettings(batch_size=2, learning_rate=0.05))
    long = BATCHES * 5
    first = result = one_round(backbone, views, study=study, batches=long)
    for number in (2, 3, 4):
        arrays, optimiser = result.arrays, result.optimiser
        result = one_round(backbone, views, arrays, optimiser, study=study, batches=long, round=number)
    assert result.loss["partial_ce"] < 0.5 * first.loss["partial_ce"]
    assert set(first.loss) == {"partial_ce", "crf", "contrast", "total"}
    assert set(result.loss) == {"partial_ce", "crf", "contrast", "pseudo_label", "total"}
    assert result.cases == 2
    assert fingerprint(backbone) == before


def test_the_same_seed_gives_the_same_bytes(backbone, views) -> None:
    one, two = one_round(backbone, views, round=3), one_round(backbone, views, round=3)
    for name in one.arrays:
        assert one.arrays[name].tobytes() == two.arrays[name].tobytes(), name
    for name in one.optimiser:
        assert one.optimiser[name].tobytes() == two.optimiser[name].tobytes(), name


def test_the_optimiser_goes_on_where_it_was(backbone, views) -> None:
    """Two rounds of two steps with the kept state equal one AdamW that takes four steps."""
    study = STUDY.changed(
        loss=LossSettings(crf=0, pseudo_label=0, contrast=0), rounds=RoundSettings(count=10**5)
    )
    half = [[(0, 0), (1, 0)]] * 2
    first = one_round(backbone, views, study=study, batches=half)
    kept = one_round(backbone, views, first.arrays, first.optimiser, study=study, batches=half)
    lost = one_round(backbone, views, first.arrays, {}, study=study, batches=half)
    assert kept.optimiser["step/head.weight"] == 4
    assert lost.optimiser["step/head.weight"] == 2
    whole = one_round(backbone, views, study=study)
    np.testing.assert_allclose(kept.arrays["head.bias"], whole.arrays["head.bias"], atol=3e-3)
    assert np.abs(kept.arrays["head.weight"] - lost.arrays["head.weight"]).max() > 1e-4


def test_fedprox_pulls_shared_tensors_to_what_was_received(backbone, views) -> None:
    start = trained_arrays(model_of(backbone))

    def moved(mu: float) -> float:
        study = STUDY.changed(strategy=FedProxOptions(mu=mu))
        result = one_round(backbone, views, study=study, anchored=["head.weight"])
        return float(np.abs(result.arrays["head.weight"] - start["head.weight"]).mean())

    assert moved(1000.0) < 0.5 * moved(1e-6)


def test_prompt_maps_and_biases_do_not_decay(backbone, views) -> None:
    blank = [View(v.features, torch.full_like(v.target, 255), v.guide) for v in views]
    study = STUDY.changed(
        loss=LossSettings(crf=0, pseudo_label=0, contrast=0),
        training=TrainingSettings(steps=4, batch_size=2, learning_rate=0.01, weight_decay=0.5),
    )
    start = trained_arrays(model_of(backbone))
    result = one_round(backbone, blank, study=study)
    np.testing.assert_array_equal(result.arrays["prompts.universal.map"], start["prompts.universal.map"])
    np.testing.assert_array_equal(result.arrays["head.bias"], start["head.bias"])
    assert np.abs(result.arrays["head.weight"]).sum() < np.abs(start["head.weight"]).sum()


def test_a_loss_that_is_not_finite_is_refused_with_a_public_sentence(backbone, views) -> None:
    broken = [View((*v.features[:-1], v.features[-1] * torch.nan), v.target, v.guide) for v in views]
    with pytest.raises(RunError) as caught:
        one_round(backbone, broken)
    assert caught.value.public == "the training loss is not finite"
