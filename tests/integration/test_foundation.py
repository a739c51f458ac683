"""Studies on backbones in the format of transformers, as their user runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import fedprompt
from tiny_sam import save_tiny_sam
from tiny_transformers import tiny_clip, tiny_vit

from fedprompt.cli import main
from fedprompt.data.phantoms import write_phantoms

ROUNDS = "\n[rounds]\ncount = 2\nquorum = 4\n[training]\nsteps = 2\nbatch-size = 3\nviews = 2\n"
DOMAIN = "[prompts.domain]\ncount = 2\nblocks = 2\ndomains = 2\nadapter = 4\n"


@pytest.fixture(scope="module")
def clinics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clinics")
    write_phantoms(folder, seed=1, size=48, limit=6, task="classification")
    return folder


def classification(folder: Path, backbone: str, prompts: str, save) -> Path:
    save(folder / "encoder")
    file = folder / "study.toml"
    file.write_text(
        f'name = "skin"\ntask = "classification"\n[image]\nsize = 32\n[backbone]\nname = "{backbone}"\n'
        f'folder = "encoder"\n{prompts}[strategy]\nname = "fedavg"\n{ROUNDS}'
    )
    return file


def shared(run: Path) -> bytes:
    return (run / "prompts" / "shared.safetensors").read_bytes()


def test_domain_prompts_on_a_vit_with_and_without_features_on_disk(tmp_path: Path, clinics: Path) -> None:
    study = classification(tmp_path, "vit", DOMAIN, tiny_vit)
    common = ("simulate", study, "--data", clinics, "--json", "--out")
    first = fedprompt(*common, tmp_path / "plain", "--compare", "frozen,head,full-finetune")
    assert first.returncode == 0, first.stderr
    summary = json.loads(first.stdout)
    assert {"auroc", "balanced_accuracy", "macro_f1", "ece"} <= summary["mean"].keys()
    assert summary["baselines"]["frozen"]["mean"]["auroc"] == 0.5
    assert summary["parameters"]["personal"] > 0
    html = (tmp_path / "plain" / "report.html").read_text()
    assert "AUROC" in html
    assert "Dice" not in html
    for site in summary["sites"]:
        kept = tmp_path / "plain" / "sites" / site / "pictures"
        assert sum(map(sum, json.loads((kept / "confusion.json").read_text())["counts"])) == 6
    for run in ("fills", "reads"):
        again = fedprompt(*common, tmp_path / run, "--feature-cache", tmp_path / "features")
        assert again.returncode == 0, again.stderr
        assert shared(tmp_path / run) == shared(tmp_path / "plain")
    assert list((tmp_path / "features").glob("*.safetensors"))


def test_learnable_text_on_a_clip(tmp_path: Path, clinics: Path) -> None:
    study = classification(tmp_path, "clip", "[prompts.text]\nrank = 2\n", tiny_clip)
    result = fedprompt("simulate", study, "--data", clinics, "--out", tmp_path / "run", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["parameters"]["personal"] > 0


def test_class_prompts_on_a_sam(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "eyes", seed=1, size=64, limit=3)
    save_tiny_sam(tmp_path / "encoder")
    study = tmp_path / "study.toml"
    study.write_text(
        '[image]\nsize = 64\n[backbone]\nname = "sam"\nfolder = "encoder"\n'
        + ROUNDS.replace("views = 2", "views = 1")
    )
    result = fedprompt("simulate", study, "--data", tmp_path / "eyes", "--out", tmp_path / "run", "--json")
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["strategy"] == "fedlppa"
    assert summary["parameters"]["site"] > 0
    assert 0 <= summary["mean"]["dice"] <= 1


def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, clinics: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = classification(tmp_path, "vit", DOMAIN, tiny_vit)
    text = study.read_text()
    capsys.readouterr()  # saving the encoder shows a bar

    def refused(code: int, *sentences: str, data: Path = clinics, compare: str = "frozen") -> None:
        options = ("--data", data, "--out", tmp_path / "run", "--compare", compare)
        assert main(["simulate", str(study), *map(str, options)]) == code
        told = capsys.readouterr().err
        assert len(told.splitlines()) == 1
        for sentence in sentences:
            assert sentence in told
        assert not (tmp_path / "run").exists()

    study.write_text(text.replace("size = 32", "size = 33"))
    refused(2, "image.size", "a multiple of 8", "got 33")
    study.write_text(text.replace("blocks = 2", "blocks = 4"))
    refused(2, "expected at most the 3 of the backbone, got 4")
    study.write_text(text.replace('"vit"', '"dinov2"'))
    refused(2, "dinov2", "vit")
    study.write_text(text.replace("[prompts.domain]", f'fingerprint = "{"ab" * 32}"\n[prompts.domain]'))
    refused(2, "ab" * 32, "got")
    study.write_text(text)
    refused(2, "compare: fedlppa does not fit this study", compare="fedlppa")
    other = tmp_path / "other"
    shutil.copytree(clinics, other)
    table = other / "ashford" / "cases.csv"
    table.write_text(table.read_text().replace("nevus", "mole"))
    refused(3, "ashford", "'mole' is no class of the study (nevus, melanoma, keratosis)", data=other)
    (tmp_path / "encoder" / "model.safetensors").rename(tmp_path / "encoder" / "pytorch_model.bin")
    refused(3, "safetensors", "pickle")
