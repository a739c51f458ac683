"""The folder of features: bounded, private, shared by processes; trouble with the disk stops nothing."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprompt.data.cache import FeatureCache, FeatureKey
from fedprompt.data.feature_store import FeatureStore

PLENTY = 1 << 30


def key(number: int) -> FeatureKey:
    return FeatureKey("f", "encoder", str(number), "size=64 view=0")


def features(number: int, count: int = 40) -> tuple[torch.Tensor, ...]:
    return torch.full((count,), float(number)), torch.full((count,), -float(number), dtype=torch.bfloat16)


def equal(back: tuple[torch.Tensor, ...] | None, expected: tuple[torch.Tensor, ...]) -> bool:
    return back is not None and all(torch.equal(a, b) for a, b in zip(back, expected, strict=True))


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def test_what_is_saved_is_loaded_also_by_another_store(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "deep" / "cache", PLENTY)
    assert store.load(key(1)) is None
    assert store.save(key(1), features(1)) == set()
    for each in (store, FeatureStore(store.folder, PLENTY)):
        assert equal(each.load(key(1)), features(1))
        assert each.load(key(2)) is None


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_only_the_user_can_read_the_files(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        FeatureStore(tmp_path / "cache", PLENTY).save(key(1), features(1))
    finally:
        os.umask(before)
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "cache").iterdir()] == [0o600]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["save", "load"]), st.integers(0, 7), st.integers(0, 300)), max_size=30
    ),
    st.integers(0, 6000),
)
def test_within_the_limit_and_the_longest_unused_left(calls: list[tuple[str, int, int]], limit: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = FeatureStore(folder, limit)
        order: list[int] = []  # most recent last
        for what, number, count in calls:
            before = {path.stem for path in folder.iterdir()}
            if what == "save":
                left = store.save(key(number), features(number, count))
                stays = {path.stem for path in folder.iterdir()}
                assert before - stays <= left | {key(number).name}
                assert not left & (stays - {key(number).name})
            if what == "save" or store.load(key(number)) is not None:
                order = [each for each in order if each != number] + [number]
            assert used(folder) <= limit
            there = [(folder / f"{key(each).name}.safetensors").exists() for each in order]
            written = [each for each, is_there in zip(order, there, strict=True) if is_there]
            if what == "save" and not there[-1]:  # alone larger than the limit
                order.pop()
            else:
                assert written == order[len(order) - len(written) :], "one left before an older one"
            order = written


def test_no_more_leave_than_need_be(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, PLENTY)
    store.save(key(0), features(0))
    store = FeatureStore(tmp_path, 32 * used(tmp_path))
    for number in range(200):
        store.save(key(number), features(number))
    assert used(tmp_path) >= store.limit * 29 // 32


def test_a_new_process_knows_the_order_and_a_lower_limit_holds_at_once(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, PLENTY)
    for number in (0, 1, 2, 3):
        store.save(key(number), features(number))
    store.load(key(0))
    store.touch(key(1))
    FeatureStore(tmp_path, used(tmp_path) * 5 // 8)
    assert {path.stem for path in tmp_path.iterdir()} == {key(0).name, key(1).name}


def test_other_files_are_left_alone_and_leftovers_of_killed_processes_are_not(tmp_path: Path) -> None:
    stale = tmp_path / f".{key(1).name}.abc.partial"
    fresh = tmp_path / f".{key(2).name}.abc.partial"
    others = [tmp_path / "notes.txt", tmp_path / "model.safetensors", tmp_path / ".x.partial"]
    for path in (stale, fresh, *others):
        path.write_bytes(b"x" * 1000)
    for path in (stale, *others):
        os.utime(path, (0, 0))
    store = FeatureStore(tmp_path, 700)
    for number in range(5):
        store.save(key(number), features(number, 8))
    assert not stale.exists()
    assert fresh.exists()
    assert all(path.read_bytes() == b"x" * 1000 for path in others)


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
def test_a_file_that_vanishes_while_the_folder_is_read_is_no_trouble(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / f"{'0' * 64}.safetensors").symlink_to(tmp_path / "nowhere")  # listed, but not there
    store = FeatureStore(tmp_path, 1000)
    for number in range(5):
        store.save(key(number), features(number))
    assert equal(store.load(key(4)), features(4))
    assert not caplog.records


@pytest.mark.parametrize("damage", [b"", b"foreign", None])
def test_a_damaged_file_is_no_features_and_is_replaced(tmp_path: Path, damage: bytes | None) -> None:
    store = FeatureStore(tmp_path, PLENTY)
    store.save(key(1), features(1))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1] if damage is None else damage)
    assert store.load(key(1)) is None
    store.save(key(1), features(1))
    assert equal(store.load(key(1)), features(1))


def test_a_folder_that_cannot_be_made_gives_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    store = FeatureStore(tmp_path / "file" / "cache", PLENTY)
    for number in range(3):
        store.save(key(number), features(number))
        assert store.load(key(number)) is None
    assert [(record.name, record.levelno) for record in caplog.records] == [
        ("fedprompt.cache", logging.WARNING)
    ]
    assert "features are kept in memory alone" in caplog.text


FULL = """
import logging, resource, sys
from pathlib import Path
import torch
from fedprompt.data.cache import FeatureCache, FeatureKey
logging.basicConfig(level="WARNING", format="%(name)s %(message)s")
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
cache = FeatureCache(1 << 20, folder=Path(sys.argv[1]))
for size in (1000, 2000, 3000, 500):
    for _ in range(2):
        (back,) = cache.get(FeatureKey("f", "s", str(size), "t"), lambda: (torch.ones(size),))
        assert torch.equal(back, torch.ones(size))
