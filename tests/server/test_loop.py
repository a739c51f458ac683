"""The round loop over fake sites: what it writes, whom it drops and why, and that it always ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_sites import (
    FINGERPRINT,
    Behaviour,
    initial,
    make_app,
    make_card,
    make_study,
    manifest_of,
    simulate,
    trained,
)

from fedprompt.artifacts import read_arrays, read_json
from fedprompt.config import Study
from fedprompt.contract import CaseCounts, Failure, Order, Report
from fedprompt.errors import ConfigurationError
from fedprompt.manifest import Arrays, Manifest, Scope
from server.engines.inprocess import InProcessGrid
from server.loop import Outcome, run_study
from server.run_directory import RunDirectory, read_events
from strategies import Update, make_strategy

SITES = ["a", "b", "c"]


def of(folder: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in read_events(folder) if event["event"] == name]


def spoil(what: str, rounds: Iterable[int] = (2,)) -> Behaviour:
    """A site that answers wrongly in some rounds of training."""

    def behave(order: Order, report: Report, shared: Arrays, kept: Arrays) -> tuple[Report, Arrays, Arrays]:
        if order.task != "train" or order.round not in rounds:
            return report, shared, kept
        name = "head.weight"
        if what == "nan":
            shared = shared | {name: shared[name] * np.float32("nan")}
        elif what == "shape":
            shared = shared | {name: shared[name].T.copy()}
        elif what == "dtype":
            shared = shared | {name: shared[name].astype("f8")}
        elif what == "renamed":
            shared = {("head.wait" if n == name else n): array for n, array in shared.items()}
        elif what == "extra":
            shared = shared | {"backbone.weight": np.ones(3, "f4")}
        elif what == "missing":
            kept = {}
        elif what == "scope":
            shared, kept = shared | kept, {}
        elif what == "identity":
            report = report.model_copy(update={"site": "a"})
        elif what == "round":
            report = report.model_copy(update={"round": order.round - 1})
        elif what == "loss":
            report = report.model_copy(update={"loss": {"pce": float("nan")}})
        elif what == "failure":
            failure = Failure(code="data", reason="the loss is\nnot finite")
            report, shared, kept = report.model_copy(update={"failure": failure}), {}, {}
        elif what == "crash":
            raise ValueError("/home/hospital/patients/meier.png")
        elif what == "sleep":
            time.sleep(1.5)
        return report, shared, kept

    return behave


def test_a_study_leaves_all_its_files(tmp_path: Path) -> None:
    study = make_study("fedlppa")
    seen: list[dict[str, Any]] = []
    outcome = simulate(tmp_path / "run", study, SITES, on_event=seen.append)
    assert (outcome.status, outcome.rounds, outcome.reason) == ("completed", 4, None)
    events = read_events(tmp_path / "run")
    assert seen == events
    names = [event["event"] for event in events]
    one_round = ["round_started", *["site_reported"] * 3, "round_finished"]
    assert names == ["study_started", *["site_joined"] * 3, *one_round * 4, "evaluated", "study_finished"]
    last = of(tmp_path / "run", "round_finished")[-1]
    assert (last["round"], last["sites"], last["loss"]) == (4, 3, 0.75)
    assert last["strategy"]["affinity"]["a"].keys() == set(SITES)
    assert last["bytes"]["up"] == sum(e["bytes"]["up"] for e in of(tmp_path / "run", "site_reported")[-3:])
    summary = read_json(tmp_path / "run" / "summary.json")
    assert summary == outcome.summary
    assert summary["status"] == "completed"
    assert summary["sites"]["b"]["cases"] == {"train": 5, "val": 1, "test": 2}
    assert summary["mean"]["dice"] == pytest.approx(
        np.mean([s["metrics"]["dice"] for s in summary["sites"].values()])
    )
    assert summary["backbone"] == {"name": "embedded-unet", "fingerprint": FINGERPRINT}
    shared, metadata = read_arrays(tmp_path / "run" / "prompts" / "shared.safetensors")
    bundle = read_json(tmp_path / "run" / "prompts" / "bundle.json")
    assert shared.keys() == set(manifest_of(study).select(Scope.SHARED).names())
    assert metadata["round"] == bundle["round"] == 4
    assert bundle["digest"] == study.digest()
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedadam", "fedlppa", "full-finetune"])
def test_the_result_is_that_of_the_strategy_by_hand(tmp_path: Path, name: str) -> None:
    study = make_study(name)
    manifest = manifest_of(study)
    first = initial(manifest, study.seed)
    strategy = make_strategy(study.strategy)
    pick = lambda scope: {n: first[n] for n in manifest.select(scope).names()}  # noqa: E731
    strategy.start(manifest, pick(Scope.SHARED), pick(Scope.SITE))
    for number in range(1, 5):
        updates = []
        for index, site in enumerate(SITES):
            shared, kept, peers = strategy.outgoing(site)
            arrays = trained(site, number, shared, peers), trained(site, number, kept, peers)
            updates.append(Update(site, 4 + index, *arrays))
        strategy.aggregate(number, updates)
    simulate(tmp_path / "run", study, SITES)
    shared, _ = read_arrays(tmp_path / "run" / "prompts" / "shared.safetensors")
    assert {n: a.tobytes() for n, a in shared.items()} == {n: a.tobytes() for n, a in strategy.shared.items()}


def test_local_shares_nothing_and_still_counts_rounds(tmp_path: Path) -> None:
    outcome = simulate(tmp_path / "run", make_study("local"), SITES)
    assert (outcome.status, outcome.rounds) == ("completed", 4)
    assert read_arrays(tmp_path / "run" / "prompts" / "shared.safetensors")[0] == {}


def test_no_rounds_evaluate_the_initial_tensors(tmp_path: Path) -> None:
    study = make_study("fedlppa")
    outcome = simulate(tmp_path / "run", study, SITES, rounds=0)
    assert (outcome.status, outcome.rounds) == ("completed", 0)
    assert outcome.summary["mean"].keys() == {"dice"}
    shared, _ = read_arrays(tmp_path / "run" / "prompts" / "shared.safetensors")
    np.testing.assert_array_equal(shared["head.weight"], initial(manifest_of(study), 0)["head.weight"])


def test_timing_does_not_change_the_result(tmp_path: Path) -> None:
    def late(order: Order, report: Report, shared: Arrays, kept: Arrays) -> tuple[Report, Arrays, Arrays]:
        time.sleep(0.05 if order.round % 2 else 0)
        return report, shared, kept

    for name, slow in (("one", "a"), ("other", "c")):
        simulate(tmp_path / name, make_study("fedlppa"), SITES, {slow: late}, workers=3)
    contents = [
        (tmp_path / name / "prompts" / "shared.safetensors").read_bytes() for name in ("one", "other")
    ]
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        ("nan", "arrays", "finite"),
        ("shape", "arrays", "expected shape (3, 5), got (5, 3)"),
        ("dtype", "arrays", "expected dtype float32, got float64"),
        ("renamed", "arrays", "'head.weight' is missing"),
        ("extra", "arrays", "'backbone.weight' is not in the manifest"),
        ("missing", "arrays", "is missing"),
        ("scope", "arrays", "is not in the manifest"),
        ("identity", "identity", "in the name of a"),
        ("round", "malformed", "in round 1"),
        ("failure", "data", "the loss is not finite"),
        ("crash", "failed", "its local log says why"),
    ],
)
def test_a_bad_reply_drops_its_site_from_that_round(tmp_path: Path, what: str, code: str, words: str) -> None:
    outcome = simulate(tmp_path / "run", make_study("fedlppa"), SITES, {"b": spoil(what)})
    assert (outcome.status, outcome.rounds) == ("completed", 4)
    (dropped,) = of(tmp_path / "run", "site_dropped")
    assert (dropped["round"], dropped["site"], dropped["code"]) == (2, "b", code)
    assert words in dropped["reason"]
    assert [event["sites"] for event in of(tmp_path / "run", "round_finished")] == [3, 2, 3, 3]
    assert outcome.summary["dropped"] == 1
    assert "meier" not in (tmp_path / "run" / "events.jsonl").read_text()
    shared, _ = read_arrays(tmp_path / "run" / "prompts" / "shared.safetensors")
    assert all(np.isfinite(array).all() for array in shared.values())


def test_a_dropped_site_leaves_no_trace_in_the_result(tmp_path: Path) -> None:
    def silent(order: Order, report: Report, shared: Arrays, kept: Arrays) -> tuple[Report, Arrays, Arrays]:
        failure = Failure(code="x", reason="x") if order.round == 2 else None
        return report.model_copy(update={"failure": failure}), shared, kept

    for name, behaviour in (("nan", spoil("nan")), ("failure", silent)):
        simulate(tmp_path / name, make_study("fedadam"), SITES, {"b": behaviour})
    contents = [
        (tmp_path / name / "prompts" / "shared.safetensors").read_bytes() for name in ("nan", "failure")
    ]
    assert contents[0] == contents[1]


def test_a_site_past_the_deadline_is_left_out_and_its_late_reply_ignored(tmp_path: Path) -> None:
    study = make_study("fedavg", rounds={"count": 4, "deadline": 0.6})
    outcome = simulate(tmp_path / "run", study, SITES, {"c": spoil("sleep")}, workers=3)
    assert (outcome.status, outcome.rounds) == ("completed", 4)
    dropped = of(tmp_path / "run", "site_dropped")
    assert [event["round"] for event in dropped][:1] == [2]
    assert {(event["site"], event["code"]) for event in dropped} == {("c", "deadline")}
    reported = [(e["round"], e["site"]) for e in of(tmp_path / "run", "site_reported")]
    assert (2, "c") not in reported
    assert len(reported) == len(set(reported))


def test_a_round_without_a_quorum_is_skipped_and_the_study_goes_on(tmp_path: Path) -> None:
    bad = {site: spoil("failure", [2]) for site in "bc"}
    outcome = simulate(tmp_path / "run", make_study(), SITES, bad)
    assert (outcome.status, outcome.rounds) == ("completed", 4)
    (skipped,) = of(tmp_path / "run", "round_skipped")
    assert (skipped["round"], skipped["reason"]) == (2, "1 of at least 2 sites gave a usable update")
    assert outcome.summary["skipped"] == 1


def test_three_skipped_rounds_in_a_row_stop_the_study_in_order(tmp_path: Path) -> None:
    bad = {site: spoil("failure", range(3, 9)) for site in "bc"}
    study = make_study(rounds={"count": 9, "deadline": 10.0})
    outcome = simulate(tmp_path / "run", study, SITES, bad)
    assert (outcome.status, outcome.rounds) == ("stopped", 2)
    assert "3 rounds in a row were skipped" in str(outcome.reason)
    assert read_json(tmp_path / "run" / "summary.json")["status"] == "stopped"
    assert read_json(tmp_path / "run" / "prompts" / "bundle.json")["round"] == 2


def test_a_study_without_any_good_round_is_not_completed(tmp_path: Path) -> None:
    bad = {site: spoil("nan", range(9)) for site in SITES}
    outcome = simulate(tmp_path / "run", make_study(rounds={"count": 2, "deadline": 5.0}), SITES, bad)
    assert (outcome.status, outcome.rounds) == ("stopped", 0)


def describe_as(**changes: Any) -> Behaviour:
    def behave(order: Order, report: Report, shared: Arrays, kept: Arrays) -> tuple[Report, Arrays, Arrays]:
        if order.task == "describe":
            site = changes.get("site", report.site)
            card = make_card(changes.get("manifest", manifest_of(make_study())), **changes.get("card", {}))
            report = report.model_copy(update={"site": site, "card": card} | changes.get("report", {}))
        return report, shared, kept

    return behave


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"card": {"fingerprint": "cd" * 32}}, "fingerprint"),
        ({"manifest": manifest_of(make_study("fedlppa"))}, "manifest"),
        ({"manifest": Manifest(())}, "manifest"),
        ({"card": {"manifest": [{"name": "x"}]}}, "malformed"),
        ({"card": {"cases": CaseCounts(train=0, val=0, test=3)}}, "data"),
        ({"site": "b"}, "duplicate-site"),
        ({"report": {"card": None}}, "malformed"),
        ({"report": {"failure": Failure(code="study", reason="another study")}}, "study"),
    ],
)
def test_a_site_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], code: str) -> None:
    study = make_study("fedavg", rounds={"count": 1, "deadline": 5.0})
    outcome = simulate(tmp_path / "run", study, SITES, {"c": describe_as(**changes)})
    assert outcome.status == "completed"
    (refused,) = of(tmp_path / "run", "site_refused")
    assert (refused["node"], refused["code"]) == (4, code)
    assert [event["site"] for event in of(tmp_path / "run", "site_joined")] == ["a", "b"]
    assert outcome.summary["sites"].keys() == {"a", "b"}


def test_the_fingerprint_of_the_study_decides_over_the_first_site(tmp_path: Path) -> None:
    study = make_study(rounds={"count": 1, "deadline": 5.0}, backbone={"fingerprint": "cd" * 32})
    other = {site: describe_as(card={"fingerprint": "cd" * 32}) for site in "bc"}
    outcome = simulate(tmp_path / "run", study, SITES, other)
    assert outcome.status == "completed"
    (refused,) = of(tmp_path / "run", "site_refused")
    assert (refused["site"], refused["code"]) == ("a", "fingerprint")


def test_a_closed_federation_without_enough_sites_ends_at_once_and_says_why(tmp_path: Path) -> None:
    study = make_study(rounds={"count": 9, "deadline": 60.0})
    failure = {"report": {"failure": Failure(code="data", reason="no such image")}}
    began = time.monotonic()
    outcome = simulate(tmp_path / "run", study, SITES, {site: describe_as(**failure) for site in "bc"})
    assert time.monotonic() - began < 10
    assert outcome.status == "stopped"
    assert "1 of at least 2 sites are there (refused: data: no such image)" in str(outcome.reason)


def test_fewer_sites_than_the_quorum_are_a_wrong_study(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"rounds\.quorum: expected at most"):
        simulate(tmp_path / "run", make_study(), ["a"])


def test_initial_tensors_come_from_the_next_site_if_the_first_gives_bad_ones(tmp_path: Path) -> None:
    def broken(order: Order, report: Report, shared: Arrays, kept: Arrays) -> tuple[Report, Arrays, Arrays]:
        return report, {} if order.initial_arrays else shared, kept

    simulate(tmp_path / "good", make_study(), SITES)
    simulate(tmp_path / "bad", make_study(), SITES, {"a": broken})
    contents = [(tmp_path / name / "prompts" / "shared.safetensors").read_bytes() for name in ("good", "bad")]
    assert contents[0] == contents[1]
    (dropped,) = of(tmp_path / "bad", "site_dropped")
    assert (dropped["site"], dropped["round"], dropped["task"]) == ("a", 0, "describe")


class Doors(InProcessGrid):
    """Nodes 2, 3, ... of which some are not online."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.closed: set[int] = set()
        super().__init__(*arguments, **options)

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in super().get_node_ids() if node not in self.closed]


