"""A small federation on disk and the `fedprompt` command as a process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedprompt.data.phantoms import write_phantoms

STUDY = """
name = "small"

[image]
size = 64

[rounds]
count = 4

[training]
steps = 2
batch-size = 4
views = 2
"""


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four phantom sites with six train cases or fewer."""
    folder = tmp_path_factory.mktemp("federation")
    write_phantoms(folder, seed=3, size=64, limit=6)
    return folder


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    return path


def command(*arguments: object) -> list[str]:
    return [str(Path(sys.executable).with_name("fedprompt")), *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


def fedprompt(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, env=environment(), timeout=280, check=False
    )
