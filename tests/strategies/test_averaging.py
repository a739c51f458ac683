"""Capped weights and weighted means, against properties, a slow solver and Flower's own FedAvg."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from hypothesis import given
from hypothesis import strategies as st

from strategies.averaging import capped_weights, mixture, weighted_mean

CASES = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3), st.integers(1, 10_000), min_size=1, max_size=12
)


@given(CASES, st.floats(0.01, 1.0))
def test_no_share_is_above_the_cap_and_all_sum_to_one(cases: dict[str, int], cap: float) -> None:
    weights = capped_weights(cases, cap)
    assert list(weights) == sorted(cases)
    assert sum(weights.values()) == pytest.approx(1)
    if len(cases) * cap > 1:
        assert max(weights.values()) <= cap
    else:
        assert set(weights.values()) == {1 / len(cases)}


@given(CASES, st.floats(0.01, 1.0))
def test_shares_below_the_cap_keep_the_proportions_of_the_cases(cases: dict[str, int], cap: float) -> None:
    weights = capped_weights(cases, cap)
    free = [site for site in cases if weights[site] < cap - 1e-12]
    if len(cases) * cap > 1 and free:
        rates = [weights[site] / cases[site] for site in free]
        assert rates == pytest.approx([rates[0]] * len(rates))
        assert all(cases[site] * rates[0] >= cap - 1e-9 for site in set(cases) - set(free))


@given(CASES, st.floats(0.01, 1.0))
def test_water_filling_agrees_with_bisection_of_the_level(cases: dict[str, int], cap: float) -> None:
    if len(cases) * cap <= 1:
        return
    low, high = 0.0, 1.0
    for _ in range(200):
        level = (low + high) / 2
        if sum(min(cap, level * n) for n in cases.values()) < 1:
            low = level
        else:
            high = level
    expected = {site: min(cap, high * n) for site, n in cases.items()}
    assert capped_weights(cases, cap) == pytest.approx(expected, abs=1e-9)


def test_without_a_cap_shares_are_those_of_the_cases() -> None:
    assert capped_weights({"b": 30, "a": 10}, 1.0) == pytest.approx({"a": 0.25, "b": 0.75})


@pytest.mark.parametrize(("cases", "cap"), [({}, 0.5), ({"a": 0}, 0.5), ({"a": 1}, 0.0), ({"a": 1}, 1.5)])
def test_impossible_arguments_are_refused(cases: dict[str, int], cap: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        capped_weights(cases, cap)


def test_mean_is_that_of_flower() -> None:
    rng = np.random.default_rng(0)
    cases = [7, 1, 12]
    arrays = [
        {"w": rng.normal(size=(5, 3)).astype("f4"), "s": np.float32(rng.normal()) * np.ones((), "f4")}
        for _ in cases
    ]
    records = [
        RecordDict(
            {
                "arrays": ArrayRecord({name: Array(np.asarray(array)) for name, array in site.items()}),
                "metrics": MetricRecord({"num-examples": count}),
            }
        )
        for site, count in zip(arrays, cases, strict=True)
    ]
    reference = aggregate_arrayrecords(records, "num-examples")
    weights = capped_weights(dict(zip("abc", cases, strict=True)), 1.0)
    mean = weighted_mean(arrays, list(weights.values()))
    assert mean.keys() == {"w", "s"}
    for name, array in mean.items():
        assert array.dtype == np.float32
        assert array.shape == arrays[0][name].shape
        np.testing.assert_allclose(array, reference[name].numpy(), rtol=1e-6)


def test_mean_is_added_up_in_double_precision() -> None:
    values = [np.array([v], "f4") for v in (1e8, 1.0, -1e8)]
    assert weighted_mean([{"x": v} for v in values], [1.0, 1.0, 1.0])["x"] == [1.0]


def test_mixture_is_a_weighted_sum_over_the_first_axis() -> None:
    stack = np.arange(24, dtype="f4").reshape(3, 2, 4)
    mixed = mixture(stack, np.array([0.5, 0.0, 0.25]))
    np.testing.assert_allclose(mixed, 0.5 * stack[0] + 0.25 * stack[2])
    assert mixed.dtype == np.float32
    assert mixture(np.ones(3, "f4"), np.full(3, 1 / 3)).shape == ()
