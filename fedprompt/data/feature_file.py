"""The features of one image as one safetensors file, read back as a memory map without a copy."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedprompt.errors import DataError

if TYPE_CHECKING:
    from fedprompt.data.cache import FeatureKey

__all__ = ["file_parts", "in_memory_order", "map_features"]

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

# Where a tensor may start. Torch allocates so, and MKL's sums depend on the alignment of what they read:
# at other addresses training from the disk would not give the numbers of training from memory.
_ALIGNMENT = 64


def in_memory_order(tensor: Tensor) -> Tensor:
    """A view, axes sorted by stride; contiguous if and only if elements lie without gap and overlap."""
    strides = tensor.stride()
    return tensor.permute(sorted(range(tensor.dim()), key=lambda axis: -strides[axis]))


def file_parts(key: FeatureKey, features: Sequence[Tensor]) -> list[bytes | memoryview] | None:
    """The bytes of a safetensors file, to be written one after the other; tensors of the CPU are not copied.

    Each feature is an entry "0", "1", ... whose axes are in the order of memory; the metadata hold the key,
    shapes and strides, and a CRC-32 over them and all data.

    Args:
        key: Is stored in the file.
        features: Without gaps or overlaps in memory (`in_memory_order`), of any shape, on any device.

    Returns:
        The parts, or None where a feature has a dtype that safetensors cannot hold.
    """
    if any(tensor.dtype not in _NAMES for tensor in features):
        return None
    entries: dict[str, object] = {}
    data: list[bytes | memoryview] = []
    for index, (tensor, (start, end)) in enumerate(zip(features, _places(features), strict=True)):
        ordered = in_memory_order(tensor.detach()).cpu()
        entries[str(index)] = _entry(_NAMES[tensor.dtype], ordered.shape, start, end)
        data.append(ordered.reshape(-1).view(torch.uint8).numpy().data)
        if gap := -end % _ALIGNMENT:  # safetensors allows no hole, so a filler stands between two tensors
            entries[f"{index}.filler"] = _entry("U8", (gap,), end, end + gap)
            data.append(bytes(gap))
    layout = [[_NAMES[tensor.dtype], list(tensor.shape), list(tensor.stride())] for tensor in features]
    text = json.dumps({"key": key.fields, "layout": layout})
    crc = zlib.crc32(text.encode())
    for part in data:
        crc = zlib.crc32(part, crc)
    header = json.dumps({"__metadata__": {"fedprompt": text, "crc32": f"{crc:08x}"}, **entries}).encode()
    header += b" " * (-(8 + len(header)) % _ALIGNMENT)
    return [len(header).to_bytes(8, "little"), header, *data]


def map_features(path: Path, key: FeatureKey) -> tuple[Tensor, ...]:
    """The features in a file that `file_parts` gave: dtypes, values, shapes and strides as they were.

    The tensors lie on pages of the file, mapped privately: nothing is copied, no file stays open, an unlinked
    file lives on until its last tensor is gone, and a write to a tensor never reaches the file. All data are
    read once for the checksum: without fsync a power cut can leave a file of the right length with holes.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It cannot be read.
        DataError: It is damaged, cut off, foreign, or holds the features of another key.
    """
    size = path.stat().st_size
    try:
        content = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        array = content.numpy()
        start = 8 + int.from_bytes(array[:8].tobytes(), "little")
        metadata = json.loads(array[8:start].tobytes())["__metadata__"]
        text = metadata["fedprompt"]
        description = json.loads(text)
        if description["key"] != key.fields:
            raise DataError(f"{path}: expected the features of {key}, got those of {description['key']}")
        if metadata["crc32"] != f"{zlib.crc32(array[start:].data, zlib.crc32(text.encode())):08x}":
            raise DataError(f"{path}: the content does not match its checksum; the file was damaged")
        return tuple(_slices(content[start:], description["layout"]))
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: expected a file of features, got one that cannot be read ({error})"
        ) from None


def _slices(data: Tensor, layout: list[tuple[str, list[int], list[int]]]) -> Iterator[Tensor]:
    start = 0
    for name, shape, strides in layout:
        dtype = _DTYPES[name]
        end = start + math.prod(shape) * dtype.itemsize
        yield data[start:end].view(dtype).as_strided(shape, strides)
        start = end + -end % _ALIGNMENT


def _places(features: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
    """First byte of each tensor within the data, and the byte after its last."""
    start = 0
    for tensor in features:
        yield start, start + tensor.nbytes
        start += tensor.nbytes + -tensor.nbytes % _ALIGNMENT


def _entry(dtype: str, shape: Sequence[int], start: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
