"""`fedprompt backbone` from the outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedprompt.cli import main


def test_pretrain_writes_a_backbone_and_its_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = f"backbone pretrain --name embedded-unet --out {out} --size 32 --steps 2 --batch-size 2 --json"
    assert main(words.split()) == 0
    printed = json.loads(capsys.readouterr().out)
    stored = json.loads((out / "backbone.json").read_text())
    assert printed["fingerprint"] == stored["fingerprint"]
    assert "--steps 2 --batch-size 2" in stored["provenance"]["command"]
    assert str(tmp_path) not in stored["provenance"]["command"]
    assert main(["backbone", "show", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["geometry"]["strides"] == [2, 4, 8, 16]


@pytest.mark.parametrize(
    ("extra", "status", "message"),
    [
        (["--size", "50"], 2, "--size: expected a multiple of 32, got 50"),
        (["--classes", "a,a"], 2, "--classes: expected two or more different names"),
        (["--learning-rate", "-1"], 2, "--learning-rate"),
        (["--data", "nowhere"], 3, "nowhere"),
    ],
)
def test_wrong_words_end_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], status: int, message: str
) -> None:
    words = ["backbone", "pretrain", "--name", "embedded-unet", "--out", str(tmp_path / "out"), *extra]
    assert main(words) == status
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_show_names_the_embedded_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbone", "show"]) == 0
    assert "embedded-unet" in capsys.readouterr().out
