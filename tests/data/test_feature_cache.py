"""The feature cache: one computation per key, bounded, shared by threads; with a folder also by processes."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprompt.data import cache as module
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


def test_what_overlaps_itself_is_copied_and_any_dense_order_is_not() -> None:
    windows = torch.arange(4.0).as_strided((2, 2), (1, 1))  # as many bytes as its storage
    for tensor in (torch.ones(3, 1).expand(3, 4), windows):
        (copy,) = FeatureCache(1000).get(key(1), lambda tensor=tensor: (tensor,))
        assert copy.untyped_storage().nbytes() == copy.nbytes
        assert copy.data_ptr() != tensor.data_ptr()
    last = torch.zeros(1, 2, 3, 4).to(memory_format=torch.channels_last)
    (same,) = FeatureCache(1000).get(key(1), lambda: (last,))
    assert same.data_ptr() == last.data_ptr()


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


def fail() -> tuple[torch.Tensor, ...]:
    pytest.fail("computed again")


def test_a_later_cache_finds_what_an_earlier_one_computed(tmp_path: Path) -> None:
    last = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    last = last.to(memory_format=torch.channels_last)
    FeatureCache(0, folder=tmp_path).get(key(1), lambda: (last, last[:, 0].half()))
    later = FeatureCache(0, folder=tmp_path)
    first = later.get(key(1), fail)
    assert torch.equal(first[0], last)
    assert first[0].stride() == last.stride()
    assert torch.equal(first[1], last[:, 0].half())
    assert later.get(key(1), fail)[0].data_ptr() == first[0].data_ptr()  # the map is kept
    assert (later.hits, later.mapped, later.misses, later.nbytes, len(later)) == (2, 1, 0, 0, 1)


def test_what_left_memory_is_mapped(tmp_path: Path) -> None:
    cache = FeatureCache(32, folder=tmp_path)
    for number in (1, 2, 1, 2, 1):
        assert float(cache.get(key(number), lambda number=number: features(number))[0][0]) == number
    assert (cache.hits, cache.mapped, cache.misses, cache.nbytes, len(cache)) == (3, 1, 2, 32, 2)


def test_nothing_at_all_is_a_feature_too(tmp_path: Path) -> None:
    FeatureCache(0, folder=tmp_path).get(key(1), tuple)
    assert FeatureCache(0, folder=tmp_path).get(key(1), fail) == ()


@pytest.mark.parametrize("folder", [False, True])
def test_a_dtype_that_files_lack_stays_in_memory(tmp_path: Path, folder: bool) -> None:
    cache = FeatureCache(100, folder=tmp_path if folder else None)
    for _ in range(2):
        (back,) = cache.get(key(1), lambda: (torch.ones(2, dtype=torch.complex128),))
    assert (cache.hits, cache.misses, float(back.real.sum())) == (1, 1, 2)
    assert not list(tmp_path.iterdir())


def test_the_number_of_maps_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAPS", 3)
    cache = FeatureCache(0, folder=tmp_path)
    for number in (*range(5), *range(5), 2, 0):
        cache.get(key(number), lambda number=number: features(number))
    assert len(cache) == 3
    assert (cache.hits, cache.mapped, cache.misses) == (7, 6, 5)


def test_use_in_memory_counts_on_disk(tmp_path: Path) -> None:
    cache = FeatureCache(1000, folder=tmp_path)
    cache.get(key(0), lambda: features(0))
    (file,) = tmp_path.iterdir()
    cache = FeatureCache(1000, folder=tmp_path, disk_limit=file.stat().st_size * 7 // 2)
    for number in (0, 1, 2, 0, 3):
        cache.get(key(number), lambda number=number: features(number))
    assert (tmp_path / f"{key(0).name}.safetensors").exists()
    assert not (tmp_path / f"{key(1).name}.safetensors").exists()


def test_a_file_that_left_the_disk_is_not_kept_mapped(tmp_path: Path) -> None:
    cache = FeatureCache(0, folder=tmp_path)
    cache.get(key(0), lambda: features(0))
    (file,) = tmp_path.iterdir()
    cache = FeatureCache(0, folder=tmp_path, disk_limit=file.stat().st_size)
    cache.get(key(0), fail)
    cache.get(key(1), lambda: features(1))
    assert len(cache) == 0
    assert float(cache.get(key(1), fail)[0][0]) == 1


def test_on_another_device_they_are_copies_and_count(tmp_path: Path) -> None:
    FeatureCache(0, folder=tmp_path).get(key(1), lambda: features(1))
    cache = FeatureCache(40, folder=tmp_path, device="meta")
    for _ in range(2):
        assert cache.get(key(1), fail)[0].device.type == "meta"
    assert (cache.hits, cache.mapped, cache.nbytes, len(cache)) == (2, 1, 32, 1)


def test_threads_that_come_together_map_once(tmp_path: Path) -> None:
    FeatureCache(0, folder=tmp_path).get(key(1), lambda: features(1, 100_000))
    cache = FeatureCache(0, folder=tmp_path)
    barrier = threading.Barrier(8)

    def call(_: int) -> int:
        barrier.wait()
        return cache.get(key(1), fail)[0].data_ptr()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(call, range(8)))) == 1
    assert (cache.hits, cache.mapped, cache.misses) == (8, 1, 0)


def test_the_name_of_a_key_depends_on_every_field_and_on_where_it_ends() -> None:
    keys = [("a", "b", "c", "d"), ("ab", "", "c", "d"), ("a", "b", "cd", ""), ("b", "a", "c", "d")]
    assert len({FeatureKey(*fields).name for fields in keys}) == 4
    assert FeatureKey(*keys[0]).name == FeatureKey(*keys[0]).name
