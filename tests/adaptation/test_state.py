"""The state of a stream: one writer, one file, under its own name and key alone; kills leave the last one."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedprompt.adaptation.state import StreamState, StreamTaken, key_of_states
from fedprompt.encryption import SiteKey
from fedprompt.errors import ConfigurationError, DataError, RunError
from fedprompt.locks import FileLock

KEY = SiteKey(bytes(32))
ARRAYS = {"prompt": np.arange(6, dtype=np.float32)}
WRITER = """
import sys
from pathlib import Path
import numpy as np
from fedprompt.adaptation.state import StreamState
from fedprompt.encryption import SiteKey

state = StreamState(Path(sys.argv[1]), SiteKey(bytes(32)), "ward-3")
number = 0
while True:
    state.save({"prompt": np.full(100_000, number, np.float32)}, {"images": number})
    if number == 3:
        print("ready", flush=True)
    number += 1
"""


def test_what_was_saved_last_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "states"
    with StreamState(folder, KEY, "ward-3") as state:
        assert state.load() is None
        state.save({}, {"images": 0})
        state.save(ARRAYS, {"images": 1})
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(folder.iterdir()) == [state.path]
    with StreamState(folder, KEY, "ward-3") as again:
        stored = again.load()
        assert stored is not None
        assert stored[1] == {"images": 1}
        np.testing.assert_array_equal(stored[0]["prompt"], ARRAYS["prompt"])
        assert again.delete()
        assert not again.delete()
        assert again.load() is None
    assert list(folder.iterdir()) == []


def test_streams_are_apart_and_only_their_own_names_open_them(tmp_path: Path) -> None:
    with StreamState(tmp_path, KEY, "a") as a, StreamState(tmp_path, KEY, "b") as b:
        a.save(ARRAYS, {"stream": "a"})
        assert b.load() is None
        shutil.copy(a.path, b.path)
        with pytest.raises(DataError, match=r"b\.state: .* put in the place of another"):
            b.load()
        assert a.load() is not None
    with (
        StreamState(tmp_path, SiteKey(bytes(31) + b"\1"), "a") as a,
        pytest.raises(DataError, match="wrong key"),
    ):
        a.load()


@pytest.mark.parametrize("name", ["", "Ward", "ward 3", "../x", "a/b", ".a", "ä", "a_b", "x" * 65, "a\n"])
def test_what_is_no_stream_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="expected 1 to 64 lower-case letters"):
        StreamState(tmp_path / "states", KEY, name)
    assert not (tmp_path / "states").exists()


def test_a_second_writer_is_refused_until_the_first_closes(tmp_path: Path) -> None:
    first = StreamState(tmp_path, KEY, "ward-3")
    with pytest.raises(StreamTaken, match="stream ward-3 is in use"):
        StreamState(tmp_path, KEY, "ward-3")
    StreamState(tmp_path, KEY, "ward-4").close()
    first.close()
    first.close()
    second = StreamState(tmp_path, KEY, "ward-3")
    del second  # whoever forgets it lets go of it too
    StreamState(tmp_path, KEY, "ward-3").close()


def test_another_process_is_refused_and_a_killed_one_leaves_a_whole_state(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"ready\n"
    with pytest.raises(StreamTaken):
        StreamState(tmp_path, KEY, "ward-3")
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    (tmp_path / ".ward-3.state.99999.partial").write_bytes(b"of a writer that was killed in a write")
    with StreamState(tmp_path, KEY, "ward-3") as state:
        stored = state.load()
        assert stored is not None
        assert stored[1]["images"] >= 3
        assert (stored[0]["prompt"] == stored[1]["images"]).all()
    assert list(tmp_path.iterdir()) == [state.path]


def test_the_lock_holds_though_its_file_is_removed_and_made_again(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = FileLock(path)
    waiting = os.open(path, os.O_RDWR)  # a process that opened the file, but has not locked it yet
    first.release()
    assert not path.exists()
    second = FileLock(path)
    os.close(waiting)
    with pytest.raises(BlockingIOError):
        FileLock(path)
    second.release()
    with FileLock(path):
        pass


def test_a_lock_on_a_file_that_lost_its_name_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    path, real, calls = tmp_path / "lock", fcntl.flock, []

    def slow(handle: int, how: int) -> None:
        if not calls:
            path.unlink()  # the last holder let go between our open and our lock
        calls.append(handle)
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    lock = FileLock(path)
    assert len(calls) == 2
    assert path.exists()
    lock.release()


def test_a_forked_child_does_not_let_go(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    child = os.fork()
    if child == 0:
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(BlockingIOError):
        FileLock(tmp_path / "lock")
    lock.release()


def test_a_full_disk_keeps_the_last_state_and_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with StreamState(tmp_path, KEY, "ward-3") as state:
        state.save(ARRAYS, {"images": 1})
        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", full)
            with pytest.raises(RunError, match=r"ward-3\.state: .* \(No space left on device\)") as caught:
                state.save(ARRAYS, {"images": 2})
        assert "ward" not in caught.value.public
        stored = state.load()
        assert stored is not None
        assert stored[1] == {"images": 1}
        state.save(ARRAYS, {"images": 2})


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "states").touch()
    with pytest.raises(ConfigurationError, match="states: expected a folder for states"):
        StreamState(tmp_path / "states", KEY, "a")


def test_a_key_is_made_only_where_no_state_needs_one(tmp_path: Path) -> None:
    key = key_of_states(tmp_path / "site.key", tmp_path / "states")
    assert key_of_states(tmp_path / "site.key", tmp_path / "states").id == key.id
    with StreamState(tmp_path / "states", key, "a") as state:
        state.save(ARRAYS, {})
    with pytest.raises(ConfigurationError, match=r"other\.key: no such file; expected the key of the states"):
        key_of_states(tmp_path / "other.key", tmp_path / "states")
    assert not (tmp_path / "other.key").exists()
