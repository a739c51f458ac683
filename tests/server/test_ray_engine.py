"""Flower's Ray engine gives the same bytes as the in-process one, and its failures surface."""

from __future__ import annotations

import logging
import os
import threading
from functools import partial
from pathlib import Path

import pytest
from fake_sites import make_app, make_study
from flwr.serverapp import Grid

from fedprompt.errors import ConfigurationError
from server.engines import Engine, get_engine
from server.engines.ray import run as run_ray
from server.loop import Outcome, run_study
from server.run_directory import RunDirectory

SITES = ["a", "b", "c"]


def simulate(folder: Path, engine: Engine, strategy: str) -> tuple[Outcome, bytes]:
    study = make_study(strategy, rounds={"count": 2, "deadline": 120.0})
    with RunDirectory.create(folder, study) as run:
        outcome = engine(partial(run_study, run=run, sites=3), make_app(study, SITES), 3, workers=2)
    return outcome, (folder / "prompts" / "shared.safetensors").read_bytes()


@pytest.mark.slow
def test_the_same_bytes_as_in_process(tmp_path: Path) -> None:
    before = dict(os.environ), logging.getLogger("flwr").level
    ray, ray_bytes = simulate(tmp_path / "ray", get_engine("ray"), "fedlppa")
    here, here_bytes = simulate(tmp_path / "here", get_engine("inprocess"), "fedlppa")
    assert ray.status == here.status == "completed"
    assert ray_bytes == here_bytes
    assert ray.summary["sites"] == here.summary["sites"]
    assert (dict(os.environ), logging.getLogger("flwr").level) == before


@pytest.mark.slow
def test_an_error_of_the_server_surfaces(tmp_path: Path) -> None:
    def main(grid: Grid, stop: threading.Event) -> None:
        raise ConfigurationError("no good")

    with pytest.raises(ConfigurationError, match="no good"):
        run_ray(main, make_app(make_study(), SITES), 3, workers=1)


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'fedprompt\[ray\]'"):
        run_ray(lambda *_: None, make_app(make_study(), SITES), 3)
