"""The in-process engine: a Flower `Grid` that calls the ClientApp directly, in threads of this process.

All sites share one copy of everything that a process holds once, such as the frozen backbone. Messages are
handed over as they are: what is copied is only what encoding and decoding copy anyway.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["InProcessGrid", "run"]

T = TypeVar("T")

_RUN_ID = 1
_SERVER_NODE = 1  # what Flower gives the server; nodes count from 2
_APP_FAILED = 2  # Flower's code for an exception in the ClientApp
_log = logging.getLogger(__name__)


def run(
    main: Callable[[Grid, threading.Event], T],
    client_app: ClientApp,
    sites: int,
    *,
    workers: int | None = None,
) -> T:
    """Runs `main(grid, stop)` over simulated sites in this process and returns what it returns.

    Args:
        main: The server's side; `stop` ends it early when set.
        client_app: The sites' side; called from several threads, for one site at a time.
        sites: Number of nodes. Node i has `partition-id` i in its node_config, as in Flower.
        workers: Sites that work at the same time; by default as many as there are processor cores.
    """
    with InProcessGrid(client_app, sites, workers=workers) as grid:
        return main(grid, threading.Event())


class InProcessGrid(Grid):
    """Nodes are entries of a dictionary, messages are handed to a fixed number of threads.

    A node works on one message at a time, in the order in which they were pushed, and keeps its `Context`. A
    message that is past its time to live is not started, and a reply past it is dropped. Work pauses while
    `workers * 4` replies wait to be pulled, so that memory does not grow with the number of sites. An
    exception of the app becomes an error reply, as in Flower.
    """

    def __init__(self, client_app: ClientApp, sites: int, *, workers: int | None = None) -> None:
        # a Message takes its sender from this global of the process; here it is the server and all nodes
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = _RUN_ID, _SERVER_NODE, 1
        self._app = client_app
        self._run = Run.create_empty(_RUN_ID)
        self._contexts = {
            _SERVER_NODE + 1 + i: _context(_SERVER_NODE + 1 + i, i, sites) for i in range(sites)
        }
        self._changed = threading.Condition()
        self._queues: dict[int, deque[Message]] = {node: deque() for node in self._contexts}
        self._ready: deque[int] = deque()  # nodes with messages that no thread works for
        self._busy: set[int] = set()
        self._replies: dict[str, Message] = {}
        self._closed = False
        count = workers or min(sites, _cores())
        self._most_replies = 4 * count
        self._threads = [
            threading.Thread(target=self._work, name=f"site-worker-{i}", daemon=True) for i in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> InProcessGrid:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Takes no more work. Threads that are inside the app are left to end with the process."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=1.0)

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        with self._changed:
            self._drop_expired()
            for message in messages:
                message_id = str(uuid4())
                message.metadata.__dict__["_message_id"] = message_id  # as Flower's own grids do
                node = message.metadata.dst_node_id
                self._queues[node].append(message)
                if node not in self._busy and len(self._queues[node]) == 1:
                    self._ready.append(node)
                ids.append(message_id)
            self._changed.notify_all()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        with self._changed:
            self._drop_expired()
            if not self._replies:
                return []
            asked = message_ids if isinstance(message_ids, set) else set(message_ids)
            found = [message_id for message_id in self._replies if message_id in asked]
            self._changed.notify_all()
            return [self._replies.pop(message_id) for message_id in found]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        waiting = set(self.push_messages(messages))
        end = time.monotonic() + (float("inf") if timeout is None else timeout)
        received: list[Message] = []
        while waiting and time.monotonic() < end:
            arrived = list(self.pull_messages(waiting))
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
            received += arrived
            if not arrived:
                time.sleep(0.002)
        return received

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._closed and not (self._ready and len(self._replies) < self._most_replies):
                    self._changed.wait(timeout=1.0)
                    self._drop_expired()
                if self._closed:
                    return
                node = self._ready.popleft()
                message = self._queues[node].popleft()
                self._busy.add(node)
            reply = None if _expired(message) else self._call(message, self._contexts[node])
            with self._changed:
                self._busy.discard(node)
                if self._queues[node]:
                    self._ready.append(node)
                if reply is not None and not self._closed:
                    self._replies[message.metadata.message_id] = reply
                self._changed.notify_all()
            del message, reply  # an idle thread holds no tensors

    def _call(self, message: Message, context: Context) -> Message:
        try:
            return self._app(message, context)
        except Exception as error:  # noqa: BLE001 - a failing app must not end the study
            _log.exception("the app of node %d failed", context.node_id)
            return Message(Error(_APP_FAILED, f"{type(error)}:<'{error}'>"), reply_to=message)

    def _drop_expired(self) -> None:
        for message_id in [i for i, reply in self._replies.items() if _expired(reply)]:
            del self._replies[message_id]


def _context(node: int, partition: int, partitions: int) -> Context:
    return Context(
        run_id=_RUN_ID,
        node_id=node,
        node_config={"partition-id": partition, "num-partitions": partitions},
        state=RecordDict(),
        run_config={},
    )


def _cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _expired(message: Message) -> bool:
    return message.metadata.created_at + message.metadata.ttl < time.time()
