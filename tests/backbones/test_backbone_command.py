"""`fedprompt backbone` from the outside."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import COMMIT, FakeHub
from huggingface_hub import constants
from tiny_families import TINY
from tiny_transformers import tiny_vit

from fedprompt.backbones import fingerprint, load_folder
from fedprompt.cli import main
from fedprompt.config import load_study
from fedprompt.families import FAMILIES

Printed = pytest.CaptureFixture[str]
HUB = [name for name, entry in FAMILIES.items() if "transformers" in entry.origins]


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    return tiny_vit(tmp_path / "vit-tiny")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with owner/vit."""
    (tmp_path / "hub/owner").mkdir(parents=True)
    tiny_vit(tmp_path / "hub/owner/vit")
    with FakeHub(tmp_path / "hub").running() as hub:
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


def printed_json(words: list[str], capsys: Printed) -> dict[str, object]:
    """What a command that works prints with --json: one object and nothing else."""
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def refused(words: list[str], capsys: Printed) -> tuple[int, str]:
    """Exit code and the one sentence of a command that fails."""
    capsys.readouterr()
    status = main(words)
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    assert line.startswith("error: ")
    return status, line


def test_list_shows_every_family_with_tasks_prompts_and_origins(capsys: Printed) -> None:
    assert main(["backbone", "list"]) == 0
    text = capsys.readouterr().out
    for name, entry in FAMILIES.items():
        assert f"{name}: {entry.summary}" in text
    families = {entry["name"]: entry for entry in printed_json(["backbone", "list"], capsys)["families"]}
    assert list(families) == list(FAMILIES)
    assert families["clip"]["tasks"] == {
        "classification": {
            "prompts": ["domain", "generated", "text", "tokens"],
            "default": ["domain", "text"],
        }
    }
    assert families["sam"]["origins"] == ["transformers"]
    assert "class-prompts" in families["sam"]["tasks"]["segmentation"]["default"]


