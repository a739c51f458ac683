"""Streams that go on: after a kill at any moment, on the next day, never with another state or folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from stream_material import adapted, unhurried
from tiny_model_file import write_images, write_model_file

from fedprompt.adaptation.adapter import Adapter
from fedprompt.adaptation.model_file import load_network
from fedprompt.adaptation.network import Network
from fedprompt.adaptation.state import StreamState
from fedprompt.adaptation.streams import Stream
from fedprompt.encryption import SiteKey
from fedprompt.errors import ConfigurationError, DataError

KEY = SiteKey(b"k" * 32)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return load_network(write_model_file(tmp_path_factory.mktemp("network")))


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return write_images(tmp_path / "images", 6)


def test_without_a_state_results_are_not_gone_on_with(
    network: Network, images: list[Path], tmp_path: Path
) -> None:
    adapted(network, images[:2], tmp_path / "out")
    before = unhurried(tmp_path / "out")
    with pytest.raises(ConfigurationError, match=r"out: expected a folder without results\.csv, got one"):
        Stream(images, Adapter(network), tmp_path / "out")
    with pytest.raises(ConfigurationError, match="got 2 lines of one that the state does not know"):
        Stream(images, Adapter(network), tmp_path / "out", state=StreamState(tmp_path / "state", KEY, "a"))
    assert unhurried(tmp_path / "out") == before


PLACES = [  # what is done when it is killed, how often before, and whole lines in the table then
    ("begun", 0, 1),
    ("mask", 0, 1),
    ("mask", 3, 5),  # the second image is broken and has no mask
    ("state", 2, 3),
    ("torn", 4, 5),
    ("line", 5, 7),
]
WORKER = """
import json, os, signal, sys
from pathlib import Path
import torch
from fedprompt.adaptation import streams
from fedprompt.adaptation.adapter import Adapter
from fedprompt.adaptation.model_file import load_network
from fedprompt.adaptation.state import StreamState
from fedprompt.adaptation.stream_rows import ResultsFile
from fedprompt.encryption import SiteKey

torch.set_num_threads(1)
root = Path(sys.argv[1])
network = load_network(root / "network" / "model.toml")

def killed():
    os.kill(os.getpid(), signal.SIGKILL)

def killing(function, left, before=lambda *arguments: None):
    def wrapped(*arguments, **options):
        nonlocal left
        left -= 1
        if left < 0:
            before(*arguments)
        done = function(*arguments, **options)
        if left < 0:
            killed()
        return done
    return wrapped

def torn(self, texts):
    with self.path.open("ab") as file:
        file.write(b"004.png,tr")
    killed()

def run(place, count):
    folder = root / f"{place}-{count}"
    if place == "begun":
        Adapter.__call__ = killing(Adapter.__call__, count, lambda *arguments: killed())
    elif place == "mask":
        streams.write_atomic = killing(streams.write_atomic, count)
    elif place == "state":
        StreamState.save = killing(StreamState.save, count)
    else:
        ResultsFile.append = killing(ResultsFile.append, count, torn if place == "torn" else lambda *a: None)
    state = StreamState(folder / "state", SiteKey(b"k" * 32), "a")
    list(streams.Stream(sorted((root / "images").iterdir()), Adapter(network), folder / "out", state=state))

