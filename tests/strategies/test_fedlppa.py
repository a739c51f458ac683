"""FedLPPA: affinity and mixtures against slow loops; late joiners, absent sites, rows of their owners."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as numpy_arrays

from fedprompt.config import FedLPPAOptions
from fedprompt.manifest import Arrays, Manifest, Scope, TensorSpec
from strategies import FedLPPA, Update
from strategies.fedlppa import affinity, normalised_entropy

ROW, HEAD, BIAS = "prompts.data_aware.row", "auxiliary_head.weight", "auxiliary_head.bias"
MANIFEST = Manifest(
    (
        TensorSpec("prompts.universal.map", (1, 3, 3), "float32", Scope.SHARED),
        TensorSpec(ROW, (1, 3, 3), "float32", Scope.SITE),
        TensorSpec(HEAD, (2, 5), "float32", Scope.SITE),
        TensorSpec(BIAS, (2,), "float32", Scope.SITE),
    )
)
OPTIONS = FedLPPAOptions(temperature=0.5, self_floor=0.3, max_weight=0.6)
ROWS = numpy_arrays(np.float32, st.tuples(st.integers(1, 6), st.just(7)), elements=st.floats(-4, 4, width=32))


def draw(rng: np.random.Generator, scope: Scope) -> Arrays:
    return {spec.name: rng.normal(size=spec.shape).astype("f4") for spec in MANIFEST.select(scope)}


def updates_of(rng: np.random.Generator, sites: str = "abcd") -> list[Update]:
    return [Update(s, 3 + i, draw(rng, Scope.SHARED), draw(rng, Scope.SITE)) for i, s in enumerate(sites)]


def started(rng: np.random.Generator, options: FedLPPAOptions = OPTIONS) -> FedLPPA:
    strategy = FedLPPA(options)
    kept = draw(rng, Scope.SITE)
    kept[ROW] = np.zeros_like(kept[ROW])
    strategy.start(MANIFEST, draw(rng, Scope.SHARED), kept)
    return strategy


def slow_affinity(rows: np.ndarray, temperature: float, floor: float) -> list[list[float]]:
    def cosine(x: list[float], y: list[float]) -> float:
        x, y = [v - math.fsum(x) / len(x) for v in x], [v - math.fsum(y) / len(y) for v in y]
        lengths = math.sqrt(math.fsum(v * v for v in x)) * math.sqrt(math.fsum(v * v for v in y))
        return math.fsum(p * q for p, q in zip(x, y, strict=True)) / lengths if lengths else 0.0

    table = []
    for i, own in enumerate(rows.tolist()):
        powers = [math.exp(cosine(own, other) / temperature) for other in rows.tolist()]
        weights = [power / math.fsum(powers) for power in powers]
        if len(weights) > 1 and weights[i] < floor:
            rest = 1 - weights[i]
            weights = [w * (1 - floor) / rest for w in weights]
            weights[i] = floor
        table.append(weights)
    return table


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("temperature", "floor"), [(0.5, 0.3), (0.05, 0.0), (5.0, 0.9), (0.5, 1.0)])
def test_affinity_agrees_with_a_loop(seed: int, temperature: float, floor: float) -> None:
    rows = np.random.default_rng(seed).normal(2.0, 1.0, size=(5, 12)).astype("f4")
    expected = slow_affinity(rows, temperature, floor)
    np.testing.assert_allclose(affinity(rows, temperature, floor), expected, rtol=1e-6, atol=1e-12)


@given(ROWS, st.floats(0.01, 10), st.floats(0, 1))
def test_weights_sum_to_one_and_the_floor_holds(rows: np.ndarray, temperature: float, floor: float) -> None:
    weights = affinity(rows, temperature, floor)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-9)
    assert (weights >= 0).all()
    assert (np.diagonal(weights) >= floor - 1e-12).all()
    assert -1e-9 <= normalised_entropy(weights) <= 1 + 1e-9


def test_a_common_level_is_no_similarity() -> None:
    rows = np.random.default_rng(0).normal(size=(4, 16))
    np.testing.assert_allclose(affinity(rows + 100, 0.5, 0.3), affinity(rows, 0.5, 0.3), atol=1e-9)


def test_rows_of_zeros_spread_evenly_above_the_floor() -> None:
    weights = affinity(np.zeros((4, 9), "f4"), 0.5, 0.4)
    np.testing.assert_allclose(weights, 0.2 + 0.2 * np.eye(4))
    np.testing.assert_allclose(affinity(np.zeros((4, 9), "f4"), 0.5, 0.1), 0.25)
    assert normalised_entropy(affinity(np.zeros((4, 9), "f4"), 0.5, 0.0)) == pytest.approx(1)


def test_each_site_gets_its_own_row_and_its_own_mixture() -> None:
    rng = np.random.default_rng(1)
    strategy = started(rng)
    updates = updates_of(rng)
    facts = strategy.aggregate(1, updates)
    rows = np.stack([update.kept[ROW].ravel() for update in updates])
    weights = slow_affinity(rows, 0.5, 0.3)
    for i, update in enumerate(updates):
        shared, kept, peers = strategy.outgoing(update.site)
        assert shared is strategy.shared
        assert kept[ROW].tobytes() == update.kept[ROW].tobytes()
        for name in (HEAD, BIAS):
            mixed = sum(
                w * other.kept[name].astype("f8") for w, other in zip(weights[i], updates, strict=True)
            )
            np.testing.assert_allclose(kept[name], mixed, rtol=1e-5, atol=1e-6)
            assert kept[name].dtype == np.float32
        others = np.mean([other.kept[ROW] for other in updates if other is not update], axis=0)
        assert peers.keys() == {ROW}
        np.testing.assert_allclose(peers[ROW], others, rtol=1e-5, atol=1e-6)
        told = [facts["affinity"][update.site][other.site] for other in updates]
        assert told == pytest.approx(weights[i], abs=1e-6)
    assert 0 < facts["affinity_entropy"] < 1


def test_shared_tensors_are_averaged_as_in_fedavg() -> None:
    rng = np.random.default_rng(2)
    strategy, updates = started(rng), updates_of(rng)
    facts = strategy.aggregate(1, updates)
    assert facts["weights"] == pytest.approx({s: (3 + i) / 18 for i, s in enumerate("abcd")}, abs=1e-6)
    name = "prompts.universal.map"
    mean = sum((3 + i) / 18 * update.shared[name].astype("f8") for i, update in enumerate(updates))
    np.testing.assert_allclose(strategy.shared[name], mean, rtol=1e-5)


def test_a_late_joiner_gets_the_mean_row_and_the_plain_mean_of_heads() -> None:
    rng = np.random.default_rng(3)
    strategy, updates = started(rng), updates_of(rng, "abc")
    strategy.aggregate(1, updates)
    _, kept, peers = strategy.outgoing("new")
    for name in (ROW, HEAD, BIAS):
        np.testing.assert_allclose(kept[name], np.mean([u.kept[name] for u in updates], axis=0), atol=1e-6)
    np.testing.assert_array_equal(peers[ROW], kept[ROW])


def test_before_the_first_round_all_get_the_initial_tensors() -> None:
    rng = np.random.default_rng(4)
    strategy = started(rng)
    _, kept, peers = strategy.outgoing("a")
    assert not kept[ROW].any()
    assert kept[HEAD].any()
    assert peers == {}


def test_an_absent_site_keeps_its_row_and_stays_in_the_mixtures() -> None:
    rng = np.random.default_rng(5)
    strategy, first = started(rng), updates_of(rng, "abc")
    strategy.aggregate(1, first)
    second = updates_of(rng, "ab")
    facts = strategy.aggregate(2, second)
    assert strategy.outgoing("c")[1][ROW].tobytes() == first[2].kept[ROW].tobytes()
    assert facts["weights"].keys() == {"a", "b"}
    assert facts["affinity"]["a"]["c"] > 0


def test_a_site_alone_gets_back_what_it_sent() -> None:
    rng = np.random.default_rng(6)
    strategy, updates = started(rng), updates_of(rng, "a")
    facts = strategy.aggregate(1, updates)
    _, kept, peers = strategy.outgoing("a")
    for name, array in updates[0].kept.items():
        np.testing.assert_array_equal(kept[name], array)
    assert peers == {}
    assert facts["affinity_entropy"] == 0.0


def test_without_site_tensors_it_is_fedavg() -> None:
    rng = np.random.default_rng(7)
    strategy = FedLPPA(OPTIONS)
    strategy.start(MANIFEST.rescoped({Scope.SITE: Scope.PERSONAL}), draw(rng, Scope.SHARED), {})
    facts = strategy.aggregate(1, [Update(s, 2, draw(rng, Scope.SHARED), {}) for s in "ab"])
    assert "affinity" not in facts
    assert strategy.outgoing("a") == (strategy.shared, {}, {})


def test_a_restored_strategy_sends_the_same_bytes() -> None:
    rng = np.random.default_rng(8)
    strategy = started(rng)
    strategy.aggregate(1, updates_of(rng))
    resumed = FedLPPA(OPTIONS)
    resumed.restore(MANIFEST, strategy.shared, strategy.kept, *strategy.state())
    for site in ("a", "d", "late"):
        for ours, theirs in zip(strategy.outgoing(site), resumed.outgoing(site), strict=True):
            assert {n: a.tobytes() for n, a in ours.items()} == {n: a.tobytes() for n, a in theirs.items()}


def test_two_updates_of_one_site_or_none_are_refused() -> None:
    rng = np.random.default_rng(9)
    strategy = started(rng)
    with pytest.raises(ValueError, match="one update"):
        strategy.aggregate(1, [*updates_of(rng, "a"), *updates_of(rng, "a")])
    with pytest.raises(ValueError, match="one update"):
        strategy.aggregate(1, [])
