"""`fedprompt simulate` as its user runs it: a process, a run directory, a report, a kill and a resume."""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import STUDY, command, environment, fedprompt
from PIL import Image

from fedprompt.artifacts import read_arrays


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, federation: Path) -> Path:
    """An undisturbed run with two baselines."""
    folder = tmp_path_factory.mktemp("runs")
    study = folder / "study.toml"
    study.write_text(STUDY)
    run = folder / "run"
    result = fedprompt(
        "simulate", study, "--data", federation, "--compare", "frozen,local", "--out", run, "--json"
    )
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary == json.loads((run / "summary.json").read_text())
    return run


def test_the_run_directory_is_whole(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["rounds"] == 4
    assert summary["baselines"].keys() == {"frozen", "local"}
    assert {"dice", "hd95", "assd", "dice_rim", "dice_cup"} <= summary["mean"].keys()
    assert len(summary["sites"]) == 4
    assert {s["annotation"] for s in summary["sites"].values()} == {"scribble", "point", "block", "box"}
    assert summary["parameters"]["shared"] < 0.05 * summary["parameters"]["backbone"]
    assert summary["baselines"]["local"]["bytes"]["up_per_site_round"] < 2000  # a report, no tensor
    arrays, origin = read_arrays(finished / "prompts" / "shared.safetensors")
    assert origin["round"] == 4
    assert not [name for name in arrays if "data_aware" in name or "auxiliary" in name]
    for site in summary["sites"]:
        assert len(list((finished / "sites" / site / "pictures").glob("*.png"))) == 4
    html = (finished / "report.html").read_text()
    assert "fedlppa" in html
    assert 'src="http' not in html


def test_frozen_is_the_backbone_before_any_round(finished: Path) -> None:
    frozen = json.loads((finished / "baselines" / "frozen" / "summary.json").read_text())
    assert frozen["rounds"] == 0
    first = [json.loads(line) for line in (finished / "events.jsonl").read_text().splitlines()]
    reported = [e for e in first if e["event"] == "site_reported" and e["round"] == 1]
    assert len(reported) == 4  # the metrics of round 1 are those of the initial tensors


def kill_after_round(run: Path, number: int, *arguments: object) -> None:
    """Starts a simulation and kills it with -9 once the given round is in its events."""
    with (run.parent / "killed.log").open("w") as log:
        process = subprocess.Popen(command(*arguments), stdout=log, stderr=log, env=environment())
        try:
            end = time.monotonic() + 240
            while time.monotonic() < end and process.poll() is None:
                events = run / "events.jsonl"
                if events.exists() and '"round_finished", "time"' in events.read_text():
                    done = events.read_text().count('"round_finished"')
                    if done >= number:
                        break
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(30)
    assert process.returncode == -signal.SIGKILL, (run.parent / "killed.log").read_text()


def test_a_killed_run_goes_on_to_the_same_bytes(
    finished: Path, federation: Path, tmp_path: Path, study_file: Path
) -> None:
    run = tmp_path / "run"
    kill_after_round(run, 2, "simulate", study_file, "--data", federation, "--out", run)
    assert not (run / "summary.json").exists()
    result = fedprompt("simulate", "--resume", run)
    assert result.returncode == 0, result.stderr
    assert (run / "prompts/shared.safetensors").read_bytes() == (
        finished / "prompts/shared.safetensors"
    ).read_bytes()
    assert json.loads((run / "summary.json").read_text())["status"] == "completed"


@pytest.mark.slow
def test_ray_gives_the_same_bytes(finished: Path, federation: Path, tmp_path: Path, study_file: Path) -> None:
    run = tmp_path / "run"
    result = fedprompt("simulate", study_file, "--data", federation, "--out", run, "--engine", "ray")
    assert result.returncode == 0, result.stderr
    assert (run / "prompts/shared.safetensors").read_bytes() == (
        finished / "prompts/shared.safetensors"
    ).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedadam", "full-finetune"])
def test_every_strategy_runs(federation: Path, tmp_path: Path, study_file: Path, strategy: str) -> None:
    run = tmp_path / "run"
    result = fedprompt(
        "simulate", study_file, "--data", federation, "--out", run, "--strategy", strategy, "--rounds", 2
    )
    assert result.returncode == 0, result.stderr
    summary = json.loads((run / "summary.json").read_text())
    assert summary["strategy"] == strategy
    assert summary["parameters"]["personal"] == 0
    more_than_backbone = summary["parameters"]["shared"] > summary["parameters"]["backbone"]
    assert more_than_backbone == (strategy == "full-finetune")


def broken(federation: Path, folder: Path, break_it: Callable[[Path], None]) -> Path:
    copy = folder / "broken"
    shutil.copytree(federation, copy)
    break_it(copy / "ashford")
    return copy


def truncate_an_image(site: Path) -> None:
    image = sorted((site / "images").iterdir())[0]
    image.write_bytes(image.read_bytes()[:100])


def remove_an_image(site: Path) -> None:
    sorted((site / "images").iterdir())[0].unlink()


def shrink_a_mask(site: Path) -> None:
    mask = sorted((site / "masks").iterdir())[0]
    Image.open(mask).resize((20, 20)).save(mask)


def write_class_seven(site: Path) -> None:
    mask = sorted((site / "masks").iterdir())[0]
    Image.new("L", Image.open(mask).size, 7).save(mask)


def empty_the_table(site: Path) -> None:
    (site / "cases.csv").write_text("image,mask,split,patient\n")


def remove_the_table(site: Path) -> None:
    (site / "cases.csv").unlink()


def misspell_a_column(site: Path) -> None:
    table = site / "cases.csv"
    table.write_text(table.read_text().replace("mask,", "maks,", 1))


def leave_the_folder(site: Path) -> None:
    table = site / "cases.csv"
    table.write_text(table.read_text() + "../brookside/images/x.png,masks/x.png,train,\n")


def take_a_used_id(site: Path) -> None:
    toml = site / "site.toml"
    toml.write_text(toml.read_text().replace("ashford", "brookside"))


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (truncate_an_image, ".png"),
        (remove_an_image, "no such file"),
        (shrink_a_mask, "20×20"),
        (write_class_seven, "7"),
        (empty_the_table, "empty site"),
        (remove_the_table, "cases.csv"),
        (misspell_a_column, "maks"),
        (leave_the_folder, "inside the site's folder"),
        (take_a_used_id, "brookside"),
    ],
)
def test_broken_data_ends_with_one_sentence_and_code_3(
    federation: Path, tmp_path: Path, study_file: Path, break_it, says: str
) -> None:
    data = broken(federation, tmp_path, break_it)
    run = tmp_path / "run"
    result = fedprompt("simulate", study_file, "--data", data, "--out", run)
    assert result.returncode == 3, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert says in lines[0]
    assert not (run / "study.toml").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--compare", "fedavgg"], "fedavgg"),
        (["--compare", "fedlppa"], "fedlppa"),
        (["--strategy", "nothing"], "nothing"),
        (["--rounds", "0"], "rounds.count"),
        (["--data", "/no/such/folder"], "/no/such/folder"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, study_file: Path, arguments, says: str) -> None:
    result = fedprompt("simulate", study_file, "--out", tmp_path / "run", *arguments)
    assert result.returncode in (2, 3)
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_a_run_directory_is_never_overwritten(finished: Path, federation: Path, study_file: Path) -> None:
    before = (finished / "summary.json").read_bytes()
    result = fedprompt("simulate", study_file, "--data", federation, "--out", finished)
    assert result.returncode == 2
    assert "--resume" in result.stderr
    assert (finished / "summary.json").read_bytes() == before


