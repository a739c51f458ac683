"""Batches: passes over all cases, same seed same batches."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedprompt.training.sampling import draw_batches, round_seed


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 12), st.integers(1, 16), st.integers(0, 99))
def test_every_case_comes_once_before_any_comes_again(
    cases: int, views: int, steps: int, batch_size: int, seed: int
) -> None:
    batches = draw_batches(cases, views, steps, batch_size, np.random.default_rng(seed))
    assert [len(batch) for batch in batches] == [min(cases, batch_size)] * steps
    order = [case for batch in batches for case, _ in batch]
    for start in range(0, len(order) - cases + 1, cases):
        assert sorted(order[start : start + cases]) == list(range(cases))
    assert all(0 <= view < views for batch in batches for _, view in batch)
    assert batches == draw_batches(cases, views, steps, batch_size, np.random.default_rng(seed))


def test_seeds_differ_by_study_site_and_round() -> None:
    seeds = {round_seed(s, site, r) for s in (0, 1) for site in ("a", "b") for r in (1, 2, 11)}
    assert len(seeds) == 12
