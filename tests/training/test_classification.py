"""The classification step: what it sees of the patches, how mixup mixes, and that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_families import TINY

from fedprompt.backbones import Backbone
from fedprompt.config import Annotation, Study
from fedprompt.models import PromptedClassifier, build_model
from fedprompt.training.classification import ClassificationObjective, thinned
from fedprompt.training.classification_losses import log_prior
from fedprompt.training.local import train_round
from fedprompt.training.precision import Precision
from fedprompt.training.views import View

CLASSES = ("a", "b", "c")
DOMAIN = {"domain": {"count": 2, "blocks": 2, "domains": 2, "adapter": 4}}


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return TINY["vit"](tmp_path_factory.mktemp("vit"), None)


def study_of(prompts: dict[str, object]) -> Study:
    return Study(
        task="classification",
        classes=CLASSES,
        backbone={"name": "vit"},
        prompts=prompts,
        training={"learning-rate": 0.02, "batch-size": 6},
    )


def views_of(model: PromptedClassifier) -> list[View]:
    """Six cases of three classes whose colour tells the class, in two domains."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for case in range(6):
        image = 0.1 * torch.randn(1, 3, 32, 32, generator=generator)
        image[:, case % 3] += 1.5
        with torch.no_grad():
            made.append(View(model.encode(image), torch.tensor(case % 3), torch.zeros(0), case % 2))
    return made


def objective_of(model: PromptedClassifier, study: Study, views: list[View], seed: int = 0):
    return ClassificationObjective(
        model,
        lambda case, _: views[case],
        study,
        log_prior=log_prior([0, 1, 2], 3),
        peers_row=None,
        rng=np.random.default_rng(seed),
    )


@pytest.mark.parametrize(
    "prompts", [{}, {"generated": {}}, {"tokens": {"count": 2, "blocks": 2}}, DOMAIN], ids=str
)
def test_a_round_learns_what_the_colour_tells(vit: Backbone, prompts: dict[str, object]) -> None:
    study = study_of(prompts)
    model = build_model(vit, study, Annotation.FULL)
    assert isinstance(model, PromptedClassifier)
    views = views_of(model)
    batches = [[(case, 0) for case in range(6)]] * 60
    trained = train_round(
        model,
        objective_of(model, study, views),
        batches,
        study,
        round=1,
        optimiser={},
        anchored=[],
        precision=Precision(torch.device("cpu"), torch.float32),
    )
    right = [int(model.probabilities(v.features).argmax()) == int(v.target) for v in views]
    assert all(right)
    assert trained.loss["total"] < 1.0
    assert ("mixup" in trained.loss) == ("domain" in prompts)


def test_mixup_mixes_states_domains_and_labels_by_the_same_share(
    vit: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of({"domain": {**DOMAIN["domain"], "keep": 1.0}})
    model = build_model(vit, study, Annotation.FULL)
    assert isinstance(model, PromptedClassifier)
    views = views_of(model)
    seen = {}
    objective = objective_of(model, study, views, seed=4)
    plain = model.forward

    def forward(state, *, domain_weights=None, peers_row=None):
        seen["state"], seen["weights"] = state[0], domain_weights
        return plain(state, domain_weights=domain_weights, peers_row=peers_row)

    monkeypatch.setattr(model, "forward", forward)
    monkeypatch.setattr(objective, "_cross_entropy", lambda _, target: seen.setdefault("target", target))
    batch = [(case, 0) for case in range(6)]
    objective(batch)
    seen.clear()
    objective(batch)
    rng = np.random.default_rng(4)
    share, order = rng.beta(0.2, 0.2), rng.permutation(6)
    states = torch.cat([v.features[0] for v in views])
    expected = share * states + (1 - share) * states[torch.from_numpy(order)]
    torch.testing.assert_close(seen["state"], expected)
    for row, (one, other) in enumerate(zip(range(6), order, strict=True)):
        weights, target = torch.zeros(2), torch.zeros(3)
        for case, part in ((one, share), (int(other), 1 - share)):
            weights[case % 2] += part
            target[case % 3] += part
        torch.testing.assert_close(seen["weights"][row], weights)
        torch.testing.assert_close(seen["target"][row], target)


def test_thinning_keeps_the_class_token_and_a_square_of_patches_of_each_image() -> None:
    hidden = torch.arange(2 * 17 * 3.0).reshape(2, 17, 3)
    found = thinned(hidden, 1, 0.25, np.random.default_rng(0))
    assert found.shape == (2, 5, 3)
    assert torch.equal(found[:, 0], hidden[:, 0])
    for image in range(2):
        rows = {tuple(row.tolist()) for row in found[image, 1:]}
        assert len(rows) == 4
        assert rows <= {tuple(row.tolist()) for row in hidden[image, 1:]}
    assert torch.equal(thinned(hidden, 1, 1.0, np.random.default_rng(0)), hidden)
    assert not torch.equal(found[0, 1:] - hidden[0, 0], found[1, 1:] - hidden[1, 0])


def test_a_site_without_a_class_does_not_push_it_down(vit: Backbone) -> None:
    """With the prior in the loss, the missing class keeps a higher logit than without it."""

    def bias(balance: float) -> float:
        study = study_of({}).changed(
            loss={"balance": balance}, training={"learning-rate": 0.2, "weight-decay": 0.0}
        )
        model = build_model(vit, study, Annotation.FULL)
        assert isinstance(model, PromptedClassifier)
        views = [v for v in views_of(model) if int(v.target) != 2]
        objective = ClassificationObjective(
            model,
            lambda case, _: views[case],
            study,
            log_prior=log_prior([0, 1, 0, 1], 3),
            peers_row=None,
            rng=np.random.default_rng(0),
        )
        train_round(
            model,
            objective,
            [[(case, 0) for case in range(4)]] * 30,
            study,
            round=1,
            optimiser={},
            anchored=[],
            precision=Precision(torch.device("cpu"), torch.float32),
        )
        return float(model.head.bias.detach()[2] - model.head.bias.detach()[:2].mean())

    assert bias(1.0) > bias(0.0) + 0.02
