"""`fedprompt adapt demo`, tiny: a study, a bundle with statistics, a stream, a page."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fedprompt.adaptation.bundle import STATISTICS, load_bundle
from fedprompt.cli import adapt_demo, main
from fedprompt.cli.adapt_demo import ADAPTED, SHARED, SOURCE, Demo
from fedprompt.data.cases import read_cases


@pytest.fixture(autouse=True)
def quiet_log() -> Iterator[None]:
    """Takes back the handler and the silence that a simulation gives to the log."""
    log = logging.getLogger("fedprompt")
    before, propagate = list(log.handlers), log.propagate
    yield
    for handler in [each for each in log.handlers if each not in before]:
        log.removeHandler(handler)
        handler.close()
    log.propagate = propagate


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapt_demo, "Demo", partial(Demo, size=64, rounds=1, limit=4, batches=2))


def test_the_demo_is_whole(tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert main(["adapt", "demo", "--out", str(out), "--seed", "3", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["images"] == 2 * 12
    assert list(summary["results"]) == [SOURCE, SHARED, ADAPTED]
    assert summary["unseen"] not in summary["sites"]
    assert [path.name for path in sorted((out / "sites").iterdir())] == summary["sites"]
    assert "accepted" in summary["results"][ADAPTED]
    assert summary["results"][SHARED].keys() == {"dice", "seconds", "change", "worst_change"}

    network, statistics = load_bundle(out / "study")
    assert (out / "study" / "prompts" / STATISTICS).exists()
    assert statistics is not None
    assert statistics.images == 3 * 8
    assert network.fingerprint == summary["network"] == statistics.fingerprint
    before, after = (
        [case.image for batch in sorted((out / "unseen" / place).iterdir()) for case in read_cases(batch)]
        for place in ("before", "after")
    )
    assert len(before) == len(after) == 24
    assert all(old.read_bytes() != new.read_bytes() for old, new in zip(before, after, strict=True))
    page = (out / "report.html").read_text()
    assert 'src="http' not in page
    assert network.fingerprint in page
    assert f"{summary['results'][ADAPTED]['dice']:.3f}" in page
    assert (out / "study" / "report.html").exists()


def test_a_folder_with_files_in_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("x")
    assert main(["adapt", "demo", "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told == f"error: {tmp_path}: expected a new or empty folder, got one with files in it\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert main(["adapt", "demo", "--out", str(tmp_path / "mine.txt")]) == 2
    assert "got a file" in capsys.readouterr().err
    assert main(["adapt", "demo", "--out", str(tmp_path / "mine.txt" / "below")]) == 2
    assert "the folder cannot be made" in capsys.readouterr().err


def test_a_seed_that_no_study_can_have_is_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["adapt", "demo", "--out", str(tmp_path / "new"), "--seed", str(2**31)]) == 2
    assert "--seed" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
