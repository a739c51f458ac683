"""One file of features: every bit comes back, nothing is copied, no damage goes unseen."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from fedprompt.data.cache import FeatureKey
from fedprompt.data.feature_file import file_parts, in_memory_order, map_features
from fedprompt.errors import DataError

KEY = FeatureKey("f", "encoder", "0", "size=64 view=0 ü")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def write(path: Path, features: tuple[torch.Tensor, ...], key: FeatureKey = KEY) -> None:
    parts = file_parts(key, features)
    assert parts is not None
    path.write_bytes(b"".join(parts))


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Any bits (so also NaN with a payload), any order of the axes."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    count = int(torch.tensor(shape).prod()) if shape else 1
    raw = torch.randint(
        0,
        2 if dtype is torch.bool else 256,
        (count * dtype.itemsize,),
        generator=generator,
        dtype=torch.uint8,
    )
    return raw.view(dtype).reshape(shape).permute(draw(st.permutations(range(len(shape)))))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(tensors(), max_size=4).map(tuple))
def test_every_bit_shape_and_stride_comes_back(tmp_path: Path, features: tuple[torch.Tensor, ...]) -> None:
    write(tmp_path / "x", features)
    back = map_features(tmp_path / "x", KEY)
    assert [each.dtype for each in back] == [each.dtype for each in features]
    assert [each.shape for each in back] == [each.shape for each in features]
    assert [each.stride() for each in back] == [each.stride() for each in features]
    assert [bits(each) for each in back] == [bits(each) for each in features]
    assert all(each.data_ptr() % 64 == 0 for each in back if each.numel())


def test_it_is_a_safetensors_file(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    features = (torch.randn(1, 3, 5, generator=generator), torch.randn(7, generator=generator).bfloat16())
    write(tmp_path / "x", features)
    with safe_open(tmp_path / "x", framework="pt") as file:
        assert torch.equal(file.get_tensor("0"), features[0])
        assert torch.equal(file.get_tensor("1"), features[1])
        assert json.loads(file.metadata()["fedprompt"])["key"] == KEY.fields


def test_axes_in_memory_order() -> None:
    plain = torch.zeros(2, 3, 4, 5)
    assert in_memory_order(plain.permute(3, 0, 2, 1)).shape == (2, 3, 4, 5)
    assert in_memory_order(plain.to(memory_format=torch.channels_last)).shape == (2, 4, 5, 3)
    assert not in_memory_order(plain[:, :, ::2]).is_contiguous()
    assert not in_memory_order(torch.zeros(1, 3).expand(2, 3)).is_contiguous()


def test_a_dtype_that_safetensors_lacks() -> None:
    assert file_parts(KEY, (torch.zeros(2), torch.zeros(2, dtype=torch.complex128))) is None


@on_linux
def test_the_tensors_lie_on_the_files_pages_and_no_file_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "mapped"
    embedding = torch.randn(1, 256, 64, 64, generator=torch.Generator().manual_seed(0))  # as SAM gives it
    write(path, (embedding, embedding[:, 0].half()))

    def maps() -> list[range]:
        lines = Path("/proc/self/maps").read_text().splitlines()
        spans = [line.split()[0].split("-") for line in lines if str(path) in line]
        return [range(int(start, 16), int(end, 16)) for start, end in spans]

    before = os.listdir("/proc/self/fd")  # noqa: PTH208 - names alone
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        large, small = map_features(path, KEY)
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208
    (span,) = maps()
    assert large.data_ptr() in span
    assert small.data_ptr() in span
    path.unlink()
    assert torch.equal(large, embedding)
    del large
    assert len(maps()) == 1
    assert torch.equal(small, embedding[:, 0].half())
    del small
    assert not maps()


def test_a_write_to_a_tensor_does_not_reach_the_file(tmp_path: Path) -> None:
    write(tmp_path / "x", (torch.ones(1000),))
    (first,) = map_features(tmp_path / "x", KEY)
    first.zero_()
    assert torch.equal(map_features(tmp_path / "x", KEY)[0], torch.ones(1000))


def test_another_key(tmp_path: Path) -> None:
    write(tmp_path / "x", (torch.ones(4),))
    for field in ("fingerprint", "stage", "sha256", "transform"):
        other = FeatureKey(**{**dict(zip(FeatureKey.__slots__, KEY.fields, strict=True)), field: "other"})
        with pytest.raises(DataError, match="got those of"):
            map_features(tmp_path / "x", other)


FEATURES = (torch.arange(50, dtype=torch.float32), torch.arange(9, dtype=torch.float16).view(3, 3).T)
WHOLE = b"".join(file_parts(KEY, FEATURES) or ())


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_a_changed_byte_is_seen(tmp_path: Path, position: int, change: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[position] ^= change
    (tmp_path / "x").write_bytes(damaged)
    try:
        back = map_features(tmp_path / "x", KEY)
    except DataError:
        return
    in_header = position < 8 + int.from_bytes(WHOLE[:8], "little")
    assert in_header, "a change of the data was not seen"
    assert [bits(each) for each in back] == [bits(each) for each in FEATURES]  # an entry that reading ignores
    assert [each.stride() for each in back] == [each.stride() for each in FEATURES]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(WHOLE) - 1))
def test_a_shorter_file_is_seen(tmp_path: Path, length: int) -> None:
    (tmp_path / "x").write_bytes(WHOLE[:length])
    with pytest.raises(DataError):
        map_features(tmp_path / "x", KEY)


@pytest.mark.parametrize(
    "content",
    [
        WHOLE + b"\0",
        b"\0" * len(WHOLE),
        b"no features",
        b"\2\0\0\0\0\0\0\0{}",
        b"\2\0\0\0\0\0\0\0[]",
        b"\xff" * 99,
    ],
    ids=["longer", "zeros", "text", "no metadata", "a list", "huge header"],
)
def test_a_foreign_file_is_seen(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match="x: "):
        map_features(tmp_path / "x", KEY)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        map_features(tmp_path / "x", KEY)