def open_federation(
    folder: Path, study: Study, doors: Doors, changes: dict[int, set[int]], **options: Any
) -> Outcome:
    """A study with nodes that may come and go: `changes` says who is away after which round."""

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "round_finished":
            doors.closed = changes.get(event["round"], doors.closed)

    with doors, RunDirectory.create(folder, study) as run:
        return run_study(doors, threading.Event(), run=run, on_event=on_event, **options)


def test_a_late_joiner_takes_part_from_the_round_in_which_it_comes(tmp_path: Path) -> None:
    study = make_study("fedlppa")
    received: list[tuple[int, Arrays, Arrays]] = []

    def listen(order: Order, report: Report, shared: Arrays, kept: Arrays) -> tuple[Report, Arrays, Arrays]:
        received.append((order.round, shared, kept))
        return report, shared, kept

    doors = Doors(make_app(study, SITES, {"c": listen}), 3, workers=2)
    doors.closed = {4}
    outcome = open_federation(tmp_path / "run", study, doors, {2: set()})
    assert outcome.status == "completed"
    assert [event["sites"] for event in of(tmp_path / "run", "round_started")] == [["a", "b"]] * 2 + [
        SITES
    ] * 2
    joined = [event["site"] for event in of(tmp_path / "run", "site_joined")]
    assert joined == SITES
    assert [number for number, _, kept in received if kept] == [3, 4]
    assert outcome.summary["sites"].keys() == set(SITES)