print(cache.misses, cache.hits)
"""


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_a_full_disk_gives_one_warning_and_leaves_no_rest(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "4 4\n"
    assert done.stderr.count("fedprompt.cache features are kept in memory alone") == 1
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [
        f"{FeatureKey('f', 's', '1000', 't').name}.safetensors"
    ]


def test_the_folder_may_be_deleted_while_it_is_in_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = FeatureStore(tmp_path / "cache", PLENTY)
    store.save(key(1), features(1))
    mapped = store.load(key(1))
    shutil.rmtree(store.folder)
    assert equal(mapped, features(1))
    assert store.load(key(1)) is None
    store.touch(key(1))
    store.save(key(2), features(2))
    assert equal(store.load(key(2)), features(2))
    assert not caplog.records


def visit(folder: Path, limit: int, seed: int) -> None:
    """A process with two threads that gets random features and looks at every value."""
    cache = FeatureCache(10_000, folder=folder, disk_limit=limit)

    def visits(thread: int) -> None:
        generator = torch.Generator().manual_seed(2 * seed + thread)
        for number in torch.randint(0, 30, (150,), generator=generator).tolist():
            back = cache.get(key(number), lambda number=number: features(number, 500))
            assert equal(back, features(number, 500))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(visits, range(2)))
    assert cache.hits + cache.misses == 300


def test_processes_share_a_folder(tmp_path: Path) -> None:
    limit = 20 * 3600  # room for two thirds of the keys
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=visit, args=(tmp_path, limit, seed)) for seed in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    files = list(tmp_path.iterdir())
    assert all(path.suffix == ".safetensors" for path in files)
    assert used(tmp_path) <= limit + limit // 16
    store = FeatureStore(tmp_path, limit)
    found = [number for number in range(30) if equal(store.load(key(number)), features(number, 500))]
    assert len(found) == len(files) >= 10


def fill(folder: Path) -> None:
    store = FeatureStore(folder, PLENTY)
    for number in range(100_000):
        store.save(key(number % 50), features(number % 50, 100_000))


def test_a_killed_process_leaves_whole_files_alone(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=fill, args=(tmp_path,))
    process.start()
    end = time.monotonic() + 60
    while len(list(tmp_path.glob("*.safetensors"))) < 20:
        assert time.monotonic() < end
        time.sleep(0.005)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(60)
    store = FeatureStore(tmp_path, PLENTY)
    there = {path.stem for path in tmp_path.glob("*.safetensors")}
    for number in range(50):
        back = store.load(key(number))
        assert (key(number).name in there) == equal(back, features(number, 100_000))
