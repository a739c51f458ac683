"""The run directory: one process, one study, events that survive a kill, checkpoints that are verified."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_sites import FINGERPRINT, initial, make_study, manifest_of

from fedprompt.artifacts import read_arrays, read_json, write_arrays
from fedprompt.config import load_study
from fedprompt.errors import ConfigurationError, DataError, RunError
from fedprompt.manifest import Scope
from server.checkpoints import Checkpoint, latest_checkpoint, save_checkpoint
from server.run_directory import RunDirectory, new_event, read_events

STUDY = make_study("fedlppa")
MANIFEST = manifest_of(STUDY)


def make_checkpoint(number: int = 3) -> Checkpoint:
    arrays = initial(MANIFEST, number)
    shared = {name: arrays[name] for name in MANIFEST.select(Scope.SHARED).names()}
    kept = {name: arrays[name] for name in MANIFEST.select(Scope.SITE).names()}
    return Checkpoint(
        round=number,
        study=STUDY.digest(),
        fingerprint=FINGERPRINT,
        manifest=MANIFEST,
        sites=["a", "a-1", "b"],
        shared=shared,
        kept={"a": kept, "a-1": {name: array + 1 for name, array in kept.items()}},
        strategy={"first/head.weight": np.ones((3, 5), "f4")},
        strategy_metadata={"steps": 2},
        event=new_event("round_finished", round=number, mean={"dice": 0.25}),
    )


def flat(checkpoint: Checkpoint) -> dict[str, bytes]:
    groups = {"shared": checkpoint.shared, "strategy": checkpoint.strategy, **checkpoint.kept}
    return {f"{g}/{n}": array.tobytes() for g, arrays in groups.items() for n, array in arrays.items()}


def test_a_checkpoint_there_and_back(tmp_path: Path) -> None:
    saved = make_checkpoint()
    save_checkpoint(tmp_path, saved)
    loaded = latest_checkpoint(tmp_path, STUDY.digest())
    assert loaded is not None
    assert flat(loaded) == flat(saved)
    fields = ("round", "study", "fingerprint", "manifest", "sites", "strategy_metadata", "event")
    assert all(getattr(loaded, name) == getattr(saved, name) for name in fields)


def test_the_newest_two_checkpoints_stay(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path, STUDY.digest()) is None
    for number in (9, 10, 11):
        save_checkpoint(tmp_path, make_checkpoint(number))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "round-000010.safetensors",
        "round-000011.safetensors",
    ]
    loaded = latest_checkpoint(tmp_path, STUDY.digest())
    assert loaded is not None
    assert loaded.round == 11


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 0.999])
def test_a_change_anywhere_in_a_checkpoint_is_noticed(tmp_path: Path, share: float) -> None:
    path = save_checkpoint(tmp_path, make_checkpoint())
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match="round-000003"):
        latest_checkpoint(tmp_path, STUDY.digest())


@pytest.mark.parametrize("length", [0, 7, 500, -1])
def test_a_cut_off_checkpoint_is_refused(tmp_path: Path, length: int) -> None:
    path = save_checkpoint(tmp_path, make_checkpoint())
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match="round-000003"):
        latest_checkpoint(tmp_path, STUDY.digest())


def test_a_half_written_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make_checkpoint(1))
    (tmp_path / ".round-000002.safetensors.77.partial").write_bytes(b"half")
    loaded = latest_checkpoint(tmp_path, STUDY.digest())
    assert loaded is not None
    assert loaded.round == 1


def test_other_files_in_the_place_of_a_checkpoint_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "round-000001.safetensors"
    write_arrays(path, {"shared/x": np.ones(2, "f4")}, {"round": 1})
    with pytest.raises(DataError, match="expected a checkpoint"):
        latest_checkpoint(tmp_path, STUDY.digest())
    broken = make_checkpoint(1)
    broken.kept["a"].pop("auxiliary_head.bias")
    save_checkpoint(tmp_path, broken)
    with pytest.raises(DataError, match=r"auxiliary_head\.bias"):
        latest_checkpoint(tmp_path, STUDY.digest())


def test_a_new_run_holds_its_study(tmp_path: Path) -> None:
    study = make_study(
        "fedadam", backbone={"folder": "somewhere"}, sites={"a": {}, "b": {"annotation": "box"}}
    )
    with RunDirectory.create(tmp_path / "deep" / "run", study) as run:
        assert run.folder.is_absolute()
    stored = load_study(tmp_path / "deep" / "run" / "study.toml")
    assert stored.digest() == study.digest()
    assert stored.backbone.folder == Path("somewhere").resolve()


def test_a_folder_with_a_run_is_not_begun_again(tmp_path: Path) -> None:
    (tmp_path / "federation.json").write_text("{}")
    RunDirectory.create(tmp_path, STUDY).close()
    with pytest.raises(ConfigurationError, match="expected a folder without a run"):
        RunDirectory.create(tmp_path, STUDY)


def test_resuming_needs_a_run_of_the_same_study(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected a run directory"):
        RunDirectory.resume(tmp_path)
    RunDirectory.create(tmp_path, STUDY).close()
    with pytest.raises(ConfigurationError, match="another study"):
        RunDirectory.resume(tmp_path, make_study("fedlppa", seed=9))
    with RunDirectory.resume(tmp_path, STUDY) as run:
        assert run.study.digest() == STUDY.digest()


def test_two_processes_never_share_a_run(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from server.run_directory import RunDirectory\n"
        "run = RunDirectory.resume(Path(sys.argv[1])); print('mine', flush=True); sys.stdin.read()"
    )
    RunDirectory.create(tmp_path, STUDY).close()
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "mine\n"
        for make in (RunDirectory.resume, lambda folder: RunDirectory.create(folder, STUDY)):
            with pytest.raises(RunError, match="another process works in this run directory"):
                make(tmp_path)
        other.kill()  # no lock file is left to be cleaned up
    RunDirectory.resume(tmp_path).close()


def test_events_are_appended_and_a_cut_last_line_is_repaired(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with RunDirectory.create(tmp_path, STUDY) as run:
        for number in range(3):
            run.append(new_event("round_started", round=number))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event": "round_fin')
    assert [event["round"] for event in read_events(tmp_path)] == [0, 1, 2]
    with RunDirectory.resume(tmp_path) as run:
        assert path.read_bytes() == whole
        run.append(new_event("resumed", round=2))
        assert [event["event"] for event in run.events()][-2:] == ["round_started", "resumed"]


def test_an_event_that_is_no_json_number_is_refused_and_a_damaged_line_named(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path, STUDY) as run:
        with pytest.raises(ValueError, match="not JSON compliant"):
            run.append(new_event("round_finished", loss=float("nan")))
        assert run.events() == []
        run.append(new_event("a"))
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"garbage\n" + path.read_bytes())
    with pytest.raises(DataError, match="line 1"):
        read_events(tmp_path)


def test_the_bundle_tells_all_that_is_needed_and_its_bytes_nothing_of_the_time(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        with RunDirectory.create(tmp_path / name, STUDY) as run:
            run.write_bundle(make_checkpoint(), {"metrics": {"dice": 0.5}})
        contents.append((tmp_path / name / "prompts" / "shared.safetensors").read_bytes())
    assert contents[0] == contents[1]
    bundle = read_json(tmp_path / "one" / "prompts" / "bundle.json")
    assert bundle["backbone"] == {"name": "embedded-unet", "fingerprint": FINGERPRINT}
    assert (bundle["study"], bundle["round"], bundle["metrics"]) == ("fake", 3, {"dice": 0.5})
    assert bundle["classes"] == ["background", "rim", "cup"]
    assert bundle["manifest"] == MANIFEST.to_json()
    shared, metadata = read_arrays(tmp_path / "one" / "prompts" / "shared.safetensors")
    assert [spec["name"] for spec in metadata["manifest"]] == MANIFEST.select(Scope.SHARED).names()
    assert shared.keys() == set(MANIFEST.select(Scope.SHARED).names())


def test_events_are_plain_lines(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path, STUDY) as run:
        run.append(new_event("site_joined", site="a", text="zwei\nZeilen"))
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    assert json.loads(line)["text"] == "zwei\nZeilen"
