"""The command as a whole: what help costs, how errors end."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from fedprompt import cli
from fedprompt.cli import main
from fedprompt.errors import DataError, RefusedError

HELP = "from fedprompt.cli import main; main(['--help'])"
HEAVY = ("torch", "flwr", "monai", "transformers", "pydantic", "numpy", "matplotlib", "jinja2", "ray")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_help_costs_at_most_twice_what_typer_and_rich_cost() -> None:
    costs: dict[str, list[float]] = {"import typer, rich": [], HELP: []}
    for code in (*costs, *list(costs) * 7):  # the first of each fills the caches
        begun = os.times()
        python(code)
        ended = os.times()
        costs[code].append(sum(ended[2:4]) - sum(begun[2:4]))  # processor time: other work does not count
    base, help_cost = (statistics.median(times[1:]) for times in costs.values())
    assert help_cost < 2 * base, f"{help_cost:.3f} s against {base:.3f} s"


def test_help_imports_nothing_heavy_and_shows_every_command() -> None:
    shown = python(f"{HELP}\nimport sys\nprint([name for name in {HEAVY} if name in sys.modules])").stdout
    assert shown.splitlines()[-1] == "[]"
    for command in ("simulate", "report", "study", "backbone"):
        assert f"\n  {command} " in shown
    assert "Run a study over simulated sites on this machine." in shown


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_shows_its_own_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"fedprompt {name}" in capsys.readouterr().out


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "fedprompt 0.1.0\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["simulat"], "No such command 'simulat'. Did you mean 'simulate'? (see `fedprompt --help`)"),
        (["study", "nev"], "No such command 'nev'. Did you mean 'new'? (see `fedprompt study --help`)"),
        (["study", "check"], "Missing argument 'FILE' (see `fedprompt study check --help`)"),
        (["study", "check", "--bad"], "No such option '--bad' (see `fedprompt study check --help`)"),
    ],
)
def test_wrong_usage_is_one_line_and_ends_with_2(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.err == f"error: {sentence}\n"
    assert told.out == ""


def test_without_words_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().err


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> object:
    """Makes `fedprompt report` raise what the test sets."""

    class Failing:
        error: BaseException = DataError("/data/a.png: expected an image,\ngot text")

        def report(self, as_json: bool = typer.Option(False, "--json")) -> None:
            raise self.error

    failing = Failing()
    monkeypatch.setattr("fedprompt.cli.report.report", failing.report)
    monkeypatch.delenv("FEDPROMPT_DEBUG", raising=False)
    return failing


def test_an_error_is_one_line_without_traceback(failing: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report"]) == 3
    told = capsys.readouterr()
    assert told.err == "error: /data/a.png: expected an image, got text\n"
    assert told.out == ""


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (DataError("x"), "data", 3),
        (RefusedError("x"), "refused", 4),
        (ValueError("x"), "internal", 5),
        (KeyboardInterrupt(), "interrupted", 130),
    ],
)
def test_with_json_an_error_is_one_object_too(
    error: BaseException, code: str, status: int, failing: object, capsys: pytest.CaptureFixture[str]
) -> None:
    failing.error = error  # type: ignore[attr-defined]
    assert main(["report", "--json"]) == status
    told = capsys.readouterr()
    found = json.loads(told.out)["error"]
    assert (found["code"], found["exit_code"]) == (code, status)
    assert told.err == f"error: {found['message']}\n"


def test_an_unknown_exception_shows_its_traceback_only_when_asked(
    failing: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing.error = ZeroDivisionError("by zero")  # type: ignore[attr-defined]
    assert main(["report"]) == 5
    assert capsys.readouterr().err == "error: ZeroDivisionError: by zero (FEDPROMPT_DEBUG=1 shows where)\n"
    monkeypatch.setenv("FEDPROMPT_DEBUG", "1")
    assert main(["report"]) == 5
    assert "Traceback" in capsys.readouterr().err


def test_the_console_script_ends_with_the_exit_code(tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "fedprompt"
    words = [str(script), "study", "check", str(tmp_path / "none.toml"), "--json"]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert json.loads(result.stdout)["error"]["code"] == "configuration"
    assert result.stderr == f"error: {tmp_path / 'none.toml'}: no such file\n"
