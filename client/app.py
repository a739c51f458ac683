"""The Flower ClientApp: a thin shim that hands an order to the site agent and its answer back.

In a simulation many sites live in one process and share one copy of the frozen backbone. Agents are opened at
the first message of a site and stay; what must survive the process lies in the prompt store.
"""

from __future__ import annotations

import logging
import threading
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedprompt.artifacts import read_json
from fedprompt.config import Site, load_study
from fedprompt.contract import Failure, Report
from fedprompt.errors import FedpromptError
from strategies.wire import read_order, report_content

if TYPE_CHECKING:
    from client.agent import SiteAgent
    from fedprompt.training import Workspace

__all__ = ["close_agents", "make_client_app"]

_log = logging.getLogger("fedprompt.site")
_lock = threading.Lock()
_agents: dict[tuple[str, str], SiteAgent] = {}
_workspaces: dict[tuple[object, ...], Workspace] = {}


@lru_cache(maxsize=16)
def _simulated_sites(folder: str) -> tuple[Site, ...]:
    """The sites of a simulated run in the order of their partition ids."""
    listed = read_json(Path(folder) / "federation.json")["sites"]
    return tuple(Site.model_validate(values) for values in listed)


def make_client_app(run: Path) -> ClientApp:
    """The app of every site of a simulated run; it pickles, so that other processes can open the same sites.

    Args:
        run: The run directory with `study.toml` and `federation.json`.
    """
    app = ClientApp()
    folder = str(run.resolve())

    def answer(message: Message, context: Context) -> Message:
        order, shared, site, peers = read_order(message.content)
        number = int(context.node_config["partition-id"])
        try:
            agent = _agent(folder, number)
        except FedpromptError as error:
            _log.exception("site %d cannot be opened", number)
            site_id = _simulated_sites(folder)[number].id
            failure = Failure(code=error.code, reason=error.public)
            report = Report(site=site_id, round=order.round, task=order.task, failure=failure)
            return Message(report_content(report, {}, {}), reply_to=message)
        return Message(report_content(*agent.answer(order, shared, site, peers)), reply_to=message)

    app.query()(answer)
    app.train()(answer)
    app.evaluate()(answer)
    return app


def close_agents(run: Path) -> None:
    """Forgets the agents of a run and what they hold; backbones and features stay for the next run."""
    with _lock:
        for key in [key for key in _agents if key[0] == str(run.resolve())]:
            del _agents[key]


def _agent(folder: str, number: int) -> SiteAgent:
    """The agent of a site, opened once per process; other sites wait while a backbone loads."""
    import torch

    torch.set_num_threads(1)  # sites run side by side; the result must not depend on how many do
    site = _simulated_sites(folder)[number]
    with _lock:
        key = (folder, site.id)
        if key not in _agents:
            _agents[key] = _open_agent(Path(folder), site)
        return _agents[key]


def _open_agent(run: Path, site: Site) -> SiteAgent:
    from client.agent import SiteAgent
    from fedprompt.training import Session, Workspace

    study = load_study(run / "study.toml")
    key = (study.backbone, study.task, len(study.classes), study.image, site.feature_cache)
    if key not in _workspaces:
        disk = round(site.feature_cache_gib * 2**30)
        _workspaces[key] = Workspace.open(study, folder=site.feature_cache, disk_bytes=disk)
    session = Session(study, site, _workspaces[key], simulate=True)
    return SiteAgent(study, site, session, run / "sites" / site.id, durable=False)
