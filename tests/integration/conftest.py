"""A small federation on disk."""

from pathlib import Path

import pytest
from commands import STUDY

from fedprompt.data.phantoms import write_phantoms


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
