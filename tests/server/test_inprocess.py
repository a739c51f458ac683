"""The in-process engine keeps Flower's promises: contexts, errors, order, time to live; and it is cheap."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fake_sites import make_app, make_study
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedprompt.manifest import Scope, TensorSpec
from server.engines import get_engine
from server.engines.inprocess import InProcessGrid, run
from server.loop import run_study
from server.run_directory import RunDirectory


def echo_app(seconds: float = 0.0) -> tuple[ClientApp, dict[str, int]]:
    """Counts per node in its context; the counts of all sites at work at the same time."""
    app, lock = ClientApp(), threading.Lock()
    seen = {"now": 0, "most": 0}
    inside: set[int] = set()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        with lock:
            assert context.node_id not in inside, "a node works on one message at a time"
            inside.add(context.node_id)
            seen["now"] += 1
            seen["most"] = max(seen["most"], seen["now"])
        time.sleep(seconds)
        count = int(context.state["count"]["n"]) if "count" in context.state else 0
        context.state["count"] = ConfigRecord({"n": count + 1})
        with lock:
            inside.discard(context.node_id)
            seen["now"] -= 1
        partition = context.node_config["partition-id"]
        return Message(
            RecordDict({"x": ConfigRecord({"n": count, "partition": partition})}), reply_to=message
        )

    return app, seen


def message_to(node: int, ttl: float = 60.0) -> Message:
    return Message(RecordDict({}), node, "train", ttl=ttl)


def test_a_node_keeps_its_context_and_its_partition() -> None:
    app, _ = echo_app()
    with InProcessGrid(app, 3) as grid:
        nodes = list(grid.get_node_ids())
        for number in range(3):
            answers = list(grid.send_and_receive([message_to(node) for node in nodes]))
            assert {(m.metadata.src_node_id, int(m.content["x"]["partition"])) for m in answers} == {
                (node, i) for i, node in enumerate(nodes)
            }
            assert all(m.content["x"]["n"] == number for m in answers)


def test_messages_to_one_node_are_worked_on_one_after_the_other_in_order() -> None:
    app, _ = echo_app(0.01)
    with InProcessGrid(app, 2, workers=2) as grid:
        node = next(iter(grid.get_node_ids()))
        ids = list(grid.push_messages([message_to(node) for _ in range(6)]))
        found: dict[str, int] = {}
        while len(found) < 6:
            found |= {
                m.metadata.reply_to_message_id: int(m.content["x"]["n"]) for m in grid.pull_messages(ids)
            }
    assert [found[i] for i in ids] == list(range(6))


def test_as_many_sites_work_at_once_as_there_are_workers() -> None:
    app, seen = echo_app(0.05)
    with InProcessGrid(app, 8, workers=3) as grid:
        list(grid.send_and_receive([message_to(node) for node in grid.get_node_ids()], timeout=10))
    assert seen["most"] == 3


def test_an_exception_of_the_app_becomes_an_error_reply(caplog: pytest.LogCaptureFixture) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise ValueError("boom")

    with InProcessGrid(app, 1) as grid:
        (answer,) = grid.send_and_receive(
            [
                message_to(2),
            ],
            timeout=10,
        )
        assert answer.has_error()
        assert answer.error.code == 2
        assert "boom" in str(answer.error.reason)
        (unknown,) = grid.send_and_receive([Message(RecordDict(), 2, "query")], timeout=10)
        assert unknown.has_error()
    assert "boom" in caplog.text


def test_messages_and_replies_past_their_time_are_dropped() -> None:
    app, _ = echo_app(0.2)
    with InProcessGrid(app, 1, workers=1) as grid:
        late, never = grid.push_messages([message_to(2, ttl=0.1), message_to(2, ttl=0.1)])
        (fresh,) = grid.push_messages([message_to(2)])
        time.sleep(0.6)
        (answer,) = grid.pull_messages({late, never, fresh})
    assert answer.metadata.reply_to_message_id == fresh
    assert answer.content["x"]["n"] == 1  # the second was never started


def test_work_pauses_while_replies_wait() -> None:
    done = threading.Semaphore(0)
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        done.release()
        return Message(RecordDict(), reply_to=message)

    with InProcessGrid(app, 50, workers=2) as grid:
        ids = set(grid.push_messages([message_to(node) for node in grid.get_node_ids()]))
        time.sleep(0.3)
        held = 0
        while done.acquire(blocking=False):
            held += 1
        assert held <= 4 * 2 + 2
        limit = time.monotonic() + 20
        while ids and time.monotonic() < limit:
            ids -= {m.metadata.reply_to_message_id for m in grid.pull_messages(ids)}
    assert not ids


def test_a_hanging_site_does_not_hold_up_the_end() -> None:
    app = ClientApp()
    release = threading.Event()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        release.wait(30)
        return Message(RecordDict(), reply_to=message)

    began = time.monotonic()
    with InProcessGrid(app, 1) as grid:
        grid.push_messages([message_to(2)])
        time.sleep(0.05)
    assert time.monotonic() - began < 5
    release.set()


def test_run_returns_what_the_server_returns() -> None:
    app, _ = echo_app()
    assert run(lambda grid, _: sorted(grid.get_node_ids()), app, 3) == [2, 3, 4]
    assert get_engine("inprocess") is run
    with pytest.raises(ZeroDivisionError):
        run(lambda *_: 1 // 0, app, 3)


def test_neither_torch_nor_ray_is_imported() -> None:
    code = (
        "import sys, server.app, server.loop, server.engines.inprocess, server.engines.ray, strategies.wire"
    )
    code += "; sys.exit(any(name in sys.modules for name in ('torch', 'ray', 'monai', 'transformers')))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_thousand_sites_cost_little_time_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """About 60 k shared values, nothing trained. The bounds are loose: a busy machine must not fail them."""
    shapes = {f"prompts.level{i}.weight": ((64, 46), Scope.SHARED) for i in range(20)}
    shapes |= {
        "prompts.data_aware.row": ((1, 8, 8), Scope.SITE),
        "auxiliary_head.weight": ((3, 16), Scope.SITE),
    }
    monkeypatch.setattr("fake_sites.SHAPES", shapes)
    monkeypatch.setattr("fake_sites.trained", lambda _site, _round, arrays, _peers: arrays)
    study = make_study("fedlppa", rounds={"count": 1, "deadline": 120.0})
    sites = [f"site-{i:04d}" for i in range(1000)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with RunDirectory.create(tmp_path / "run", study) as directory:
        main = partial(run_study, run=directory, sites=len(sites))
        outcome = run(main, make_app(study, sites), len(sites), workers=2)
    assert (outcome.status, outcome.rounds) == ("completed", 1)
    assert outcome.summary["seconds"]["per_round"] / len(sites) < 0.02
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6  # GB: Linux counts in KiB
    assert grown < 1.0


def test_the_shape_of_the_fake_model_has_a_scalar() -> None:
    """0-dimensional tensors easily become vectors on the way; the fake model keeps one in all tests."""
    assert TensorSpec("x", (), "float32", Scope.SHARED).nbytes == np.ones((), "f4").nbytes == 4
