"""Messages under way between server and nodes: bounded waits, and replies that are opened with suspicion."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedprompt.contract import Order, Report
from fedprompt.errors import RunError
from fedprompt.manifest import Arrays
from strategies.wire import MESSAGE_TYPES, read_report

__all__ = ["ReplyRefused", "open_reply", "order_message", "push", "replies"]

_PAUSE = (0.001, 1.0)  # least and most seconds between two looks for replies
_SHARE_OF_WAIT = 0.02  # a pause is about this share of the time since the last reply
_UNAVAILABLE = {3: "its message expired", 4: "its reply expired", 5: "its node is not available"}


class ReplyRefused(Exception):
    """A reply that does not count: a code and a sentence for the events, and whose it claims to be."""

    def __init__(self, code: str, reason: str, site: str | None = None) -> None:
        super().__init__(reason)
        self.code = " ".join(code.split())[:40]
        self.reason = " ".join(reason.split())[:300]
        self.site = site


def order_message(node: int, order: Order, content: RecordDict, seconds: float) -> Message:
    """The message that carries `order` to a node; it and its reply are void after `seconds`."""
    return Message(content, node, MESSAGE_TYPES[order.task], ttl=seconds, group_id=str(order.round))


def push(grid: Grid, messages: Iterable[Message]) -> dict[str, int]:
    """Sends messages; returns by message id the node whose reply is to be waited for."""
    sent = list(messages)
    accepted = set(grid.push_messages(sent)) if sent else set()
    nodes = {message.metadata.message_id: message.metadata.dst_node_id for message in sent}
    return {message_id: node for message_id, node in nodes.items() if message_id in accepted}


def replies(
    grid: Grid, waiting: dict[str, int], *, awaited: Iterable[str], end: float, stop: threading.Event
) -> Iterator[tuple[int, Message]]:
    """Yields (node, reply) as replies arrive and takes them out of `waiting`.

    Args:
        grid: Flower's way to the nodes.
        waiting: What `push` returned; changed in place.
        awaited: It goes on only while one of these ids is in `waiting`; there is one look at least.
        end: `time.monotonic()` at which it ends in any case.
        stop: Ends it within a second when set.
    """
    needed = set(awaited)
    last = time.monotonic()
    while waiting:
        arrived = list(grid.pull_messages(set(waiting)))
        for reply in arrived:
            node = waiting.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:
                yield node, reply
        now = time.monotonic()
        if arrived:
            last = now
        if now >= end or stop.is_set() or needed.isdisjoint(waiting):
            return
        stop.wait(min(max(_SHARE_OF_WAIT * (now - last), _PAUSE[0]), _PAUSE[1], end - now))


def open_reply(message: Message, *, site: str | None, round: int, task: str) -> tuple[Report, Arrays, Arrays]:
    """Report, shared tensors and tensors of scope `site` of a reply, which is not trusted.

    Args:
        message: The reply.
        site: Id with which its node described itself; None while it is describing itself.
        round: Round of the order that it answers.
        task: Task of that order.

    Raises:
        ReplyRefused: An error of the app, a malformed reply, one for another order, one in the name of
            another site, or a failure that the site reports.
    """
    if message.has_error():
        number = message.error.code  # the reason may quote an exception: it stays unread
        if number in _UNAVAILABLE:
            raise ReplyRefused("unavailable", f"the site did not answer: {_UNAVAILABLE[number]}")
        raise ReplyRefused("failed", f"the site's app failed (Flower error {number}); its local log says why")
    try:
        report, shared, kept = read_report(message.content)
    except RunError as error:
        raise ReplyRefused("malformed", str(error)) from None
    if site is not None and report.site != site:
        raise ReplyRefused("identity", f"expected a report of {site}, got one in the name of {report.site}")
    if (report.task, report.round) != (task, round):
        raise ReplyRefused(
            "malformed",
            f"expected an answer to {task} in round {round}, got {report.task} in round {report.round}",
            report.site,
        )
    if report.failure is not None:
        raise ReplyRefused(report.failure.code, report.failure.reason, report.site)
    return report, shared, kept
