"""One exchange with the sites of a study: an order to each with its tensors, and the answers that count."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from flwr.serverapp import Grid

from fedprompt.contract import Order, Report
from fedprompt.errors import RunError
from fedprompt.manifest import Arrays, Manifest, Scope
from server.exchange import ReplyRefused, open_reply, order_message, push, replies
from server.sites import Member
from strategies import Strategy
from strategies.wire import content_bytes, encode_arrays, order_content

__all__ = ["Answer", "Orders"]


@dataclass(frozen=True)
class Answer:
    """A reply that passed all checks. Sizes in bytes."""

    member: Member
    report: Report
    shared: Arrays
    kept: Arrays
    up: int
    down: int


class Orders:
    """Sends orders and checks replies; a site whose reply does not count is dropped with a recorded reason.

    Args:
        grid: Flower's way to the nodes.
        stop: Ends every wait when set.
        strategy: Says which tensors a site receives.
        seconds: How long an exchange may take; later replies are left out.
        emit: Called with the name and the fields of an event.

    Attributes:
        traffic: Bytes up and down of the latest exchange.
    """

    def __init__(
        self,
        grid: Grid,
        stop: threading.Event,
        strategy: Strategy,
        seconds: float,
        emit: Callable[..., None],
    ) -> None:
        self._grid, self._stop, self._strategy, self._seconds = grid, stop, strategy, seconds
        self._emit = emit
        self.traffic = {"up": 0, "down": 0}

    def ask(self, members: list[Member], order: Order, expected: Manifest | None) -> Iterator[Answer]:
        """Sends `order` to each member, sorted by site id, and yields answers as they arrive.

        Args:
            members: Who is asked.
            order: What is asked.
            expected: The tensors that a reply must have, of scopes `shared` and `site`; None: none count.
        """
        sizes = {}
        messages = []
        shared = None
        self.traffic = {"up": 0, "down": 0}
        for member in members:
            tensors, kept, peers = self._strategy.outgoing(member.site)
            shared = encode_arrays(tensors) if shared is None else shared  # the same for all sites
            content = order_content(order, shared, kept, peers)
            sizes[member.node] = content_bytes(content)
            messages.append(order_message(member.node, order, content, self._seconds))
        self.traffic["down"] = sum(sizes.values())
        end = time.monotonic() + self._seconds
        waiting = push(self._grid, messages)
        messages.clear()  # the engine keeps what it needs
        checks = [] if expected is None else [expected.select(Scope.SHARED), expected.select(Scope.SITE)]
        silent = {member.node: member for member in members}
        for node, reply in replies(self._grid, waiting, awaited=list(waiting), end=end, stop=self._stop):
            member = silent.pop(node)
            try:
                report, arrays, own = open_reply(reply, site=member.site, round=order.round, task=order.task)
                for manifest, received in zip(checks, (arrays, own), strict=False):
                    manifest.check(received)
            except ReplyRefused as refused:
                self._drop(order, member, refused.code, refused.reason)
                continue
            except RunError as error:
                self._drop(order, member, "arrays", str(error))
                continue
            up = content_bytes(reply.content)
            self.traffic["up"] += up
            yield Answer(member, report, arrays, own, up, sizes[node])
        if self._stop.is_set():
            return
        for member in silent.values():
            self._drop(order, member, "deadline", f"no answer within {self._seconds:g} s")

    def _drop(self, order: Order, member: Member, code: str, reason: str) -> None:
        self._emit(
            "site_dropped", round=order.round, site=member.site, task=order.task, code=code, reason=reason
        )
