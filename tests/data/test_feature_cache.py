"""The feature cache: one computation per key, bounded, shared by threads."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprompt.data.cache import FeatureCache, FeatureKey


def key(number: int) -> FeatureKey:
    return FeatureKey("f", "encoder", str(number), "size=64 view=0")


def features(number: int, count: int = 4) -> tuple[torch.Tensor, ...]:
    return torch.full((count,), float(number)), torch.full((count,), -float(number))


def test_the_second_call_does_not_compute() -> None:
    cache = FeatureCache(1000)
    first = cache.get(key(1), lambda: features(1))
    second = cache.get(key(1), lambda: pytest.fail("computed again"))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert (cache.hits, cache.misses, cache.nbytes) == (1, 1, 32)


def test_every_part_of_the_key_counts() -> None:
    cache = FeatureCache(1000)
    keys = [
        FeatureKey("a", "b", "c", "d"),
        FeatureKey("x", "b", "c", "d"),
        FeatureKey("a", "x", "c", "d"),
        FeatureKey("a", "b", "x", "d"),
        FeatureKey("a", "b", "c", "x"),
    ]
    for number, each in enumerate(keys):
        cache.get(each, lambda number=number: features(number))
    assert cache.misses == 5
    assert [float(cache.get(each, tuple)[0][0]) for each in keys] == [0, 1, 2, 3, 4]


def test_the_longest_unused_leaves_first() -> None:
    cache = FeatureCache(3 * 32)
    for number in (1, 2, 3, 1, 4):
        cache.get(key(number), lambda number=number: features(number))
    assert cache.nbytes == 96
    cache.get(key(1), lambda: pytest.fail("1 was used after 2"))
    before = cache.misses
    cache.get(key(2), lambda: features(2))
    assert cache.misses == before + 1


def test_what_is_too_large_is_not_kept() -> None:
    cache = FeatureCache(40)
    cache.get(key(1), lambda: features(1))
    assert cache.get(key(2), lambda: features(2, 100))[0].numel() == 100
    assert (len(cache), cache.nbytes) == (1, 32)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30)), max_size=60), st.integers(0, 400))
def test_never_more_bytes_than_the_limit(calls: list[tuple[int, int]], limit: int) -> None:
    cache = FeatureCache(limit)
    for number, count in calls:
        cache.get(key(number), lambda number=number, count=count: features(number, count))
        assert 0 <= cache.nbytes <= limit
    assert cache.hits + cache.misses == len(calls)


def test_views_of_a_large_tensor_are_copied_and_graphs_cut() -> None:
    batch = torch.ones(100, 4, requires_grad=True)
    (row,) = FeatureCache(10_000).get(key(1), lambda: ((batch * 2)[3:4],))
    assert row.untyped_storage().nbytes() == 16
    assert not row.requires_grad


def test_threads_that_come_together_compute_once() -> None:
    cache = FeatureCache(10_000)
    barrier = threading.Barrier(8)
    computed = []

    def compute() -> tuple[torch.Tensor, ...]:
        computed.append(threading.get_ident())
        time.sleep(0.05)
        return features(7)

    def call(_: int) -> float:
        barrier.wait()
        return float(cache.get(key(1), compute)[0][0])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(call, range(8))) == [7.0] * 8
    assert len(computed) == 1
    assert (cache.hits, cache.misses) == (7, 1)


def test_other_keys_do_not_wait() -> None:
    cache = FeatureCache(10_000)
    started, finish = threading.Event(), threading.Event()

    def slow() -> tuple[torch.Tensor, ...]:
        started.set()
        assert finish.wait(10)
        return features(1)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(cache.get, key(1), slow)
        assert started.wait(10)
        assert float(cache.get(key(2), lambda: features(2))[0][0]) == 2
        assert not first.done()
        finish.set()
        assert float(first.result(10)[0][0]) == 1


def test_a_failed_computation_reaches_all_callers_and_is_tried_again() -> None:
    cache = FeatureCache(10_000)
    started, finish = threading.Event(), threading.Event()

    def fails() -> tuple[torch.Tensor, ...]:
        started.set()
        assert finish.wait(10)
        raise ValueError("no features")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, key(1), fails)
        assert started.wait(10)
        second = pool.submit(cache.get, key(1), fails)
        time.sleep(0.05)
        finish.set()
        for call in (first, second):
            with pytest.raises(ValueError, match="no features"):
                call.result(10)
    assert float(cache.get(key(1), lambda: features(3))[0][0]) == 3
