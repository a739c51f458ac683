"""The sites of a study as the server knows them: who described itself, who is admitted and who is refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flwr.serverapp import Grid

from fedprompt.config import Study
from fedprompt.contract import Failure, Order, Report, SiteCard
from fedprompt.manifest import Manifest
from server.exchange import ReplyRefused, open_reply, order_message, push, replies
from strategies.wire import order_content

__all__ = ["Admission", "Member", "Roster"]

_LOOK_FOR_NODES = 0.25  # seconds between two looks for nodes while sites are missing
_DESCRIBE_LIVES = 12 * 3600.0  # seconds for which a node may still answer who it is


@dataclass(frozen=True)
class Member:
    """A site that takes part: the node behind which it is, its id and how it described itself."""

    node: int
    site: str
    card: SiteCard


class Roster:
    """Admits sites whose backbone and manifest are those of the study.

    Attributes:
        members: By site id.
        refused: Why a node may not take part.
        fingerprint: Of the backbone that all must have: the study's, else that of the first site.
        manifest: That all must have: that of the first site.
    """

    def __init__(
        self, study: Study, fingerprint: str | None = None, manifest: Manifest | None = None
    ) -> None:
        self.members: dict[str, Member] = {}
        self.refused: dict[int, Failure] = {}
        self.fingerprint = fingerprint or study.backbone.fingerprint
        self.manifest = manifest

    def known(self) -> set[int]:
        """Nodes over which is decided."""
        return {member.node for member in self.members.values()} | set(self.refused)

    def online(self, nodes: Iterable[int]) -> list[Member]:
        """Members behind `nodes`, sorted by site id."""
        there = set(nodes)
        return [self.members[site] for site in sorted(self.members) if self.members[site].node in there]

    def admit(self, node: int, report: Report, nodes: Iterable[int]) -> Member | Failure:
        """Decides over a node that described itself.

        Args:
            node: Its id.
            report: What it answered, without a failure.
            nodes: All nodes that are online: a site may come back behind a new one when its old one is gone.
        """
        decision = self._decide(node, report, set(nodes))
        if isinstance(decision, Failure):
            self.refused[node] = decision
        else:
            self.members[decision.site] = decision
            self.refused.pop(node, None)
        return decision

    def _decide(self, node: int, report: Report, nodes: set[int]) -> Member | Failure:
        card = report.card
        if card is None:
            return Failure(code="malformed", reason="the site did not describe itself")
        try:
            manifest = Manifest.from_json(card.manifest)
        except (KeyError, TypeError, ValueError):
            return Failure(code="malformed", reason="the site's manifest cannot be read")
        other = self.members.get(report.site)
        if other is not None and other.node in nodes - {node}:
            return Failure(code="duplicate-site", reason=f"another node is already site {report.site}")
        if card.cases.train < 1:
            return Failure(code="data", reason="the site has no train case")
        if self.fingerprint not in (None, card.fingerprint):
            return Failure(
                code="fingerprint",
                reason=f"expected backbone {str(self.fingerprint)[:12]}, got {card.fingerprint[:12]}",
            )
        if self.manifest is not None and self.manifest.digest() != manifest.digest():
            return Failure(code="manifest", reason="the site's tensors are not those of the study's sites")
        self.fingerprint, self.manifest = card.fingerprint, manifest
        return Member(node, report.site, card)


class Admission:
    """Asks nodes who they are, and waits for sites.

    Args:
        grid: Flower's way to the nodes.
        stop: Ends every wait when set.
        roster: Filled here.
        study: Digest of the study.
        closed: Number of nodes of a closed federation, or None.
        emit: Called with the name and the fields of an event.
    """

    def __init__(
        self,
        grid: Grid,
        stop: threading.Event,
        roster: Roster,
        study: str,
        closed: int | None,
        emit: Callable[..., None],
    ) -> None:
        self._grid, self._stop, self._roster, self._closed, self._emit = grid, stop, roster, closed, emit
        self._order = Order(study=study, round=0, task="describe")
        self._asked: dict[str, int] = {}  # by message id the node that has yet to say who it is

    def gather(self, least: int, seconds: float) -> list[Member]:
        """Members that are online, sorted by id: `least` or more, or those that there are after `seconds`.

        In a closed federation it waits only for nodes over which is not decided. In an open one every refused
        node is asked once again, for what was wrong may be mended, but not waited for.
        """
        end = time.monotonic() + seconds
        again = set(self._roster.refused) if self._closed is None else set()
        while True:
            nodes = set(self._grid.get_node_ids())
            self._describe(nodes, again & nodes, end)
            again = set()
            members = self._roster.online(nodes)
            decided = self._closed is not None and len(self._roster.known()) >= self._closed
            left = end - time.monotonic()
            if len(members) >= least or decided or left <= 0 or self._stop.is_set():
                return members
            self._stop.wait(min(_LOOK_FOR_NODES, left))

    def _describe(self, nodes: set[int], again: set[int], end: float) -> None:
        asked = set(self._asked.values())
        new = nodes - self._roster.known() - asked
        messages = [
            order_message(node, self._order, order_content(self._order, {}, {}, {}), _DESCRIBE_LIVES)
            for node in sorted(new | (again - asked))
        ]
        sent = push(self._grid, messages)
        self._asked |= sent
        awaited = [message_id for message_id, node in sent.items() if node in new]
        described: list[tuple[str, int, Report]] = []
        for node, reply in replies(self._grid, self._asked, awaited=awaited, end=end, stop=self._stop):
            try:
                report, _, _ = open_reply(reply, site=None, round=0, task="describe")
                described.append((report.site, node, report))
            except ReplyRefused as refused:
                self._refuse(node, refused)
        for site, node, report in sorted(described, key=lambda entry: entry[:2]):  # not in order of arrival
            before = self._roster.refused.get(node)
            decision = self._roster.admit(node, report, nodes)
            if isinstance(decision, Member):
                card = decision.card.model_dump(mode="json", exclude={"manifest"})
                self._emit("site_joined", site=site, node=node, **card)
            elif decision != before:
                self._emit("site_refused", site=site, node=node, code=decision.code, reason=decision.reason)

    def _refuse(self, node: int, refused: ReplyRefused) -> None:
        failure = Failure(code=refused.code, reason=refused.reason)
        if self._roster.refused.get(node) == failure:
            return
        if failure.code != "unavailable":  # such a node is new again when it comes back
            self._roster.refused[node] = failure
        whose = {} if refused.site is None else {"site": refused.site}
        self._emit("site_refused", **whose, node=node, code=failure.code, reason=failure.reason)