def test_resuming_what_is_no_run_or_has_a_damaged_checkpoint(
    finished: Path, federation: Path, tmp_path: Path
) -> None:
    assert fedprompt("simulate", "--resume", tmp_path).returncode == 2
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "summary.json").unlink()
    newest = sorted((copy / "checkpoints").glob("*.safetensors"))[-1]
    newest.write_bytes(newest.read_bytes()[:-7])
    result = fedprompt("simulate", "--resume", copy)
    assert result.returncode == 3
    assert newest.name in result.stderr
    assert (copy / "prompts/shared.safetensors").exists()


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(
    finished: Path, federation: Path, tmp_path: Path, study_file: Path
) -> None:
    run = tmp_path / "run"
    arguments = ["simulate", study_file, "--data", federation, "--out", run, "--json"]
    process = subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        # a shell that runs the tests in its background makes its children deaf to SIGINT
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 120
    while time.monotonic() < end and not (run / "events.jsonl").exists():
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert json.loads(out)["error"]["code"] == "interrupted"
    assert f"--resume {run}" in err
    result = fedprompt("simulate", "--resume", run, "--json")
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert (summary["status"], summary["rounds"]) == ("completed", 4)
    same = (finished / "prompts/shared.safetensors").read_bytes()
    assert (run / "prompts/shared.safetensors").read_bytes() == same


def test_a_site_that_lost_its_state_is_not_resumed_silently(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "summary.json").unlink()
    shutil.rmtree(copy / "sites" / "ashford" / "store")
    result = fedprompt("simulate", "--resume", copy)
    assert result.returncode == 3
    assert "ashford" in result.stderr


def test_a_backbone_that_does_not_fit_is_refused_before_anything_is_written(
    federation: Path, tmp_path: Path
) -> None:
    study = tmp_path / "study.toml"
    for text, says in (
        ('classes = ["background", "polyp"]', "classes"),
        ('[backbone]\nname = "nothing"', "nothing"),
        ('[backbone]\nname = "mobilenet-v2"\nfolder = "nowhere"', "nowhere"),
        ("[rounds]\nquorum = 9", "quorum"),
    ):
        study.write_text(text)
        result = fedprompt("simulate", study, "--data", federation, "--out", tmp_path / "run")
        assert result.returncode == 2, result.stderr
        assert says in result.stderr
        assert not (tmp_path / "run").exists()