def test_a_site_that_leaves_is_not_waited_for_and_keeps_its_row(tmp_path: Path) -> None:
    study = make_study("fedlppa")
    doors = Doors(make_app(study, SITES), 3, workers=2)
    outcome = open_federation(tmp_path / "run", study, doors, {2: {4}})
    assert outcome.status == "completed"
    assert [event["sites"] for event in of(tmp_path / "run", "round_started")] == [SITES] * 2 + [
        ["a", "b"]
    ] * 2
    last = of(tmp_path / "run", "round_finished")[-1]
    assert last["strategy"]["affinity"]["a"].keys() == set(SITES)
    arrays, _ = read_arrays(max((tmp_path / "run" / "checkpoints").iterdir()))
    assert "site/c/prompts.data_aware.row" in arrays


def test_an_open_federation_waits_no_longer_than_its_deadline(tmp_path: Path) -> None:
    study = make_study(rounds={"count": 4, "deadline": 0.3})
    doors = Doors(make_app(study, SITES), 3, workers=2)
    outcome = open_federation(tmp_path / "run", study, doors, {1: {3, 4}})
    assert (outcome.status, outcome.rounds) == ("stopped", 1)
    assert [event["round"] for event in of(tmp_path / "run", "round_skipped")] == [2, 3, 4]


