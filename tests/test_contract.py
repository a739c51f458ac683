"""Orders and reports: what is sent is what arrives, and nothing else gets in."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprompt.config import Annotation
from fedprompt.contract import CaseCounts, Failure, Order, Report, SiteCard
from fedprompt.errors import RunError

FINITE = st.dictionaries(
    st.text(st.characters(codec="utf-8"), max_size=6),
    st.floats(allow_nan=False, allow_infinity=False),
    max_size=3,
)
TASKS = st.sampled_from(["describe", "train", "evaluate"])
COUNTS = st.builds(CaseCounts, **{split: st.integers(0, 10_000) for split in ("train", "val", "test")})
CARDS = st.builds(
    SiteCard,
    cases=COUNTS,
    annotation=st.sampled_from(list(Annotation)),
    backbone=st.just("embedded-unet"),
    fingerprint=st.just("3f" * 32),
    manifest=st.just([{"name": "a", "shape": [1, 2], "dtype": "float32", "scope": "shared"}]),
    parameters=st.dictionaries(st.sampled_from(["backbone", "shared"]), st.integers(0, 10**9)),
    environment=st.just({"python": "3.11"}),
)
REPORTS = st.builds(
    Report,
    site=st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True),
    round=st.integers(0, 1000),
    task=TASKS,
    failure=st.none() | st.builds(Failure, code=st.just("data"), reason=st.text(max_size=9)),
    card=st.none() | CARDS,
    cases=st.integers(0, 1000),
    metrics=FINITE,
    loss=FINITE,
    seconds=FINITE,
)
ORDERS = st.builds(
    Order,
    study=st.text(st.characters(codec="utf-8"), max_size=9),
    round=st.integers(0, 1000),
    task=TASKS,
    initial_arrays=st.booleans(),
    split=st.sampled_from(["val", "test"]),
)


@settings(max_examples=50, deadline=None)
@given(REPORTS)
def test_a_report_arrives_as_it_was_sent(report: Report) -> None:
    assert Report.decode(report.encode()) == report
    assert "\n" not in report.encode()


@settings(max_examples=50, deadline=None)
@given(ORDERS)
def test_an_order_arrives_as_it_was_sent(order: Order) -> None:
    assert Order.decode(order.encode()) == order


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"patient": "7"}, "patient"),
        ({"round": "3"}, "round"),
        ({"round": -1}, "round"),
        ({"round": True}, "round"),
        ({"task": "steal"}, "task"),
        ({"site": "../paris"}, "site"),
        ({"site": "Paris"}, "site"),
        ({"metrics": {"dice": "0.5"}}, "metrics.dice"),
        ({"loss": {"total": None}}, "loss.total"),
        ({"failure": {"code": "data"}}, "failure.reason"),
        ({"card": {}}, "card.cases"),
    ],
)
def test_a_malformed_report_is_refused_where_it_is_wrong(change: dict[str, object], place: str) -> None:
    values = {"site": "paris", "round": 1, "task": "train", **change}
    with pytest.raises(RunError, match=rf"^report: {place}:") as caught:
        Report.decode(json.dumps(values))
    assert caught.value.public == "a message is malformed"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_only_finite_numbers_pass(number: str) -> None:
    with pytest.raises(RunError):
        Report.decode(f'{{"site": "a", "round": 1, "task": "train", "metrics": {{"dice": {number}}}}}')


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_what_is_no_document_is_refused(text: str) -> None:
    for document in (Order, Report):
        with pytest.raises(RunError, match="document"):
            document.decode(text)