for place, count, _ in json.loads(sys.argv[2]):
    child = os.fork()
    if child == 0:
        try:
            (root / f"{place}-{count}").mkdir()
            run(place, count)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, (place, count)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what streams left behind that were killed at all places."""
    root = tmp_path_factory.mktemp("killed")
    write_model_file(root / "network")
    images = write_images(root / "images", 6)
    images[1].write_bytes(images[1].read_bytes()[:200])  # one of them is broken
    words = [sys.executable, "-c", WORKER, str(root), json.dumps(PLACES)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(words, check=True, env=environment, timeout=120)
    adapted(load_network(root / "network" / "model.toml"), images, root / "whole")
    return root


@pytest.mark.parametrize(("place", "count", "whole_lines"), PLACES)
def test_a_killed_stream_ends_as_an_undisturbed_one(
    place: str, count: int, whole_lines: int, killed: Path
) -> None:
    out = killed / f"{place}-{count}" / "out"
    left_behind = (out / "results.csv").read_bytes()
    assert left_behind.count(b"\n") == whole_lines
    assert left_behind.endswith(b"004.png,tr") == (place == "torn")
    network = load_network(killed / "network" / "model.toml")
    with StreamState(out.parent / "state", KEY, "a") as state:
        adapted(network, sorted((killed / "images").iterdir()), out, state=state)
    assert unhurried(out) == unhurried(killed / "whole")
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


def test_a_stream_goes_on_the_next_day_in_the_same_folder_or_another(
    network: Network, tmp_path: Path
) -> None:
    images = [*write_images(tmp_path / "monday", 4), *write_images(tmp_path / "tuesday", 4, first=4)]
    adapted(network, images, tmp_path / "whole")
    for name, outs in {"same": ("same", "same"), "other": ("first", "second")}.items():
        for day, out in zip((images[:4], images[4:]), outs, strict=True):
            with StreamState(tmp_path / "states", KEY, name) as state:
                adapted(network, day, tmp_path / out, state=state)
    whole = unhurried(tmp_path / "whole")
    assert unhurried(tmp_path / "same") == whole
    first, second = unhurried(tmp_path / "first"), unhurried(tmp_path / "second")
    assert first["lines"] + second["lines"] == whole["lines"]  # type: ignore[operator]
    assert {**first, **second, "lines": whole["lines"]} == whole


def test_a_deleted_folder_is_written_anew(network: Network, images: list[Path], tmp_path: Path) -> None:
    with StreamState(tmp_path / "states", KEY, "a") as state:
        adapted(network, images[:3], tmp_path / "out", state=state)
    for path in [*(tmp_path / "out" / "masks").iterdir(), *(tmp_path / "out").glob("*.*")]:
        path.unlink()
    with StreamState(tmp_path / "states", KEY, "a") as state:
        rows = adapted(network, images[:3], tmp_path / "out", state=state)
    assert [row.image for row in rows] == [image.name for image in images[:3]]
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 3


def test_other_images_of_the_same_name_are_refused(
    network: Network, images: list[Path], tmp_path: Path
) -> None:
    with StreamState(tmp_path / "states", KEY, "a") as state:
        adapted(network, images[:2], tmp_path / "out", state=state)
        before = unhurried(tmp_path / "out")
        [other] = write_images(tmp_path / "other", 1, first=1)
        with pytest.raises(ConfigurationError, match=r"expected no line for .*other/001\.png, got one of"):
            Stream([images[0], other], Adapter(network), tmp_path / "out", state=state)
    assert unhurried(tmp_path / "out") == before


def test_a_state_of_another_key_network_or_method_is_refused(
    network: Network, images: list[Path], tmp_path: Path
) -> None:
    with StreamState(tmp_path / "states", KEY, "a") as state:
        adapted(network, images[:2], tmp_path / "out", state=state)
    other = load_network(write_model_file(tmp_path / "network", seed=5))
    cases = [
        (KEY, Adapter(other), r"a\.state: expected the state of network"),
        (KEY, Adapter(network, "none"), r"a\.state: expected the state of method none, got low-frequency"),
        (SiteKey(b"x" * 32), Adapter(network), "wrong key"),
    ]
    for key, adapter, words in cases:
        with (
            StreamState(tmp_path / "states", key, "a") as state,
            pytest.raises(DataError, match=words) as caught,
        ):
            Stream(images, adapter, tmp_path / "out", state=state)
        assert "\n" not in str(caught.value)


def test_a_state_of_the_service_is_refused(network: Network, images: list[Path], tmp_path: Path) -> None:
    with StreamState(tmp_path / "states", KEY, "a") as state:
        arrays, metadata = Adapter(network).state()
        state.save(arrays, {"adapter": metadata, "service": {}})
        with pytest.raises(DataError, match=r"a\.state: expected the state of a stream of files, got one"):
            Stream(images, Adapter(network), tmp_path / "out", state=state)


def test_results_of_other_columns_are_refused(network: Network, images: list[Path], tmp_path: Path) -> None:
    truth = tmp_path / "truth"
    truth.mkdir()
    for image in images:
        Image.new("L", (56, 40)).save(truth / image.name)
    with StreamState(tmp_path / "states", KEY, "a") as state:
        adapted(network, images[:2], tmp_path / "out", state=state)
        with pytest.raises(ConfigurationError, match="with truth or without as now, got the columns image,"):
            Stream(images, Adapter(network), tmp_path / "out", state=state, truth=truth)
