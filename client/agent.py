"""The site agent: answers the server's orders. It alone touches the site's cases and personal prompts."""

from __future__ import annotations

import logging
import platform
import threading
import time
from importlib.metadata import version
from pathlib import Path

from client.store import PromptStore
from fedprompt.config import Site, Study
from fedprompt.contract import Failure, Order, Report, SiteCard
from fedprompt.errors import FedpromptError, RunError
from fedprompt.manifest import Arrays, Scope
from fedprompt.training import Session

__all__ = ["Answer", "SiteAgent"]

Answer = tuple[Report, Arrays, Arrays]

_log = logging.getLogger("fedprompt.site")


class SiteAgent:
    """One site's side of one study.

    Args:
        study: The study that the site agreed to.
        site: The site.
        session: Its cases around the frozen backbone.
        folder: The site's own folder for store and pictures.
        durable: fsync the store.
    """

    def __init__(
        self, study: Study, site: Site, session: Session, folder: Path, *, durable: bool = True
    ) -> None:
        self._study = study
        self._site = site
        self._session = session
        self._folder = folder
        self._store = PromptStore(folder / "store", study.digest(), durable=durable)
        self._lock = threading.Lock()

    def answer(self, order: Order, shared: Arrays, site: Arrays, peers: Arrays) -> Answer:
        """Does what an order asks. Whatever goes wrong becomes a `Failure` without paths, names or patients.

        Args:
            order: The order.
            shared: Tensors of scope `shared`, all or (describe) none.
            site: Tensors of scope `site` of this site, all or none.
            peers: What the strategy tells about the other sites.

        Returns:
            The report, and the tensors of scope `shared` and `site` that leave.
        """
        with self._lock:
            try:
                return self._answer(order, shared, site, peers)
            except FedpromptError as error:
                _log.exception("%s: %s failed", self._site.id, order.task)
                return self._failed(order, error.code, error.public)
            except Exception:  # noqa: BLE001 - nothing of a site may leave in an exception text
                _log.exception("%s: %s failed", self._site.id, order.task)
                return self._failed(order, FedpromptError.code, FedpromptError.default_public)

    def _answer(self, order: Order, shared: Arrays, site: Arrays, peers: Arrays) -> Answer:
        if order.study != self._study.digest():
            raise RunError(
                f"order for study {order.study[:12]}, but this site agreed to {self._study.digest()[:12]}",
                public="the order is for another study than the one the site agreed to",
            )
        if order.task == "describe":
            return self._describe(order)
        arrays, optimiser = self._arrays(order, shared, site)
        if order.task == "evaluate":
            return self._evaluate(order, arrays)
        return self._train(order, arrays, optimiser, peers)

    def _describe(self, order: Order) -> Answer:
        import torch  # the session has imported it already

        session = self._session
        card = SiteCard(
            cases=session.counts,
            annotation=self._site.annotation,
            backbone=self._study.backbone.name,
            fingerprint=session.fingerprint,
            manifest=session.manifest.to_json(),
            parameters=session.parameters,
            environment={
                "python": platform.python_version(),
                "torch": torch.__version__,
                "flwr": version("flwr"),
                "device": "cuda" if torch.cuda.is_available() else "cpu",
            },
        )
        report = Report(site=self._site.id, round=order.round, task="describe", card=card)
        if not order.initial_arrays:
            return report, {}, {}
        initial = session.initial()
        return report, self._selected(initial, Scope.SHARED), self._selected(initial, Scope.SITE)

    def _evaluate(self, order: Order, arrays: Arrays) -> Answer:
        start = time.perf_counter()
        pictures = self._folder / "pictures" if order.split == "test" else None
        metrics = self._session.evaluate(arrays, split=order.split, pictures=pictures)
        report = Report(
            site=self._site.id,
            round=order.round,
            task="evaluate",
            cases=getattr(self._session.counts, order.split),
            metrics=metrics,
            seconds={"evaluate": time.perf_counter() - start},
        )
        return report, {}, {}

    def _train(self, order: Order, arrays: Arrays, optimiser: Arrays, peers: Arrays) -> Answer:
        start = time.perf_counter()
        metrics = self._session.evaluate(arrays, split="val")
        middle = time.perf_counter()
        trained = self._session.train(arrays, optimiser, round=order.round, peers=peers)
        self._session.manifest.select(Scope.SHARED, Scope.SITE, Scope.PERSONAL).check(trained.arrays)
        self._store.save(order.round, self._selected(trained.arrays, Scope.PERSONAL), trained.optimiser)
        report = Report(
            site=self._site.id,
            round=order.round,
            task="train",
            cases=trained.cases,
            metrics=metrics,
            loss=trained.loss,
            seconds={"evaluate": middle - start, "train": time.perf_counter() - middle},
        )
        return (
            report,
            self._selected(trained.arrays, Scope.SHARED),
            self._selected(trained.arrays, Scope.SITE),
        )

    def _arrays(self, order: Order, shared: Arrays, site: Arrays) -> tuple[Arrays, Arrays]:
        """Every trained tensor before this order (received, else stored, else initial), and the optimiser."""
        manifest = self._session.manifest
        manifest.select(Scope.SHARED).check(shared)
        if site:
            manifest.select(Scope.SITE).check(site)
        last = order.round - 1 if order.task == "train" else order.round
        personal, optimiser = self._store.load(last)
        return {**self._session.initial(), **personal, **shared, **site}, optimiser

    def _selected(self, arrays: Arrays, scope: Scope) -> Arrays:
        return {name: arrays[name] for name in self._session.manifest.select(scope).names()}

    def _failed(self, order: Order, code: str, reason: str) -> Answer:
        failure = Failure(code=code, reason=reason)
        return Report(site=self._site.id, round=order.round, task=order.task, failure=failure), {}, {}