def test_list_and_help_import_no_torch() -> None:
    code = (
        "import sys\nfrom fedprompt.cli import main\n"
        "main(['backbone', '--help']), main(['backbone', 'list']), main(['backbone', 'pretrain', '--help'])\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'pydantic') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "[]"
    for command in ("list", "show", "fetch", "pretrain"):
        assert f"\n  {command} " in told.stdout


def test_show_without_words_is_the_embedded_backbone(capsys: Printed) -> None:
    assert main(["backbone", "show"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("embedded-unet")
    found = printed_json(["backbone", "show"], capsys)
    assert found["fingerprint"] in text
    assert found["classes"] == 3
    assert found["provenance"]["data"]["name"] == "synthetic shapes"


@pytest.mark.parametrize("name", HUB)
def test_show_finds_the_family_of_a_folder_of_transformers(
    name: str, tmp_path: Path, capsys: Printed
) -> None:
    backbone = TINY[name](tmp_path, None)
    found = printed_json(["backbone", "show", str(tmp_path)], capsys)
    assert found["name"] == name
    assert found["fingerprint"] == fingerprint(backbone)
    assert found["geometry"]["channels"] == list(backbone.geometry.channels)
    assert found["preprocessing"]["size"] == backbone.preprocessing.size
    assert found["provenance"] is None
    assert main(["backbone", "show", str(tmp_path), "--name", name]) == 0
    assert found["fingerprint"] in capsys.readouterr().out


def test_fetch_writes_a_folder_that_needs_nothing_else(vit: Path, tmp_path: Path, capsys: Printed) -> None:
    mark = fingerprint(load_folder(vit))
    out = tmp_path / "new/fetched"
    assert main(["backbone", "fetch", str(vit), "--out", str(out)]) == 0
    toml = capsys.readouterr().out.partition("\n\n")[2]
    assert tomllib.loads(toml)["backbone"] == {"name": "vit", "folder": out.as_posix(), "fingerprint": mark}
    (tmp_path / "study.toml").write_text(f'task = "classification"\n{toml}')
    assert load_study(tmp_path / "study.toml").backbone.folder == out
    shutil.rmtree(vit)
    assert fingerprint(load_folder(out, "vit")) == mark
    assert [path.name for path in out.parent.iterdir()] == ["fetched"]
    stored = json.loads((out / "backbone.json").read_text())
    assert stored["provenance"]["command"] == "fedprompt backbone fetch vit-tiny --out fetched"
    assert str(tmp_path) not in json.dumps(stored)


def test_fetch_and_show_take_hub_ids(hub: FakeHub, tmp_path: Path, capsys: Printed) -> None:
    shown = printed_json(["backbone", "show", "owner/vit"], capsys)
    assert shown["provenance"] == {"hub": "owner/vit", "revision": COMMIT}
    (tmp_path / "empty").mkdir()
    words = ["backbone", "fetch", "owner/vit", "--out", str(tmp_path / "empty")]
    told = printed_json(words, capsys)
    assert told["fingerprint"] == shown["fingerprint"] == fingerprint(load_folder(tmp_path / "empty"))
    assert told["provenance"] == {
        "command": "fedprompt backbone fetch owner/vit --out empty",
        "hub": "owner/vit",
        "revision": COMMIT,
    }
    again = printed_json(["backbone", "show", str(tmp_path / "empty")], capsys)
    assert again["provenance"] == told["provenance"]


def test_fetch_without_a_hub_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    status, line = refused(["backbone", "fetch", "owner/vit", "--out", str(tmp_path / "out")], capsys)
    assert status == 5
    assert "the hub cannot be reached" in line
    assert list(tmp_path.iterdir()) == []


def test_a_fetch_that_fails_while_it_writes_leaves_nothing(
    vit: Path, tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedprompt.backbones.storage.write_json", full)
    status, line = refused(["backbone", "fetch", str(vit), "--out", str(tmp_path / "out")], capsys)
    assert status == 2
    assert "out cannot be written (No space left on device)" in line
    assert list(tmp_path.iterdir()) == [vit]


@pytest.mark.parametrize(
    ("damage", "status", "message"),
    [
        ("truncated", 3, "expected a vit encoder with safetensors weights"),
        ("pickle", 3, "pytorch_model.bin, a pickle"),
        ("no weights", 3, "got none"),
        ("other type", 2, "expected a model of a known type"),
        ("no config", 3, "expected backbone.json"),
        ("gone", 2, "expected a folder or the hub id of a public model"),
        ("a file", 2, "expected a folder with a backbone, got a file"),
    ],
)
def test_a_source_that_is_no_backbone_is_refused(
    damage: str, status: int, message: str, vit: Path, tmp_path: Path, capsys: Printed
) -> None:
    weights = vit / "model.safetensors"
    match damage:
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "pickle":
            weights.rename(vit / "pytorch_model.bin")
        case "no weights":
            weights.unlink()
        case "other type":
            (vit / "config.json").write_text('{"model_type": "bert"}')
        case "no config":
            (vit / "config.json").unlink()
        case "gone":
            shutil.rmtree(vit)
        case "a file":
            shutil.rmtree(vit)
            vit.write_text("")
    for words in (["show", str(vit)], ["fetch", str(vit), "--out", str(tmp_path / "out")]):
        got, line = refused(["backbone", *words], capsys)
        assert got == status
        assert message in line
    assert not (tmp_path / "out").exists()


def test_a_family_must_be_known_and_the_right_one(vit: Path, tmp_path: Path, capsys: Printed) -> None:
    for words in (["show", str(vit)], ["fetch", str(vit), "--out", str(tmp_path / "out")]):
        status, line = refused(["backbone", *words, "--name", "alexnet"], capsys)
        assert (status, "expected one of " + ", ".join(FAMILIES) in line) == (2, True)
        status, line = refused(["backbone", *words, "--name", "resnet"], capsys)
        assert (status, "expected an encoder of type resnet, got vit" in line) == (2, True)


def test_fetch_takes_no_folder_with_files(vit: Path, tmp_path: Path, capsys: Printed) -> None:
    status, line = refused(["backbone", "fetch", str(vit), "--out", str(vit)], capsys)
    assert (status, "expected a new or empty folder" in line) == (2, True)
    status, line = refused(["backbone", "fetch", str(vit), "--out", str(vit / "config.json")], capsys)
    assert (status, "config.json, a file" in line) == (2, True)
    status, line = refused(["backbone", "fetch", str(vit), "--out", str(vit / "config.json/x")], capsys)
    assert status == 2
    assert load_folder(vit).name == "vit"


SHORT = "--size 32 --steps 2 --batch-size 2"


def test_pretrain_writes_a_backbone_and_its_record(tmp_path: Path, capsys: Printed) -> None:
    out = tmp_path / "out"
    words = f"backbone pretrain --name embedded-unet --out {out} {SHORT} --json"
    assert main(words.split()) == 0
    told = capsys.readouterr()
    printed, stored = json.loads(told.out), json.loads((out / "backbone.json").read_text())
    assert printed == {"folder": str(out), **stored}
    assert "--steps 2 --batch-size 2" in stored["provenance"]["command"]
    assert str(tmp_path) not in stored["provenance"]["command"]
    lines = told.err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["reading cases", "training", "training", "testing"]
    assert lines[2].endswith("(2 of 2)")
    assert printed_json(["backbone", "show", str(out)], capsys)["geometry"]["strides"] == [2, 4, 8, 16]


@pytest.mark.slow
def test_pretrain_puts_a_decoder_on_an_encoder_of_a_folder_or_the_hub(
    vit: Path, hub: FakeHub, tmp_path: Path, capsys: Printed
) -> None:
    for encoder, out in ((str(vit), "one"), ("owner/vit", "two")):
        words = f"backbone pretrain --name vit --encoder {encoder} --out {tmp_path / out} {SHORT} --views 1"
        assert main(words.split()) == 0
    stored = [json.loads((tmp_path / out / "backbone.json").read_text()) for out in ("one", "two")]
    assert stored[0]["fingerprint"] == stored[1]["fingerprint"]
    assert [one["provenance"]["encoder"] for one in stored] == ["vit-tiny", "owner/vit"]
    assert "--encoder vit-tiny" in stored[0]["provenance"]["command"]
    assert "--encoder owner/vit" in stored[1]["provenance"]["command"]


@pytest.mark.slow
def test_pretrain_leaves_a_terminal_clean(tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "fedprompt"
    words = [str(script), *f"backbone pretrain --name embedded-unet --out {tmp_path / 'out'} {SHORT}".split()]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    )
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # the other end was closed
            break
    assert process.wait() == 0
    assert b"training" in shown
    assert shown.endswith(b"\x1b[2K")  # the line of the bar is cleared
    os.close(ours)
    process.stdout.close()


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (
            "--name embedded-unet --size 50",
            2,
            "embedded-unet expected a multiple of 16, got 50",
        ),
        ("--name embedded-unet --classes a,a", 2, "--classes: expected two or more different names"),
        ("--name embedded-unet --learning-rate -1", 2, "--learning-rate"),
        ("--name embedded-unet --data nowhere", 3, "nowhere"),
        ("--name alexnet", 2, "'alexnet': expected one of embedded-unet"),
        ("--name clip", 2, "clip: has no decoder to train; expected one of embedded-unet"),
        ("--name vit", 2, "vit: expected an encoder (folder or hub id), got none"),
        ("--name vit --encoder nowhere", 2, "nowhere: expected a folder or the hub id"),
        ("--name embedded-unet --encoder nowhere", 2, "expected no encoder"),
        ("--name embedded-unet --device tpu", 2, "--device: expected auto, cpu or cuda"),
    ],
)
def test_wrong_words_end_with_a_sentence(
    words: str, status: int, message: str, tmp_path: Path, capsys: Printed
) -> None:
    got = main(["backbone", "pretrain", "--out", str(tmp_path / "out"), *words.split()])
    assert got == status
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_pretrain_takes_no_folder_with_files(vit: Path, capsys: Printed) -> None:
    words = ["backbone", "pretrain", "--name", "embedded-unet", "--out", str(vit)]
    status, line = refused(words, capsys)
    assert (status, "expected a new or empty folder" in line) == (2, True)
