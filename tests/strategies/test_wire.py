"""Orders and reports survive the way through Flower's records; malformed ones are refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from hypothesis.extra.numpy import arrays as numpy_arrays

from fedprompt.contract import Order, Report
from fedprompt.errors import RunError
from strategies.wire import (
    content_bytes,
    decode_arrays,
    encode_arrays,
    order_content,
    read_order,
    read_report,
    report_content,
)

ORDER = Order(study="d" * 64, round=3, task="train")
REPORT = Report(site="aviano", round=3, task="train", cases=5, metrics={"dice": 0.5})
ARRAYS = {"prompts.map": np.arange(6, dtype="f4").reshape(1, 2, 3), "gate": np.ones((), "f4")}


@given(
    numpy_arrays(
        st.sampled_from(["f4", "f8", "i8", "u1", "?"]), array_shapes(min_dims=0, min_side=0, max_side=4)
    )
)
def test_any_tensor_travels_as_flower_would_send_it(array: np.ndarray) -> None:
    record = encode_arrays({"x": array})
    assert record["x"].data == Array(array).data
    back = decode_arrays(record)["x"]
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_a_tensor_in_another_memory_order_arrives_in_c_order() -> None:
    array = np.asfortranarray(np.arange(6, dtype="f4").reshape(2, 3))
    np.testing.assert_array_equal(decode_arrays(encode_arrays({"x": array}))["x"], array)


def test_what_arrives_is_a_copy() -> None:
    record = encode_arrays(ARRAYS)
    decode_arrays(record)["prompts.map"][:] = 9
    np.testing.assert_array_equal(decode_arrays(record)["prompts.map"], ARRAYS["prompts.map"])


def test_an_order_there_and_back() -> None:
    peers = {"prompts.data_aware.row": np.zeros((1, 2, 2), "f4")}
    order, shared, site, got = read_order(order_content(ORDER, ARRAYS, {}, peers))
    assert order == ORDER
    assert shared.keys() == ARRAYS.keys()
    assert site == {}
    assert got.keys() == peers.keys()


def test_empty_records_are_absent_and_a_shared_record_is_not_made_again() -> None:
    assert set(order_content(ORDER, {}, {}, {})) == {"order"}
    record = encode_arrays(ARRAYS)
    assert order_content(ORDER, record, {}, {})["shared"] is record
    assert set(report_content(REPORT, {}, ARRAYS)) == {"report", "site"}


def test_a_report_survives_protobuf() -> None:
    content = recorddict_from_proto(recorddict_to_proto(report_content(REPORT, ARRAYS, {})))
    report, shared, site = read_report(content)
    assert report == REPORT
    np.testing.assert_array_equal(shared["prompts.map"], ARRAYS["prompts.map"])
    assert site == {}


def test_bytes_are_those_of_tensors_and_documents() -> None:
    content = report_content(REPORT, ARRAYS, {})
    headers = 2 * 128
    assert content_bytes(content) == len(REPORT.encode()) + 6 * 4 + 4 + headers


def broken_array(**changes: object) -> ArrayRecord:
    array = Array(ARRAYS["prompts.map"])
    for name, value in changes.items():
        setattr(array, name, value)
    return ArrayRecord({"x": array})


@pytest.mark.parametrize(
    "record",
    [
        broken_array(shape=(100_000, 100_000, 100)),
        broken_array(dtype="object"),
        broken_array(dtype="no such type"),
        broken_array(stype="pickle"),
        broken_array(data=Array(ARRAYS["prompts.map"]).data[:-1]),
        broken_array(data=Array(ARRAYS["prompts.map"]).data + b"x"),
        broken_array(data=b""),
        broken_array(shape=(6,)),
    ],
)
def test_a_tensor_that_is_not_what_it_says_is_refused(record: ArrayRecord) -> None:
    with pytest.raises(RunError, match="tensor 'x'") as caught:
        decode_arrays(record)
    assert caught.value.public == "a message is malformed"


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"report": MetricRecord({"document": 1})}),
        RecordDict({"report": ConfigRecord({"document": 1})}),
        RecordDict({"report": ConfigRecord({"document": "{}"})}),
        RecordDict({"report": ConfigRecord({"document": "no json"})}),
        RecordDict({"report": ConfigRecord({"document": REPORT.encode()}), "shared": ConfigRecord({})}),
        RecordDict({"report": ConfigRecord({"document": REPORT.encode()}), "images": encode_arrays(ARRAYS)}),
    ],
)
def test_a_malformed_reply_is_refused(content: RecordDict) -> None:
    with pytest.raises(RunError):
        read_report(content)


def test_a_metric_that_is_not_finite_is_refused() -> None:
    text = REPORT.encode().replace("0.5", "NaN")
    assert "NaN" in text
    with pytest.raises(RunError, match="metrics"):
        read_report(RecordDict({"report": ConfigRecord({"document": text})}))


def test_only_this_module_knows_the_records() -> None:
    folder = Path(__file__).parents[2] / "strategies"
    users = [
        path.name
        for path in folder.glob("*.py")
        if "import flwr" in (text := path.read_text()) or "from flwr" in text
    ]
    assert users == ["wire.py"]
