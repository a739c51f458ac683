"""Encryption at rest: what comes back, what is refused, and why; keys that nobody else can read."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprompt.encryption import SiteKey, read_encrypted_arrays, write_encrypted_arrays
from fedprompt.errors import ConfigurationError, DataError

KEY = SiteKey(bytes(range(32)))
OTHER = SiteKey(bytes(range(1, 33)))
ARRAYS = {"prompt": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), "none": np.zeros((0, 2))}


@given(st.binary(max_size=200), st.binary(max_size=20))
def test_bytes_come_back_and_never_look_the_same_twice(plain: bytes, context: bytes) -> None:
    first, second = KEY.encrypt(plain, context), KEY.encrypt(plain, context)
    assert first != second
    assert KEY.decrypt(first, context) == KEY.decrypt(second, context) == plain
    assert len(plain) < 8 or plain not in first[14:]  # behind magic and key id


@settings(max_examples=200)
@given(st.data())
def test_any_changed_byte_is_refused(data: st.DataObject) -> None:
    sealed = bytearray(KEY.encrypt(b"prompt of a site", b"stream"))
    place = data.draw(st.integers(0, len(sealed) - 1))
    sealed[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DataError, match=r"expected content that fedprompt encrypted|wrong key|damaged"):
        KEY.decrypt(bytes(sealed), b"stream")


def test_every_cut_is_refused() -> None:
    sealed = KEY.encrypt(b"prompt", b"stream")
    for length in range(len(sealed)):
        with pytest.raises(DataError, match=r"cut off|damaged"):
            KEY.decrypt(sealed[:length], b"stream")


def test_a_wrong_key_is_told_from_damage_and_from_another_context() -> None:
    sealed = KEY.encrypt(b"prompt", b"stream/a")
    with pytest.raises(DataError, match=f"wrong key; expected content of key {OTHER.id}, .* key {KEY.id}"):
        OTHER.decrypt(sealed, b"stream/a")
    with pytest.raises(DataError, match=r"a\.state: .* put in the place of another"):
        KEY.decrypt(sealed, b"stream/b", where="a.state")
    with pytest.raises(DataError, match="damaged"):
        KEY.decrypt(sealed[:-1] + bytes([sealed[-1] ^ 1]), b"stream/a")


def test_a_forged_key_id_does_not_help() -> None:
    sealed = OTHER.encrypt(b"prompt", b"")
    start = sealed.index(bytes.fromhex(OTHER.id))
    forged = sealed[:start] + bytes.fromhex(KEY.id) + sealed[start + 4 :]
    with pytest.raises(DataError, match="damaged"):
        KEY.decrypt(forged, b"")


def test_a_key_file_is_for_its_user_alone_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "site.key"
    before = os.umask(0)
    try:
        key = SiteKey.create(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]
    prefix, _, text = path.read_text().partition(":")
    assert prefix == "fedprompt-site-key-1"
    assert len(base64.b64decode(text)) == 32
    again = SiteKey.load(path)
    assert again.id == key.id
    assert again.decrypt(key.encrypt(b"x", b"c"), b"c") == b"x"
    assert SiteKey.create(tmp_path / "other.key").id != key.id
    for shown in (repr(key), str(key), key.id):
        assert text.strip() not in shown


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    SiteKey.create(path)
    content = path.read_bytes()
    with pytest.raises(ConfigurationError, match=r"site\.key: expected no file, got one"):
        SiteKey.create(path)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_key_that_comes_in_between_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "site.key"
    monkeypatch.setattr(Path, "exists", lambda _: False)
    SiteKey.create(path)
    content = path.read_bytes()
    with pytest.raises(ConfigurationError, match="exists"):
        SiteKey.create(path)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o644, 0o777])
def test_a_key_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "site.key"
    SiteKey.create(path)
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match=rf"site\.key: .* \(mode 600\), got mode {mode:o}$"):
        SiteKey.load(path)
    path.chmod(0o400)
    SiteKey.load(path)


@pytest.mark.parametrize(
    "text",
    ["", "hello", "fedprompt-site-key-1:", "fedprompt-site-key-1:AAAA", "fedprompt-site-key-1:not base64!",
     "fedprompt-site-key-2:" + "A" * 43 + "=", "fedprompt-site-key-1:" + "A" * 44 + "\nand more"],
)  # fmt: skip
def test_other_text_is_no_key_and_is_not_repeated(tmp_path: Path, text: str) -> None:
    path = tmp_path / "site.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match=r"site\.key: expected one line") as caught:
        SiteKey.load(path)
    assert "AAAA" not in str(caught.value)


def test_missing_and_unwritable_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file"):
        SiteKey.load(tmp_path / "none.key")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        SiteKey.load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="the key cannot be written"):
        SiteKey.create(tmp_path / "file" / "site.key")


def test_arrays_come_back_and_lie_encrypted(tmp_path: Path) -> None:
    path = tmp_path / "state" / "a.state"
    metadata = {"images": 3, "method": "low-frequency"}
    write_encrypted_arrays(path, ARRAYS, metadata, KEY)
    found, told = read_encrypted_arrays(path, KEY)
    assert told == metadata
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
        found[name] += 1  # not read-only
    content = path.read_bytes()
    assert b'prompt"' not in content
    assert ARRAYS["prompt"].tobytes()[:16] not in content
    assert b"low-frequency" not in content
    assert list(path.parent.iterdir()) == [path]


def test_encrypted_arrays_of_another_key_name_or_kind_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.state"
    write_encrypted_arrays(path, ARRAYS, {}, KEY)
    with pytest.raises(DataError, match=r"a\.state: wrong key"):
        read_encrypted_arrays(path, OTHER)
    renamed = path.rename(tmp_path / "b.state")
    with pytest.raises(DataError, match=r"b\.state: .* put in the place of another"):
        read_encrypted_arrays(renamed, KEY)
    path.write_bytes(KEY.encrypt(b"no arrays", b"arrays/a.state"))
    with pytest.raises(DataError, match=r"a\.state: expected a safetensors file"):
        read_encrypted_arrays(path, KEY)
    with pytest.raises(DataError, match="no such file"):
        read_encrypted_arrays(tmp_path / "none", KEY)
    with pytest.raises(DataError, match="cannot be read"):
        read_encrypted_arrays(tmp_path, KEY)
