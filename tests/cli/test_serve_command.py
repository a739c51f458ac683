"""`fedprompt adapt serve`: command lines that cannot work end before anything is loaded or written."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_model_file import write_model_file

from fedprompt.cli import main
from fedprompt.encryption import SiteKey

MODEL = ("--model", "m.toml")
SOCKET = ("--socket", "a.sock")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (SOCKET, "expected --prompts BUNDLE or --model FILE, got neither or both"),
        (
            (*MODEL, "--prompts", "p", *SOCKET),
            "expected --prompts BUNDLE or --model FILE, got neither or both",
        ),
        (MODEL, "expected --socket PATH or --port PORT, got neither or both"),
        ((*MODEL, *SOCKET, "--port", "0"), "expected --socket PATH or --port PORT, got neither or both"),
        (
            (*MODEL, *SOCKET, "--tls-key", "k"),
            "--tls-certificate, --tls-key and --tls-clients go with --port",
        ),
        (
            (*MODEL, "--port", "0", "--tls-key", "k"),
            "--port needs --tls-certificate, --tls-key and --tls-clients",
        ),
        ((*MODEL, *SOCKET, "--backbone", "b"), "--backbone: expected it with --prompts alone"),
        ((*MODEL, *SOCKET, "--key", "k"), "--key: expected --state FOLDER beside it"),
        ((*MODEL, *SOCKET, "--state", "s", "--key", "k"), "m.toml: no such file"),
        ((*MODEL, *SOCKET, "--streams", "0"), "--streams"),
    ],
)
def test_what_cannot_be_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDPROMPT_SITE_KEY", raising=False)
    assert main(["adapt", "serve", *options]) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert len(told.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_state_folder_whose_key_is_lost_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "states").mkdir()
    (tmp_path / "states" / "ward-3.state").write_bytes(b"")
    model = write_model_file(tmp_path / "model")
    words = ["--model", model, "--socket", tmp_path / "a.sock", "--state", tmp_path / "states"]
    assert main(["adapt", "serve", *map(str, words), "--key", str(tmp_path / "site.key")]) == 2
    assert "site.key: no such file; expected the key of the states" in capsys.readouterr().err
    assert not (tmp_path / "site.key").exists()


def test_an_unknown_method_is_refused_before_the_socket(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SiteKey.create(tmp_path / "site.key")
    model = write_model_file(tmp_path / "model")
    words = ["--model", model, "--socket", tmp_path / "a.sock", "--method", "magic"]
    assert main(["adapt", "serve", *map(str, words)]) == 2
    assert "method: expected one of none, " in capsys.readouterr().err
    assert not (tmp_path / "a.sock").exists()
