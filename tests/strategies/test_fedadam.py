"""FedAdam against Flower's own, over rounds, and its state in a checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam as FlowerFedAdam
from flwr.supercore.task_identity import TaskIdentity

from fedprompt.config import FedAdamOptions
from fedprompt.manifest import Arrays, Manifest, Scope, TensorSpec
from strategies import FedAdam, Update

OPTIONS = FedAdamOptions(server_learning_rate=0.05, beta_1=0.8, beta_2=0.95, tau=1e-2, max_weight=1.0)
MANIFEST = Manifest(
    (TensorSpec("w", (4, 3), "float32", Scope.SHARED), TensorSpec("gate", (), "float32", Scope.SHARED))
)
CASES = {"a": 5, "b": 11}


def draw(rng: np.random.Generator) -> Arrays:
    return {spec.name: np.asarray(rng.normal(size=spec.shape), "f4") for spec in MANIFEST}


def updates_of(rng: np.random.Generator) -> list[Update]:
    return [Update(site, cases, draw(rng), {}) for site, cases in CASES.items()]


def flower_reply(update: Update) -> Message:
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(array) for name, array in update.shared.items()}),
            "metrics": MetricRecord({"num-examples": update.cases}),
        }
    )
    return Message(content, 1, "train")


def test_follows_flower_over_rounds() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    rng = np.random.default_rng(1)
    ours = FedAdam(OPTIONS)
    ours.start(MANIFEST, draw(rng), {})
    reference = FlowerFedAdam(eta=0.05, beta_1=0.8, beta_2=0.95, tau=1e-2)
    for number in range(1, 6):
        updates = updates_of(rng)
        reference.current_arrays = {name: array.copy() for name, array in ours.shared.items()}
        ours.aggregate(number, updates)
        # Flower corrects the bias of step t with t + 1; Kingma and Ba, and this, with t
        record, _ = reference.aggregate_train(number - 1, [flower_reply(update) for update in updates])
        assert record is not None
        for name, array in ours.shared.items():
            assert array.dtype == np.float32
            np.testing.assert_allclose(array, record[name].numpy(), rtol=2e-5, atol=1e-6)


def test_a_restored_strategy_goes_on_with_the_same_bytes() -> None:
    rng = np.random.default_rng(2)
    first, rounds = draw(rng), [updates_of(rng) for _ in range(4)]
    straight, broken = FedAdam(OPTIONS), FedAdam(OPTIONS)
    for strategy in (straight, broken):
        strategy.start(MANIFEST, first, {})
        for number, updates in enumerate(rounds[:2], start=1):
            strategy.aggregate(number, updates)
    arrays, metadata = broken.state()
    resumed = FedAdam(OPTIONS)
    resumed.restore(MANIFEST, broken.shared, {}, arrays, metadata)
    for strategy in (straight, resumed):
        for number, updates in enumerate(rounds[2:], start=3):
            strategy.aggregate(number, updates)
    for name, array in straight.shared.items():
        assert array.tobytes() == resumed.shared[name].tobytes()


def test_without_its_moments_the_next_step_would_differ() -> None:
    rng = np.random.default_rng(2)
    first, rounds = draw(rng), [updates_of(rng) for _ in range(2)]
    strategy = FedAdam(OPTIONS)
    strategy.start(MANIFEST, first, {})
    strategy.aggregate(1, rounds[0])
    forgetful = FedAdam(OPTIONS)
    forgetful.start(MANIFEST, strategy.shared, {})
    strategy.aggregate(2, rounds[1])
    forgetful.aggregate(2, rounds[1])
    assert not np.array_equal(strategy.shared["w"], forgetful.shared["w"])


def test_a_tensor_that_appears_starts_without_moments() -> None:
    rng = np.random.default_rng(3)
    strategy = FedAdam(OPTIONS)
    strategy.start(MANIFEST.select(), {"w": draw(rng)["w"]}, {})
    strategy.aggregate(1, [Update("a", 1, {"w": draw(rng)["w"]}, {})])
    late = draw(rng)
    strategy.aggregate(2, [Update("a", 1, late, {})])
    assert strategy.shared.keys() == {"w", "gate"}
    np.testing.assert_array_equal(strategy.shared["gate"], late["gate"])  # no step away from where it came
    strategy.aggregate(3, [Update("a", 1, {**late, "gate": late["gate"] + np.float32(1)}, {})])
    assert strategy.shared["gate"] > late["gate"]


def test_equal_updates_move_nothing() -> None:
    rng = np.random.default_rng(4)
    strategy, first = FedAdam(OPTIONS), draw(rng)
    strategy.start(MANIFEST, first, {})
    strategy.aggregate(1, [Update(site, 3, first, {}) for site in "ab"])
    np.testing.assert_array_equal(strategy.shared["w"], first["w"])
    assert strategy.state()[1] == {"steps": 1}


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_the_order_of_updates_does_not_matter(order: list[int]) -> None:
    rng = np.random.default_rng(5)
    first, updates = draw(rng), updates_of(rng)
    strategy, other = FedAdam(OPTIONS), FedAdam(OPTIONS)
    strategy.start(MANIFEST, first, {})
    other.start(MANIFEST, first, {})
    strategy.aggregate(1, updates)
    other.aggregate(1, [updates[i] for i in order])
    assert strategy.shared["w"].tobytes() == other.shared["w"].tobytes()
