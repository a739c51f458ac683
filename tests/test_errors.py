"""Exit codes, and what an error may say beyond the site's boundary."""

from __future__ import annotations

import pytest

from fedprompt.errors import ConfigurationError, DataError, FedpromptError, RefusedError, RunError


@pytest.mark.parametrize(
    ("kind", "exit_code", "code"),
    [
        (ConfigurationError, 2, "configuration"),
        (DataError, 3, "data"),
        (RefusedError, 4, "refused"),
        (RunError, 5, "run"),
    ],
)
def test_every_kind_has_its_exit_code(kind: type[FedpromptError], exit_code: int, code: str) -> None:
    error = kind("/data/paris/patient-7.png: unreadable")
    assert (error.exit_code, error.code) == (exit_code, code)
    assert str(error) == "/data/paris/patient-7.png: unreadable"


@pytest.mark.parametrize("kind", [ConfigurationError, DataError, RefusedError, RunError])
def test_the_public_sentence_never_holds_the_private_one(kind: type[FedpromptError]) -> None:
    error = kind("/data/paris/patient-7.png: unreadable")
    assert "paris" not in error.public
    assert "/" not in error.public
    assert kind("private", public="one site is missing").public == "one site is missing"
