"""Files on disk: safetensors and JSON, written atomically, verified when read. No pickle anywhere."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load as from_safetensors
from safetensors.numpy import save as to_safetensors

from fedprompt.errors import DataError
from fedprompt.manifest import Arrays, arrays_digest

__all__ = [
    "arrays_from_bytes",
    "arrays_to_bytes",
    "read_arrays",
    "read_json",
    "write_arrays",
    "write_atomic",
    "write_json",
]

_META = "fedprompt"


def write_atomic(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Writes `content` so that a reader sees the old file or the new one, never a part.

    Args:
        path: Target; its folder is made where it is missing.
        content: All bytes of the file.
        durable: Also survive a power cut (fsync of file and folder). A killed process needs no fsync.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    if durable:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Writes `value` as indented JSON with a final newline. NaN and infinity are refused."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_atomic(path, text.encode(), durable=durable)


def read_json(path: Path) -> Any:
    """Reads a JSON file; raises `DataError` that names it when it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a JSON file, got one that cannot be read ({error})") from None


def arrays_to_bytes(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any] | None = None) -> bytes:
    """Named arrays, JSON metadata and a digest over both as the bytes of one safetensors file.

    They depend on the arguments alone: equal arrays and metadata give equal bytes.
    """
    ordered = {name: np.asarray(arrays[name], order="C") for name in sorted(arrays)}
    stored = dict(metadata or {})
    text = json.dumps(
        {"metadata": stored, "sha256": _digest(ordered, stored)}, sort_keys=True, allow_nan=False
    )
    return to_safetensors(ordered, metadata={_META: text})


def arrays_from_bytes(content: bytes, where: str) -> tuple[Arrays, dict[str, Any]]:
    """What `arrays_to_bytes` made bytes of.

    Args:
        content: The bytes.
        where: They come from, for the error.

    Raises:
        DataError: They are cut off, changed, or were not made by fedprompt.
    """
    try:
        arrays: Arrays = from_safetensors(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length]).get("__metadata__", {}).get(_META)
    except (SafetensorError, ValueError) as error:
        raise DataError(f"{where}: expected a safetensors file, got a corrupt one ({error})") from None
    return arrays, _checked(arrays, header, where)


def write_arrays(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any] | None = None,
    *,
    durable: bool = True,
) -> None:
    """Writes what `arrays_to_bytes` makes of named arrays and metadata as a file."""
    write_atomic(path, arrays_to_bytes(arrays, metadata), durable=durable)


def read_arrays(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Reads what `write_arrays` wrote: arrays and metadata.

    Raises:
        DataError: The file is missing, cut off, changed, or was not written by fedprompt.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            header = (file.metadata() or {}).get(_META)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: expected a safetensors file, got a corrupt one ({error})") from None
    return arrays, _checked(arrays, header, str(path))


def _checked(arrays: Arrays, header: str | None, where: str) -> dict[str, Any]:
    """The metadata of a header, once the digest in it has been found right."""
    if header is None:
        raise DataError(f"{where}: expected a file written by fedprompt, got a foreign safetensors file")
    try:
        stored = json.loads(header)
        metadata: dict[str, Any] = stored["metadata"]
        digest = stored["sha256"]
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{where}: expected metadata written by fedprompt, got other text") from None
    if digest != _digest(arrays, metadata):
        raise DataError(f"{where}: the content does not match its digest; the file was damaged or edited")
    return metadata


def _digest(arrays: Mapping[str, np.ndarray], metadata: dict[str, Any]) -> str:
    text = json.dumps([arrays_digest(arrays), metadata], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
