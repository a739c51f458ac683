"""Files: the same bytes for the same content, old or new but never half, nothing foreign or damaged."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.numpy import save_file

from fedprompt.artifacts import read_arrays, read_json, write_arrays, write_atomic, write_json
from fedprompt.errors import DataError

FLOATS = arrays(np.float32, array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
TEXT = st.text(st.characters(codec="utf-8"), max_size=6)
NUMBER = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
)
NAMED = st.dictionaries(st.from_regex(r"[a-z.]{1,8}", fullmatch=True), FLOATS, max_size=4)


@settings(max_examples=50, deadline=None)
@given(NAMED, st.dictionaries(TEXT, JSON, max_size=3))
def test_arrays_and_metadata_survive(
    tmp_path_factory: pytest.TempPathFactory, named: dict[str, np.ndarray], metadata: dict[str, object]
) -> None:
    folder = tmp_path_factory.mktemp("arrays")
    write_arrays(folder / "a", named, metadata, durable=False)
    write_arrays(folder / "b", dict(reversed(named.items())), metadata, durable=False)
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()
    found, told = read_arrays(folder / "a")
    assert told == metadata
    assert found.keys() == named.keys()
    for name, array in named.items():
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


@settings(max_examples=50, deadline=None)
@given(JSON)
def test_json_survives(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    file = tmp_path_factory.mktemp("json") / "value.json"
    write_json(file, value, durable=False)
    assert read_json(file) == value


def test_json_refuses_what_json_has_not_and_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "value.json"
    write_json(file, {"x": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(file, {"x": math.nan})
    assert read_json(file) == {"x": 1}


def test_a_failing_write_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "state"
    write_atomic(file, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_killed_writer_leaves_one_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "state"
    write_atomic(file, b"0" * 1_000_000)
    code = (
        "import sys; from pathlib import Path; from fedprompt.artifacts import write_atomic\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    for digit in b'0123456789':\n"
        "        write_atomic(Path(sys.argv[1]), bytes([digit]) * 1_000_000, durable=False)\n"
    )
    for _ in range(2):
        writer = subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        for _ in range(20):
            content = file.read_bytes()
            assert len(content) == 1_000_000
            assert len(set(content)) == 1
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert len(set(file.read_bytes())) == 1


def test_a_folder_is_made(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b" / "c", b"x")
    assert (tmp_path / "a" / "b" / "c").read_bytes() == b"x"


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "shared.safetensors"
    write_arrays(file, {"a": np.arange(8, dtype=np.float32)}, {"round": 3})
    content = file.read_bytes()
    cuts = [content[:n] for n in (0, 4, 40, len(content) - 1)]
    flips = [
        content[:n] + bytes([content[n] ^ 1]) + content[n + 1 :]
        for n in (len(content) - 1, len(content) - 20)
    ]
    edited = content.replace(b'\\"round\\": 3', b'\\"round\\": 4')
    assert edited != content
    for damaged in [*cuts, *flips, edited, b"\x80\x04pickle", content + b"x"]:
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"shared\.safetensors"):
            read_arrays(file)


def test_foreign_and_missing_files_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "foreign.safetensors"
    save_file({"a": np.zeros(2, np.float32)}, file)
    with pytest.raises(DataError, match=r"foreign\.safetensors: expected a file written by fedprompt"):
        read_arrays(file)
    save_file({"a": np.zeros(2, np.float32)}, file, metadata={"fedprompt": json.dumps({"x": 1})})
    with pytest.raises(DataError, match=r"foreign\.safetensors"):
        read_arrays(file)
    for read in (read_arrays, read_json):
        with pytest.raises(DataError, match="no such file"):
            read(tmp_path / "missing")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match=r"broken\.json: expected a JSON file"):
        read_json(tmp_path / "broken.json")