def test_a_refused_site_of_an_open_federation_may_mend_its_cause(tmp_path: Path) -> None:
    study = make_study()
    mended = threading.Event()

    def moody(order: Order, report: Report, shared: Arrays, kept: Arrays) -> tuple[Report, Arrays, Arrays]:
        if order.task == "describe" and not mended.is_set():
            report = report.model_copy(
                update={"card": None, "failure": Failure(code="data", reason="no disk")}
            )
        return report, shared, kept

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "round_finished":
            mended.set()
            time.sleep(0.05)

    study = make_study(rounds={"count": 6, "deadline": 10.0})
    with (
        Doors(make_app(study, SITES, {"c": moody}), 3) as grid,
        RunDirectory.create(tmp_path / "run", study) as run,
    ):
        outcome = run_study(grid, threading.Event(), run=run, on_event=on_event)
    assert outcome.status == "completed"
    assert len(of(tmp_path / "run", "site_refused")) == 1
    assert of(tmp_path / "run", "round_finished")[-1]["sites"] == 3


def test_a_site_that_is_slow_to_describe_itself_joins_later(tmp_path: Path) -> None:
    def slow(order: Order, report: Report, shared: Arrays, kept: Arrays) -> tuple[Report, Arrays, Arrays]:
        time.sleep(0.9 if order.task == "describe" else 0)
        return report, shared, kept

    def on_event(event: dict[str, Any]) -> None:
        time.sleep(0.3 if event["event"] == "round_started" else 0)

    study = make_study(rounds={"count": 5, "deadline": 0.5})
    app = make_app(study, SITES, {"c": slow})
    with InProcessGrid(app, 3, workers=3) as grid, RunDirectory.create(tmp_path / "run", study) as run:
        outcome = run_study(grid, threading.Event(), run=run, on_event=on_event)
    assert outcome.status == "completed"
    started = [event["sites"] for event in of(tmp_path / "run", "round_started")]
    assert started[0] == ["a", "b"]
    assert started[-1] == SITES
    assert of(tmp_path / "run", "site_refused") == []


