"""`fedprompt study new` and `fedprompt study check`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedprompt.cli import main
from fedprompt.config import Study, load_study


def test_a_new_file_is_the_default_study_and_is_never_replaced_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study.toml"
    assert main(["study", "new", str(file)]) == 0
    assert load_study(file) == Study()
    file.write_text("mine")
    assert main(["study", "new", str(file)]) == 2
    assert "--force" in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert main(["study", "new", str(file), "--force"]) == 0
    assert load_study(file) == Study()
    assert list(tmp_path.iterdir()) == [file]


def test_a_new_file_for_another_task_and_backbone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "study.toml"
    assert main(["study", "new", str(file), "--task", "classification", "--backbone", "vit"]) == 0
    study = load_study(file)
    assert (study.task, study.backbone.name, study.prompts.used()) == ("classification", "vit", ("domain",))
    assert study.image.size == 224
    capsys.readouterr()
    assert main(["study", "check", str(file)]) == 2
    assert "backbone.folder: expected a folder, or a hub id in backbone.hub" in capsys.readouterr().err
    file.write_text(file.read_text().replace('# folder = "..."', 'folder = "encoder"'))
    assert main(["study", "check", str(file)]) == 0
    assert main(["study", "new", str(file), "--backbone", "vitt", "--force"]) == 2
    assert "study new: backbone.name: expected one of embedded-unet" in capsys.readouterr().err


def test_a_place_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["study", "new", str(tmp_path)]) == 2
    assert main(["study", "new", str(tmp_path / "file" / "study.toml")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"error: {tmp_path}: expected a file to write, got a folder"
    assert second.startswith(f"error: {tmp_path}/file/study.toml: cannot be written")


def test_a_check_shows_what_the_study_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "study.toml"
    file.write_text(
        'name = "polyp"\nclasses = ["background", "[bold]polyp"]\n[sites.paris]\nannotation = "box"\n'
    )
    file.write_text(file.read_text() + "[sites.oslo]\n")
    assert main(["study", "check", str(file)]) == 0
    shown = capsys.readouterr().out
    for part in ("polyp, seed 0", "[bold]polyp", "fedlppa (", "paris (box), oslo"):
        assert part in shown
    assert main(["study", "check", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["study"]["sites"]["paris"] == {"annotation": "box"}
    assert found["digest"] == load_study(file).digest()


def test_a_check_tells_every_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "study.toml"
    file.write_text("[rounds]\ncount = true\n[training]\nbatchsize = 3\n")
    assert main(["study", "check", str(file)]) == 2
    assert capsys.readouterr().err == (
        f"error: {file}: rounds.count: expected an integer, got true; "
        "training.batchsize: no such key (did you mean 'batch-size'?), got 3\n"
    )
