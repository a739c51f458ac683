"""`fedprompt adapt` and what belongs to it: streams from the command line, statistics, states."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_model_file import write_images, write_model_file

from fedprompt.adaptation.adapter import Adapted, Adapter
from fedprompt.adaptation.methods import METHODS
from fedprompt.adaptation.model_file import load_network
from fedprompt.adaptation.statistics import SourceStatistics
from fedprompt.cli import main
from fedprompt.cli.interruption import Interruption
from fedprompt.cli.spreading import spread

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network and images, and a home of its own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FEDPROMPT_SITE_KEY", raising=False)
    write_model_file(tmp_path / "network")
    write_images(tmp_path / "images", 6)
    return tmp_path


def words(
    place: Path, *more: object, images: tuple[object, ...] = ("images",), out: str = "out"
) -> list[str]:
    """The words of a command over files of `place`."""
    given = ["--model", place / "network" / "model.toml", "--images", *(place / str(each) for each in images)]
    return ["adapt", *map(str, [*given, "--out", place / out, *more])]


def lines(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def error(captured: Captured) -> str:
    return captured.readouterr().err.splitlines()[-1].removeprefix("error: ")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--images a b --out c", "--images a --images b --out c"),
        ("--images a --images b c", "--images a --images b --images c"),
        ("--images=a b --json", "--images=a --images b --json"),
        ("--out x --images a b", "--out x --images a --images b"),
        ("collect --data a b --split test", "collect --data a --data b --split test"),
        ("merge a b --out c", "merge a b --out c"),
        ("--images --out c", "--images --out c"),
    ],
)
def test_options_of_several_words(given: str, expected: str) -> None:
    assert spread(given.split(), ("--images", "--data")) == expected.split()


def test_a_folder_and_files_become_masks_a_table_a_summary_and_a_report(
    place: Path, capsys: Captured
) -> None:
    Image.new("RGB", (30, 20), (90, 90, 90)).save(place / "z.png")
    Image.new("L", (30, 20), 9).save(place / "a.jpg")
    assert main(words(place, images=("z.png", "images", "a.jpg"))) == 0
    told = capsys.readouterr()
    names = ["z.png", *(f"{number:03}.png" for number in range(6)), "a.jpg"]
    assert [line["image"] for line in lines(place / "out")] == names
    masks = {path.name for path in (place / "out" / "masks").iterdir()}
    assert masks == {name.replace("jpg", "png") for name in names}
    assert np.asarray(Image.open(place / "out" / "masks" / "z.png")).shape == (20, 30)
    assert (place / "out" / "drift.html").read_text().startswith("<!doctype html>")
    assert told.out.startswith("8 images: ")
    assert "2 × the image is constant" in told.out
    assert "adapting: 8 of 8 images" in told.err
    assert told.err.count("\n") <= 10


def test_json_is_one_object_and_with_truth_it_tells_dice(place: Path, capsys: Captured) -> None:
    (place / "truth").mkdir()
    for image in (place / "images").iterdir():
        Image.new("L", (56, 40), 1).save(place / "truth" / image.name)
    assert main(words(place, "--truth", place / "truth", "--json", "--method", "none")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["out"], found["method"]) == (str(place / "out"), "none")
    assert (found["images"], found["adapted"], found["worst_change"]) == (6, 0, 0)
    assert 0 < found["dice_before"] == found["dice_after"] < 1
    summary = json.loads((place / "out" / "summary.json").read_text())
    assert {key: found[key] for key in summary} == summary


def test_a_bundle_is_adapted_with_the_statistics_it_has(
    place: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = load_network(place / "network" / "model.toml")
    asked = []

    def load_bundle(folder: Path, *, backbone: Path | None = None) -> tuple[object, None]:
        asked.append((folder, backbone))
        return network, None

    monkeypatch.setattr("fedprompt.adaptation.bundle.load_bundle", load_bundle)
    line = ["adapt", "--prompts", "bundle", "--backbone", "frozen", "--images", str(place / "images")]
    assert main([*line, "--out", str(place / "out"), "--json"]) == 0
    assert asked == [(Path("bundle"), Path("frozen"))]
    assert json.loads(capsys.readouterr().out)["images"] == 6


# Wrong usage


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--prompts", "x"], "expected --prompts BUNDLE or --model FILE, got neither or both"),
        (["--method", "magic"], "--method: expected one of none, "),
        (["--backbone", "x"], "--backbone: expected it with --prompts alone"),
        (["--key", "x"], "--key: expected --state FOLDER beside it, got none"),
        (["--stream", "x"], "--stream: expected --state FOLDER beside it, got none"),
        (["--state", "s", "--stream", "A b"], "stream: expected 1 to 64 lower-case letters"),
        (["--size", "3"], "No such option '--size'"),
    ],
)
def test_wrong_usage_is_one_sentence(
    change: list[str], sentence: str, place: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    assert main(words(place, *change)) == 2
    assert error(capsys).startswith(sentence)
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("given", "status", "sentence"),
    [
        (["--images", "a"], 2, "expected --prompts BUNDLE or --model FILE"),
        (["--model", "m"], 2, "--images: expected a folder or image files, got nothing"),
        (["--model", "m", "--images", "a"], 2, "--out: expected a folder to write to, got nothing"),
        (["--model", "m", "--images", "a", "--out", "o"], 3, "a: no such file or folder"),
        (["--model", "m", "--images", "images", "--out", "o"], 2, "m: no such file"),
        (["--out", "o", "collect", "--data", "x"], 2, "--out: expected options after the name of collect"),
        (["--json", "forget", "--state", "x"], 2, "--json: expected options after the name of forget"),
    ],
)
def test_what_is_missing_is_named(
    given: list[str],
    status: int,
    sentence: str,
    place: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(place)
    assert main(["adapt", *given]) == status
    assert error(capsys).startswith(sentence)


def test_the_help_names_every_method(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["adapt", "--help"]) == 0
    told = capsys.readouterr().out
    named = " ".join(told.split()).replace("- ", "-").split("How to adapt: ")[1].split(".")[0]
    assert re.split(", | or ", named) == list(METHODS)
    for command in ("collect", "merge", "forget", "serve"):
        assert f"\n  {command} " in told


def test_a_run_without_any_mask_ends_with_3(place: Path, capsys: Captured) -> None:
    (place / "broken").mkdir()
    (place / "broken" / "one.png").write_bytes(b"no image")
    assert main(words(place, images=("broken",))) == 3
    assert "none of 1 images got a mask" in error(capsys)
    assert len(lines(place / "out")) == 1


def test_a_second_run_into_the_same_folder_ends_with_2(place: Path, capsys: Captured) -> None:
    assert main(words(place)) == 0
    assert main(words(place)) == 2
    assert "expected a folder without results.csv, got one with it" in error(capsys)


# States


def test_the_key_is_made_once_for_its_user_alone_and_a_stream_goes_on(place: Path, capsys: Captured) -> None:
    key = place / "home" / ".config" / "fedprompt" / "site.key"
    state = ("--state", place / "states", "--stream", "mr-1")
    assert main(words(place, *state, images=("images/000.png", "images/001.png"))) == 0
    assert f"made the site's key, {key}" in capsys.readouterr().err
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert main(words(place, *state)) == 0
    told = capsys.readouterr()
    assert "made the site's key" not in told.err
    assert "2 images are done already, 4 are left" in told.err
    assert told.out.startswith("6 images: ")
    assert len(lines(place / "out")) == 6
    assert main(words(place, *state)) == 0  # nothing is left
    assert len(lines(place / "out")) == 6


def test_the_key_of_the_environment_and_a_wrong_one(
    place: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDPROMPT_SITE_KEY", str(place / "a.key"))
    assert main(words(place, "--state", place / "states")) == 0
    assert (place / "a.key").is_file()
    assert not (place / "home").exists()
    from fedprompt.encryption import SiteKey

    SiteKey.create(place / "b.key")
    assert main(words(place, "--state", place / "states", "--key", place / "b.key")) == 3
    assert "wrong key" in error(capsys)
    assert main(words(place, "--state", place / "states", "--key", place / "typo.key")) == 2
    assert error(capsys).endswith(f"expected the key of the states in {place / 'states'}")
    assert not (place / "typo.key").exists()


def test_forget_deletes_one_stream_and_needs_no_key(place: Path, capsys: Captured) -> None:
    for stream in ("a", "b"):
        assert main(words(place, "--state", place / "states", "--stream", stream, out=stream)) == 0
    shutil.rmtree(place / "home")
    forget = ["adapt", "forget", "--state", str(place / "states"), "--stream"]
    capsys.readouterr()
    assert main([*forget, "a"]) == 0
    assert capsys.readouterr().out.startswith(f"deleted {place / 'states' / 'a.state'} (")
    assert [path.name for path in (place / "states").iterdir()] == ["b.state"]
    assert main([*forget, "a"]) == 2
    assert error(capsys) == f"{place / 'states'}: expected a stream of this folder (b), got 'a'"
    assert main(["adapt", "forget", "--state", str(place / "none"), "--stream", "a"]) == 2
    assert not (place / "none").exists()


@pytest.mark.parametrize("state", [True, False])
def test_ctrl_c_ends_after_the_image_and_says_how_to_go_on(
    state: bool, place: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = words(place, *(("--state", place / "states") if state else ()))
    predict = Adapter.__call__

    def pressed(self: Adapter, image: object) -> Adapted:
        if self.images == 2:
            signal.raise_signal(signal.SIGINT)
        return predict(self, image)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Adapter, "__call__", pressed)
        assert main(given) == 130
    how = "the same command goes on" if state else "without --state they begin anew, in another --out"
    told = capsys.readouterr().err.splitlines()
    assert told[-2:] == [f"3 of 6 images are done; {how}", "error: interrupted"]
    assert len(lines(place / "out")) == len(list((place / "out" / "masks").iterdir())) == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert main(given) == (0 if state else 2)
    assert len(lines(place / "out")) == (6 if state else 3)


def test_a_second_ctrl_c_stops_at_once() -> None:
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.wanted
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGINT)
            assert not interruption.wanted
    finally:
        signal.signal(signal.SIGINT, before)


# Statistics


def test_statistics_are_collected_over_folders_and_merged(place: Path, capsys: Captured) -> None:
    site = place / "site"
    images = write_images(site, 12)
    rows = [
        f"{path.name},{path.name},{'test' if number < 3 else 'train'}," for number, path in enumerate(images)
    ]
    (site / "cases.csv").write_text("\n".join(["image,mask,split,patient", *rows]) + "\n")
    model = ["--model", str(place / "network" / "model.toml")]
    collect = ["adapt", "collect", *model, "--data"]
    for out, folders, count in (("a", ["site"], 9), ("b", ["site", "images"], 15)):
        capsys.readouterr()
        paths = [str(place / folder) for folder in folders]
        assert main([*collect, *paths, "--out", str(place / out)]) == 0
        assert capsys.readouterr().out == f"wrote {place / out}: statistics of {count} images\n"
        assert SourceStatistics.load(place / out).images == count
    assert main(["adapt", "merge", str(place / "a"), str(place / "b"), "--out", str(place / "c")]) == 0
    assert SourceStatistics.load(place / "c").images == 24
    assert main(words(place, "--statistics", place / "c")) == 0


def test_statistics_go_into_the_bundle(
    place: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = load_network(place / "network" / "model.toml")
    monkeypatch.setattr("fedprompt.adaptation.bundle.load_bundle", lambda *_, **__: (network, None))
    (place / "run" / "prompts").mkdir(parents=True)
    (place / "run" / "prompts" / "bundle.json").write_text("{}")
    write_images(place / "source", 9)
    line = ["adapt", "collect", "--prompts", str(place / "run"), "--data", str(place / "source")]
    assert main(line) == 0
    found = SourceStatistics.load(place / "run" / "prompts" / "statistics.safetensors", network.fingerprint)
    assert found.images == 9


def test_statistics_that_cannot_be_collected(place: Path, capsys: Captured) -> None:
    model = ["--model", str(place / "network" / "model.toml")]
    out = ["--out", str(place / "out")]
    images = ["--data", str(place / "images")]
    (place / "site").mkdir()
    shutil.copy(place / "images" / "000.png", place / "site")
    (place / "site" / "cases.csv").write_text("image,mask,split,patient\n000.png,000.png,train,\n")
    for given, status, sentence in (
        ([*images, *out], 2, "expected --prompts BUNDLE or --model FILE"),
        ([*model, *images], 2, "--out: expected a file to write"),
        ([*model, *images, *out, "--split", "all"], 2, "--split: expected train, val or test, got 'all'"),
        ([*model, *images, "--out", str(place)], 2, f"{place}: expected a file to write, got a folder"),
        ([*model, *images, *out], 3, "source statistics: expected at least 8 images, got 6"),
        ([*model, "--data", str(place / "none"), *out], 3, f"{place / 'none'}: no such file or folder"),
        (
            [*model, "--data", str(place / "site"), *out, "--split", "test"],
            3,
            f"{place / 'site' / 'cases.csv'}: expected cases of split test, got none",
        ),
    ):
        assert main(["adapt", "collect", *given]) == status
        assert error(capsys).startswith(sentence)
        assert not (place / "out").exists()


def test_statistics_of_another_network_are_refused(place: Path, capsys: Captured) -> None:
    write_model_file(place / "other", seed=1)
    write_images(place / "source", 9)
    for name in ("network", "other"):
        model = ["--model", str(place / name / "model.toml")]
        line = [
            "adapt",
            "collect",
            *model,
            "--data",
            str(place / "source"),
            "--out",
            str(place / f"of-{name}"),
        ]
        assert main(line) == 0
    assert main(words(place, "--statistics", place / "of-other")) == 3
    assert "expected statistics of network" in error(capsys)
    both = [str(place / "of-network"), str(place / "of-other")]
    assert main(["adapt", "merge", *both, "--out", str(place / "merged")]) == 3
    assert str(place / "of-other") in error(capsys)