@pytest.mark.parametrize("way", ["event", "keyboard"])
def test_an_interrupted_study_stops_with_everything_written(tmp_path: Path, way: str) -> None:
    stop = threading.Event()

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "site_reported" and event["round"] == 3:
            if way == "keyboard":
                raise KeyboardInterrupt
            stop.set()

    study = make_study()
    with (
        InProcessGrid(make_app(study, SITES), 3) as grid,
        RunDirectory.create(tmp_path / "run", study) as run,
    ):
        outcome = run_study(grid, stop, run=run, sites=3, on_event=on_event)
    assert (outcome.status, outcome.rounds, outcome.reason) == ("stopped", 2, "interrupted")
    assert read_json(tmp_path / "run" / "summary.json")["status"] == "stopped"
    assert read_json(tmp_path / "run" / "prompts" / "bundle.json")["round"] == 2
    assert of(tmp_path / "run", "study_finished")[-1]["reason"] == "interrupted"
    assert simulate(tmp_path / "run", study, SITES, resume=True).status == "completed"


def test_an_error_in_the_display_ends_the_run_as_failed(tmp_path: Path) -> None:
    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "round_finished":
            raise RuntimeError("no terminal")

    with pytest.raises(RuntimeError, match="no terminal"):
        simulate(tmp_path / "run", make_study(), SITES, on_event=on_event)
    assert of(tmp_path / "run", "study_finished")[-1]["status"] == "failed"
    assert read_json(tmp_path / "run" / "summary.json")["status"] == "failed"


def test_the_weight_of_a_site_is_not_what_it_reports(tmp_path: Path) -> None:
    def boast(order: Order, report: Report, shared: Arrays, kept: Arrays) -> tuple[Report, Arrays, Arrays]:
        return report.model_copy(update={"cases": 1_000_000}), shared, kept

    simulate(tmp_path / "boast", make_study(), SITES, {"a": boast})
    simulate(tmp_path / "plain", make_study(), SITES)
    assert of(tmp_path / "boast", "round_finished")[0]["strategy"]["weights"]["a"] == pytest.approx(
        4 / 15, abs=1e-6
    )
    contents = [(tmp_path / n / "prompts" / "shared.safetensors").read_bytes() for n in ("boast", "plain")]
    assert contents[0] == contents[1]
