"""A run that was cut off anywhere ends with the same bytes as one that was not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fake_sites
import pytest
from fake_sites import make_study, simulate

from fedprompt.artifacts import read_json
from fedprompt.errors import ConfigurationError, DataError
from server.run_directory import read_events

SITES = ["a", "b", "c"]
STRATEGIES = ["fedavg", "fedadam", "fedlppa"]


class Crash(Exception):
    """Stands for a process that ends here."""


def crash_at(name: str, number: int, site: str | None = None) -> Any:
    def on_event(event: dict[str, Any]) -> None:
        if (event["event"], event.get("round")) == (name, number) and site in (None, event.get("site")):
            raise Crash

    return on_event


def shared_bytes(folder: Path) -> bytes:
    return (folder / "prompts" / "shared.safetensors").read_bytes()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "crash",
    [
        ("round_started", 1, None),
        ("round_finished", 1, None),
        ("site_reported", 3, "b"),
        ("round_finished", 4, None),
    ],
)
def test_resumed_equals_undisturbed(
    tmp_path: Path, strategy: str, crash: tuple[str, int, str | None]
) -> None:
    study = make_study(strategy)
    undisturbed = simulate(tmp_path / "undisturbed", study, SITES)
    with pytest.raises(Crash):
        simulate(tmp_path / "cut", study, SITES, on_event=crash_at(*crash))
    outcome = simulate(tmp_path / "cut", study, SITES, resume=True)
    assert (outcome.status, outcome.rounds) == ("completed", 4)
    assert shared_bytes(tmp_path / "cut") == shared_bytes(tmp_path / "undisturbed")
    assert outcome.summary["sites"] == undisturbed.summary["sites"]
    assert outcome.summary["bytes"] == pytest.approx(undisturbed.summary["bytes"], rel=0.01)


def test_a_round_that_was_not_reported_any_more_is_reported_by_the_resumed_run(tmp_path: Path) -> None:
    study = make_study()
    simulate(tmp_path / "run", study, SITES)
    path = tmp_path / "run" / "events.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(lines) if '"round_finished"' in line and '"round": 4' in line)
    path.write_text("".join(lines[:cut]) + lines[cut][:20])  # killed within the write of its event
    simulate(tmp_path / "run", study, SITES, resume=True)
    finished = [event for event in read_events(tmp_path / "run") if event["event"] == "round_finished"]
    assert [event["round"] for event in finished] == [1, 2, 3, 4]
    assert finished[3] == json.loads(lines[cut])


def hear_ctrl_c() -> None:
    """A shell that runs the tests in its background makes its children deaf to SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def cut_off(folder: Path, strategy: str, how: signal.Signals) -> int:
    """Starts a study of six rounds in a process of its own and sends it a signal after its third."""
    script = [sys.executable, "-W", "ignore", fake_sites.__file__, str(folder), strategy]
    with subprocess.Popen([*script, "new"], preexec_fn=hear_ctrl_c) as process:
        limit = time.monotonic() + 60
        while time.monotonic() < limit and process.poll() is None:
            if (folder / "checkpoints" / "round-000003.safetensors").exists():
                break
            time.sleep(0.01)
        process.send_signal(how)
    rounds = {event.get("round", 0) for event in read_events(folder)}
    assert 3 in rounds
    assert 6 not in rounds
    return process.returncode


@pytest.mark.parametrize("strategy", ["fedadam", "fedlppa"])
def test_kill_9_in_the_middle(tmp_path: Path, strategy: str) -> None:
    study = make_study(strategy, rounds={"count": 6, "deadline": 10.0})
    assert cut_off(tmp_path / "killed", strategy, signal.SIGKILL) == -signal.SIGKILL
    script = [sys.executable, "-W", "ignore", fake_sites.__file__, str(tmp_path / "killed"), strategy]
    subprocess.run([*script, "resume"], check=True, timeout=60)
    simulate(tmp_path / "undisturbed", study, SITES)
    assert shared_bytes(tmp_path / "killed") == shared_bytes(tmp_path / "undisturbed")
    summary = read_json(tmp_path / "killed" / "summary.json")
    assert (summary["status"], summary["rounds"]) == ("completed", 6)


def test_ctrl_c_in_the_middle(tmp_path: Path) -> None:
    study = make_study("fedavg", rounds={"count": 6, "deadline": 10.0})
    assert cut_off(tmp_path / "cut", "fedavg", signal.SIGINT) == 0
    assert read_json(tmp_path / "cut" / "summary.json")["status"] == "stopped"
    assert read_events(tmp_path / "cut")[-1]["reason"] == "interrupted"
    simulate(tmp_path / "cut", study, SITES, resume=True)
    simulate(tmp_path / "undisturbed", study, SITES)
    assert shared_bytes(tmp_path / "cut") == shared_bytes(tmp_path / "undisturbed")


def test_resuming_a_complete_run_changes_nothing_of_its_result(tmp_path: Path) -> None:
    study = make_study("fedlppa")
    first = simulate(tmp_path / "run", study, SITES)
    before = shared_bytes(tmp_path / "run")
    again = simulate(tmp_path / "run", study, SITES, resume=True)
    assert shared_bytes(tmp_path / "run") == before
    assert again.summary["sites"] == first.summary["sites"]


def test_a_damaged_checkpoint_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    study = make_study()
    simulate(tmp_path / "run", study, SITES)
    newest = tmp_path / "run" / "checkpoints" / "round-000004.safetensors"
    content = bytearray(newest.read_bytes())
    content[-3] ^= 1
    newest.write_bytes(content)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=r"round-000004.*remove it to go on from round-000003"):
        simulate(tmp_path / "run", study, SITES, resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    newest.unlink()
    assert simulate(tmp_path / "run", study, SITES, resume=True).status == "completed"


def test_a_checkpoint_of_another_study_is_refused(tmp_path: Path) -> None:
    simulate(tmp_path / "mine", make_study(), SITES)
    simulate(tmp_path / "other", make_study(seed=1), SITES)
    name = "checkpoints/round-000004.safetensors"
    (tmp_path / "mine" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(ConfigurationError, match="expected a checkpoint of study"):
        simulate(tmp_path / "mine", make_study(), SITES, resume=True)
    with pytest.raises(ConfigurationError, match="another study"):
        simulate(tmp_path / "mine", make_study(seed=1), SITES, resume=True)


def test_sites_with_another_backbone_than_before_are_refused_when_resuming(tmp_path: Path) -> None:
    study = make_study("fedavg", rounds={"count": 4, "deadline": 5.0})
    with pytest.raises(Crash):
        simulate(tmp_path / "run", study, SITES, on_event=crash_at("round_finished", 2))
    before = read_events(tmp_path / "run")
    original = fake_sites.FINGERPRINT
    try:
        fake_sites.FINGERPRINT = "ef" * 32
        outcome = simulate(tmp_path / "run", study, SITES, resume=True)
    finally:
        fake_sites.FINGERPRINT = original
    assert (outcome.status, outcome.rounds) == ("stopped", 2)
    refused = [event["code"] for event in read_events(tmp_path / "run") if event["event"] == "site_refused"]
    assert refused == ["fingerprint"] * 3
    assert read_events(tmp_path / "run")[: len(before)] == before
