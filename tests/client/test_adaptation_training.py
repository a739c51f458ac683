"""One frozen backbone in memory for training and adaptation: neither changes what the other computes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import same, served

from client.agent import SiteAgent
from fedprompt.adaptation.bundle import prompted_network
from fedprompt.adaptation.layers import WatchedNetwork
from fedprompt.adaptation.network import Network
from fedprompt.adaptation.statistics import SourceStatistics, collect_statistics
from fedprompt.adaptation.stream_files import network_input
from fedprompt.backbones.base import fingerprint
from fedprompt.config import Site, Study, study_from_mapping
from fedprompt.contract import Order
from fedprompt.data.images import read_picture
from fedprompt.data.phantoms import write_phantoms
from fedprompt.manifest import Scope
from fedprompt.models import PromptedSegmenter, build_model
from fedprompt.training import Session, Workspace

STUDY = {
    "name": "both",
    "image": {"size": 64},
    "rounds": {"count": 3},
    "training": {"steps": 8, "batch-size": 4, "views": 2},
}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("federation")
    write_phantoms(folder, seed=3, size=64, limit=6, sites={"ashford", "brookside"})
    return folder


@pytest.fixture(scope="module")
def study() -> Study:
    return study_from_mapping(STUDY, "study")


def test_training_and_streams_share_tensors_and_leave_each_other_alone(
    tmp_path: Path, study: Study, federation: Path
) -> None:
    site = Site(id="ashford", data=federation / "ashford")
    workspace = Workspace.open(study)
    session = Session(study, site, workspace, simulate=True)
    model = build_model(workspace.backbone, study, site.annotation)
    assert isinstance(model, PromptedSegmenter)
    network = prompted_network(model, study, backbone=workspace.fingerprint)
    sources = (read_picture(file) for file in sorted((site.data / "images").iterdir()))
    statistics = collect_statistics(network, (network_input(source, network) for source in sources))
    files = sorted((federation / "brookside" / "images").iterdir())[:8]  # another camera

    held = {parameter.data_ptr() for parameter in workspace.backbone.parameters()}
    for module in (network.module, WatchedNetwork(network.module).module):
        assert held <= {parameter.data_ptr() for parameter in module.parameters()}

    trained = _trained(study, site, session, tmp_path / "alone")
    streamed = _streamed(network, statistics, files, tmp_path / "alone")
    found: dict[str, Any] = {}
    begin = threading.Barrier(2)

    def beside(name: str, work: Callable[[], Any]) -> threading.Thread:
        def run() -> None:
            begin.wait(10)
            found[name] = work()

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    threads = [
        beside("trained", lambda: _trained(study, site, session, tmp_path / "both")),
        beside("streamed", lambda: _streamed(network, statistics, files, tmp_path / "both")),
    ]
    for thread in threads:
        thread.join(120)
    assert found["trained"] == trained
    assert found["streamed"] == streamed
    assert any(reply.accepted for reply in streamed)
    assert fingerprint(workspace.backbone) == workspace.fingerprint


def _trained(study: Study, site: Site, session: Session, folder: Path) -> dict[str, bytes]:
    """The bytes of every tensor that leaves after a round."""
    agent = SiteAgent(study, site, session, folder, durable=False)
    initial = session.initial()
    sent = {name: initial[name] for name in session.manifest.select(Scope.SHARED).names()}
    order = Order(study=study.digest(), round=1, task="train")
    report, shared, own = agent.answer(order, sent, {}, {})
    assert report.failure is None
    assert any((shared[name] != sent[name]).any() for name in sent)
    return {name: np.asarray(array).tobytes() for name, array in {**shared, **own}.items()}


def _streamed(network: Network, statistics: SourceStatistics, files: list[Path], folder: Path) -> list[Any]:
    """The replies to a stream of a site's images."""
    folder.mkdir(exist_ok=True)
    with (
        served(network, folder, statistics=statistics) as client,
        client.stream("ward-3") as stream,
    ):
        return [same(stream.adapt(file.read_bytes(), file.suffix)) for file in files]
