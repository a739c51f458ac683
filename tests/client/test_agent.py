"""The site agent around a session of a few lines: what leaves, what stays, and what an error may say."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from client.agent import SiteAgent
from fedprompt.config import FedLPPAOptions, Site, Study
from fedprompt.contract import CaseCounts, Order
from fedprompt.errors import DataError, RunError
from fedprompt.manifest import Manifest, Scope, TensorSpec
from fedprompt.training import Trained

MANIFEST = Manifest(
    (
        TensorSpec("shared.w", (2,), "float32", Scope.SHARED),
        TensorSpec("row", (1,), "float32", Scope.SITE),
        TensorSpec("mine", (1,), "float32", Scope.PERSONAL),
    )
)
ZERO = {"shared.w": np.zeros(2, np.float32), "row": np.zeros(1, np.float32), "mine": np.zeros(1, np.float32)}


class AddsOne:
    """A session that adds one to everything and counts in its optimiser state."""

    manifest = MANIFEST
    counts = CaseCounts(train=3, val=1, test=2)
    parameters: ClassVar = {"backbone": 10, "shared": 2, "site": 1, "personal": 1}
    fingerprint = "f" * 64

    def initial(self):
        return {name: array.copy() for name, array in ZERO.items()}

    def train(self, arrays, optimiser, *, round, peers):
        count = optimiser.get("count", np.zeros(1, np.float32)) + 1
        return Trained({n: a + 1 for n, a in arrays.items()}, {"count": count}, {"total": 0.5}, 3)

    def evaluate(self, arrays, *, split, pictures=None):
        return {"dice": float(arrays["mine"][0])}


@pytest.fixture
def study() -> Study:
    return Study(strategy=FedLPPAOptions())


def agent(study: Study, folder: Path, session=None) -> SiteAgent:
    return SiteAgent(study, Site(id="paris", data=folder), session or AddsOne(), folder, durable=False)


def order(study: Study, task: str, number: int, **more) -> Order:
    return Order(study=study.digest(), round=number, task=task, **more)


def shared_only(arrays):
    return {"shared.w": arrays["shared.w"]}


def test_a_round_sends_shared_and_site_tensors_and_keeps_personal_ones(study, tmp_path) -> None:
    site = agent(study, tmp_path)
    report, shared, kept = site.answer(order(study, "train", 1), shared_only(ZERO), {}, {})
    assert report.failure is None
    assert report.metrics == {"dice": 0.0}
    assert report.loss == {"total": 0.5}
    assert shared.keys() == {"shared.w"}
    assert kept.keys() == {"row"}
    report, _, _ = site.answer(order(study, "train", 2), shared, kept, {})
    assert report.metrics == {"dice": 1.0}  # the personal tensor of round 1


def test_a_round_asked_for_again_starts_from_the_same_state(study, tmp_path) -> None:
    site = agent(study, tmp_path)
    site.answer(order(study, "train", 1), shared_only(ZERO), {}, {})
    for _ in range(2):
        again = agent(study, tmp_path)  # as after a crash
        report, shared, _ = again.answer(order(study, "train", 2), shared_only(ZERO), {}, {})
        assert report.metrics == {"dice": 1.0}
        assert shared["shared.w"][0] == 1


def test_describe_sends_initial_arrays_only_when_asked(study, tmp_path) -> None:
    site = agent(study, tmp_path)
    report, shared, kept = site.answer(order(study, "describe", 0), {}, {}, {})
    assert report.card.cases.train == 3
    assert (shared, kept) == ({}, {})
    _, shared, kept = site.answer(order(study, "describe", 0, initial_arrays=True), {}, {}, {})
    assert shared.keys() | kept.keys() == {"shared.w", "row"}


class Breaks(AddsOne):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def train(self, arrays, optimiser, *, round, peers):
        raise self.error


class GivesNaN(AddsOne):
    def train(self, arrays, optimiser, *, round, peers):
        trained = super().train(arrays, optimiser, round=round, peers=peers)
        trained.arrays["mine"][0] = np.nan
        return trained


@pytest.mark.parametrize(
    ("session", "code"),
    [
        (Breaks(DataError("/data/patient-17.png: truncated")), "data"),
        (Breaks(RunError("patient-17 broke")), "run"),
        (Breaks(OSError("/data/patient-17.png")), "failed"),
        (GivesNaN(), "run"),
    ],
)
def test_failures_have_a_code_and_name_neither_path_nor_patient(study, tmp_path, session, code) -> None:
    report, shared, kept = agent(study, tmp_path, session).answer(
        order(study, "train", 1), shared_only(ZERO), {}, {}
    )
    assert report.failure.code == code
    assert "patient" not in report.failure.reason
    assert "/" not in report.failure.reason
    assert (shared, kept) == ({}, {})


def test_orders_of_another_study_and_arrays_of_another_shape_are_refused(study, tmp_path) -> None:
    site = agent(study, tmp_path)
    foreign = Order(study="0" * 64, round=1, task="train")
    assert "another study" in site.answer(foreign, shared_only(ZERO), {}, {})[0].failure.reason
    wrong = {"shared.w": np.zeros(3, np.float32)}
    assert "manifest" in site.answer(order(study, "train", 1), wrong, {}, {})[0].failure.reason
