"""Run directories: finished, unfinished, resumed, damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_run import CLASSES, CLINICS, SITES, write_run

from fedprompt.errors import DataError
from fedprompt.report.history import read_history
from fedprompt.report.reader import read_run


def append(folder: Path, *events: object) -> None:
    with (folder / "events.jsonl").open("a") as file:
        file.writelines(f"{event if isinstance(event, str) else json.dumps(event)}\n" for event in events)


def test_a_finished_run(tmp_path: Path) -> None:
    write_run(tmp_path, rounds=5)
    run = read_run(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert run.finished
    assert (run.study, run.strategy, run.seed, run.rounds_planned) == ("fundus-demo", "fedlppa", 0, 5)
    assert run.mean == summary["mean"]
    assert [entry.number for entry in run.rounds] == [1, 2, 3, 4, 5]
    assert len(run.rounds[0].sites) == 4
    assert len(run.rounds[3].sites) == 3, "one was dropped"
    assert run.rounds[4].affinity.keys() == SITES.keys()
    assert {site: result.annotation for site, result in run.sites.items()} == SITES
    assert run.sites["paris"].metrics == summary["sites"]["paris"]["metrics"]
    assert run.sites["oslo"].overlays[0].case == "images/oslo_000.png"
    assert [(drop.round, drop.site) for drop in run.dropped] == [(None, "node 7"), (4, "oslo")]
    assert [baseline.name for baseline in run.baselines] == ["frozen", "local", "fedavg"]
    assert run.baselines[0].rounds == ()
    assert len(run.baselines[1].rounds) == 5
    assert run.notes == ()


def test_a_classification(tmp_path: Path) -> None:
    write_run(
        tmp_path, rounds=2, strategy="fedavg", task="classification", sites=CLINICS, baselines=("local",)
    )
    run = read_run(tmp_path)
    assert (run.task, run.study, run.classes) == ("classification", "skin-demo", CLASSES)
    assert set(run.rounds[1].mean) == {"auroc", "balanced_accuracy"}
    assert run.sites["aviano"].labels == {"mel": 6, "nv": 18}
    assert "auroc" not in run.sites["oslo"].metrics
    assert run.sites["oslo"].metrics["ece"] > 0
    assert len(run.sites["paris"].overlays) == 6
    assert run.sites["paris"].overlays[0].truth in CLASSES
    assert all(result.confusion and result.confusion.cases == 12 for result in run.sites.values())
    assert run.notes == ()


def test_train_cases_per_class_may_stand_in_the_events_alone(tmp_path: Path) -> None:
    write_run(tmp_path, rounds=1, task="classification", strategy="fedavg", sites=CLINICS, baselines=())
    summary = json.loads((tmp_path / "summary.json").read_text())
    for site in summary["sites"].values():
        del site["labels"]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert read_run(tmp_path).sites["aviano"].labels == {"mel": 6, "nv": 18}


def test_an_unfinished_run_is_read_from_its_events(tmp_path: Path) -> None:
    write_run(tmp_path, rounds=3, finished=False, pictures=0)
    run = read_run(tmp_path)
    assert (run.status, run.finished, run.mean) == ("unfinished", False, {})
    assert [entry.finished for entry in run.rounds] == [True, True, True, False]
    assert run.up == 39_124
    assert run.seconds_per_round == pytest.approx(5.3)
    assert run.parameters["backbone"] == 489_000
    assert run.rounds_planned == 15


def test_what_a_resumed_run_did_again_counts_once(tmp_path: Path) -> None:
    write_run(tmp_path, rounds=4, pictures=0, baselines=())
    finished = {"event": "round_finished", "time": "t", "round": 3, "mean": {"dice": 0.123}, "seconds": 1}
    append(tmp_path, {"event": "resumed", "time": "t", "round": 2}, finished)
    run = read_run(tmp_path)
    assert [entry.number for entry in run.rounds] == [1, 2, 3]
    assert run.rounds[2].mean == {"dice": 0.123}
    assert run.rounds[2].sites == {}
    assert (run.status, run.mean) == ("unfinished", {}), "the summary is older than the run"
    assert [drop.site for drop in run.dropped] == ["node 7"]
    append(tmp_path, {"event": "study_finished", "time": "t", "status": "completed"})
    assert read_run(tmp_path).finished


def test_damaged_lines_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    write_run(tmp_path, rounds=2, pictures=0, baselines=())
    lines = len((tmp_path / "events.jsonl").read_text().splitlines())
    append(
        tmp_path, '{"event": "round_fin', "[1]", '{"event": 3}', '{"event": "site_reported", "round": "x"}'
    )
    append(tmp_path, {"event": "site_joined", "site": ["a"]}, "\x00", {"event": "something_new", "time": "t"})
    run = read_run(tmp_path)
    told = [f"Line {n} of events.jsonl is damaged and was left out." for n in range(lines + 1, lines + 7)]
    assert list(run.notes) == told
    assert len(run.rounds) == 2
    assert sorted(run.sites) == sorted(SITES)


def test_odd_values_become_unknown(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text(
        '{"event": "site_reported", "round": 1, "site": "a", "loss": [1], "bytes": 7, '
        '"metrics": {"dice": "high", "hd95": NaN, "x": true}}\n'
    )
    (report,) = read_history(file).rounds[0].sites.values()
    assert (report.metrics, report.loss, report.up) == ({}, None, None)


@pytest.mark.parametrize("content", ["{", "[]", "3"])
def test_a_damaged_summary_is_named_or_refused(tmp_path: Path, content: str) -> None:
    write_run(tmp_path, rounds=1, pictures=0, baselines=())
    (tmp_path / "summary.json").write_text(content)
    run = read_run(tmp_path)
    assert any("summary.json is damaged" in note for note in run.notes)
    assert run.mean["dice"] > 0, "the events have it too"


def test_a_summary_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, rounds=1, pictures=0, baselines=())
    (tmp_path / "summary.json").write_text('{"schema": 2}')
    with pytest.raises(DataError, match=r"summary\.json: expected schema 1, got 2"):
        read_run(tmp_path)


def test_baselines_without_a_folder_come_from_the_summary(tmp_path: Path) -> None:
    write_run(tmp_path, rounds=1, pictures=0, baselines=("local",))
    for file in (tmp_path / "baselines" / "local").iterdir():
        file.unlink()
    (tmp_path / "baselines" / "fedprox").mkdir()
    run = read_run(tmp_path)
    assert [baseline.name for baseline in run.baselines] == ["local"]
    assert run.baselines[0].sites["paris"].metrics["dice"] > 0
    assert run.baselines[0].up is None
    assert run.notes == ("The baseline fedprox cannot be read.",)


def test_pictures_that_are_not_there_are_counted(tmp_path: Path) -> None:
    write_run(tmp_path, rounds=1, baselines=())
    (tmp_path / "sites" / "paris" / "pictures" / "0-case.png").unlink()
    (tmp_path / "sites" / "oslo" / "pictures" / "pictures.json").write_text('[{"file": 3}]')
    listed = [{"file": "../../../study.toml", "case": "x", "dice": None}]
    (tmp_path / "sites" / "padova" / "pictures" / "pictures.json").write_text(json.dumps(listed))
    run = read_run(tmp_path)
    assert len(run.sites["paris"].overlays) == 1
    assert run.sites["oslo"].overlays == run.sites["padova"].overlays == ()
    assert run.notes == (
        "The list of pictures of site oslo is damaged.",
        "1 of 1 pictures of site padova are missing.",
        "1 of 2 pictures of site paris are missing.",
    )


def test_what_is_no_run_is_refused_by_name(tmp_path: Path) -> None:
    for folder, got in ((tmp_path / "none", "got nothing"), (tmp_path, "got a folder without study.toml")):
        with pytest.raises(DataError, match=f"expected a run directory, {got}") as caught:
            read_run(folder)
        assert str(folder) in str(caught.value)
