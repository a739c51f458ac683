"""The `fedprompt` command as a process, and a study that is small enough for tests."""

import os
import subprocess
import sys
from pathlib import Path

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


def command(*arguments: object) -> list[str]:
    return [str(Path(sys.executable).with_name("fedprompt")), *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


def fedprompt(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, env=environment(), timeout=280, check=False
    )
