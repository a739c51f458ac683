"""Orders and reports as Flower records: the one place that knows how they travel.

A tensor travels in the format that Flower's own `Array` uses (numpy's `.npy`, C order), but is written and
read without the generic parser: that is several times as fast, and a header that announces more than the
message holds is refused before anything is allocated.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MessageType, RecordDict

from fedprompt.contract import (
    ORDER_RECORD,
    PEERS_RECORD,
    REPORT_RECORD,
    SHARED_RECORD,
    SITE_RECORD,
    Order,
    Report,
)
from fedprompt.errors import RunError
from fedprompt.manifest import Arrays

__all__ = [
    "MESSAGE_TYPES",
    "content_bytes",
    "decode_arrays",
    "encode_arrays",
    "order_content",
    "read_order",
    "read_report",
    "report_content",
]

MESSAGE_TYPES: Mapping[str, str] = {
    "describe": MessageType.QUERY,
    "train": MessageType.TRAIN,
    "evaluate": MessageType.EVALUATE,
}

_DOCUMENT = "document"
_FORMAT = "numpy.ndarray"
_MALFORMED = "a message is malformed"


def order_content(order: Order, shared: ArrayRecord | Arrays, site: Arrays, peers: Arrays) -> RecordDict:
    """The content of an order message; records without tensors are absent.

    `shared` may be a record made once by `encode_arrays` and used in the messages to all sites.
    """
    content = RecordDict({ORDER_RECORD: ConfigRecord({_DOCUMENT: order.encode()})})
    if shared:
        content[SHARED_RECORD] = shared if isinstance(shared, ArrayRecord) else encode_arrays(shared)
    if site:
        content[SITE_RECORD] = encode_arrays(site)
    if peers:
        content[PEERS_RECORD] = encode_arrays(peers)
    return content


def read_order(content: RecordDict) -> tuple[Order, Arrays, Arrays, Arrays]:
    """Order, shared, site and peers of a message; raises `RunError` where it is malformed."""
    order = Order.decode(_document(content, ORDER_RECORD))
    shared, site, peers = (_arrays(content, name) for name in (SHARED_RECORD, SITE_RECORD, PEERS_RECORD))
    return order, shared, site, peers


def report_content(report: Report, shared: Arrays, site: Arrays) -> RecordDict:
    """The content of a reply; records without tensors are absent."""
    content = RecordDict({REPORT_RECORD: ConfigRecord({_DOCUMENT: report.encode()})})
    if shared:
        content[SHARED_RECORD] = encode_arrays(shared)
    if site:
        content[SITE_RECORD] = encode_arrays(site)
    return content


def read_report(content: RecordDict) -> tuple[Report, Arrays, Arrays]:
    """Report, shared and site of a reply; raises `RunError` where it is malformed."""
    report = Report.decode(_document(content, REPORT_RECORD))
    unknown = sorted(set(content) - {REPORT_RECORD, SHARED_RECORD, SITE_RECORD})
    if unknown:
        raise RunError(f"reply: record {unknown[0]!r} is not part of a report", public=_MALFORMED)
    return report, _arrays(content, SHARED_RECORD), _arrays(content, SITE_RECORD)


def encode_arrays(arrays: Arrays) -> ArrayRecord:
    """Tensors by name to one record."""
    record = ArrayRecord()
    for name, array in arrays.items():
        dtype, shape = str(array.dtype), array.shape
        data = _header(dtype, shape) + array.tobytes(order="C")
        record[name] = Array(dtype=dtype, shape=shape, stype=_FORMAT, data=data)
    return record


def decode_arrays(record: ArrayRecord) -> Arrays:
    """One record to tensors by name; they are copies that the caller may change.

    Raises:
        RunError: A tensor is in another format or its bytes are not those of its shape.
    """
    return {name: _decode(name, array) for name, array in record.items()}


def content_bytes(content: RecordDict) -> int:
    """Bytes of the tensors and documents in a message; the transport's own framing is not counted."""
    size = 0
    for record in content.values():
        if isinstance(record, ArrayRecord):
            size += sum(len(array.data) for array in record.values())
        elif isinstance(record, ConfigRecord):
            size += sum(len(value) for value in record.values() if isinstance(value, str | bytes))
    return size


@lru_cache(maxsize=4096)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    description = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


def _decode(name: str, array: Array) -> np.ndarray:
    shape = tuple(array.shape)
    try:
        dtype = np.dtype(array.dtype)
        header = _header(array.dtype, shape) if dtype.kind in "fiub" else b""
    except (TypeError, ValueError):
        header = b""
    if not header or array.stype != _FORMAT or not array.data.startswith(header):
        raise RunError(
            f"tensor {name!r}: expected numpy's format of {array.dtype} {shape}", public=_MALFORMED
        )
    if len(array.data) != len(header) + math.prod(shape) * dtype.itemsize:
        raise RunError(f"tensor {name!r}: its bytes are not those of its shape {shape}", public=_MALFORMED)
    return np.frombuffer(array.data, dtype=dtype, offset=len(header)).reshape(shape).copy()


def _document(content: RecordDict, name: str) -> str:
    record = content.get(name)
    text = record.get(_DOCUMENT) if isinstance(record, ConfigRecord) else None
    if not isinstance(text, str):
        raise RunError(f"message: record {name!r} with a document is missing", public=_MALFORMED)
    return text


def _arrays(content: RecordDict, name: str) -> Arrays:
    record = content.get(name)
    if record is None:
        return {}
    if not isinstance(record, ArrayRecord):
        raise RunError(f"message: record {name!r} holds no tensors", public=_MALFORMED)
    return decode_arrays(record)
