"""The adaptation service of a site: what its calls do, and when they end.

Callers see public sentences alone; what names files lies in the site's log. Every wait has an end: for the
next image, for a reader of the replies, for the whole call, and for the streams when the service stops.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import grpc

from client import adaptation_pb2 as messages
from client.adaptation_pb2_grpc import AdaptationServicer
from client.adaptation_stream import AdaptationStream, UnusableState
from fedprompt.adaptation.adapter import Adapter
from fedprompt.adaptation.methods import METHODS
from fedprompt.adaptation.network import Network
from fedprompt.adaptation.state import StreamState, StreamTaken, check_stream_name
from fedprompt.adaptation.statistics import SourceStatistics
from fedprompt.encryption import SiteKey
from fedprompt.errors import ConfigurationError, FedpromptError

__all__ = ["AdaptationService", "Limits"]

_log = logging.getLogger("fedprompt.site")


@dataclass(frozen=True)
class Limits:
    """What callers may take.

    Attributes:
        streams: Open at a time.
        message_bytes: Of one message, so of one image file.
        pixels: Of one image.
        idle_seconds: Until a client that sends nothing, or reads nothing, loses its call.
        call_seconds: Of one call, whatever deadline it has.
        stop_seconds: That a stopping service waits for images under way.
    """

    streams: int = 4
    message_bytes: int = 32 << 20
    pixels: int = 1 << 25
    idle_seconds: float = 60.0
    call_seconds: float = 3600.0
    stop_seconds: float = 10.0


class _Ended(Exception):
    """The call ends with a status."""

    def __init__(self, code: grpc.StatusCode, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence


class AdaptationService(AdaptationServicer):
    """Adapts streams of images on one network; every stream has an adapter of its own.

    The network's tensors may be those of a training session in the same process: adaptation reads them.

    Args:
        network: Frozen.
        statistics: Of its source features, where it has no BatchNorm.
        method: Of streams that name none.
        folder: Where streams are kept; None forgets them at the end of a call.
        key: The site's key; with a folder.
        limits: What callers may take.

    Raises:
        ConfigurationError: The method is unknown or does not fit the network, or the folder has no key.
    """

    def __init__(
        self,
        network: Network,
        *,
        statistics: SourceStatistics | None = None,
        method: str = "low-frequency",
        folder: Path | None = None,
        key: SiteKey | None = None,
        limits: Limits | None = None,
    ) -> None:
        if (folder is None) != (key is None):
            raise ConfigurationError("adaptation service: expected a state folder and a key, or neither")
        self._network = network
        self._statistics = statistics
        self._method = method
        self._folder = folder
        self._key = key
        self.limits = limits or Limits()
        self._lock = threading.Condition()
        self._inboxes: set[_Inbox] = set()
        self._taken: set[str] = set()
        self._stopping = False
        self._adapter(method)

    def Describe(
        self,
        request: messages.DescribeRequest,  # noqa: ARG002 - grpc's signature
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> messages.DescribeReply:
        """The network and the methods."""
        return messages.DescribeReply(
            fingerprint=self._network.fingerprint,
            classes=self._network.classes,
            methods=list(METHODS),
            default_method=self._method,
            max_message_bytes=self.limits.message_bytes,
            max_pixels=self.limits.pixels,
        )

    def Forget(self, request: messages.ForgetRequest, context: grpc.ServicerContext) -> messages.ForgetReply:
        """Deletes what is remembered of a stream."""
        with _statuses(context), self._held(request.stream) as state:
            return messages.ForgetReply(forgotten=state is not None and state.delete())

    def Adapt(
        self, request_iterator: Iterator[messages.AdaptRequest], context: grpc.ServicerContext
    ) -> Iterator[messages.AdaptReply]:
        """One stream of images."""
        with _statuses(context), self._slot(request_iterator) as inbox:
            first = inbox.take()
            if first is None:
                return
            if first.WhichOneof("kind") != "opening":
                raise _Ended(grpc.StatusCode.INVALID_ARGUMENT, "the first request has to open a stream")
            opening = first.opening
            with self._held(opening.stream) as state:
                stream = self._stream(opening.method, state)
                opened = messages.Opened(images=stream.images, method=opening.method or self._method)
                with self._read_in_time(context):
                    yield messages.AdaptReply(opened=opened)
                while (request := inbox.take()) is not None:
                    if request.WhichOneof("kind") != "image":
                        raise _Ended(
                            grpc.StatusCode.INVALID_ARGUMENT, "expected an image, got another request"
                        )
                    reply = messages.AdaptReply(adapted=stream.answer(request.image))
                    with self._read_in_time(context):
                        yield reply

    def stop(self) -> bool:
        """Ends the streams, each after the image it is at; whether all ended in time."""
        with self._lock:
            self._stopping = True
            for inbox in self._inboxes:
                inbox.stop()
            return self._lock.wait_for(lambda: not self._inboxes, timeout=self.limits.stop_seconds)

    def _adapter(self, method: str) -> Adapter:
        if method not in METHODS:
            sentence = f"method: expected one of {', '.join(METHODS)}"
            raise ConfigurationError(f"{sentence}, got {method!r}", public=sentence)
        try:
            return Adapter(self._network, method, statistics=self._statistics)
        except ConfigurationError as error:
            sentence = "the method cannot work on the network of the service"
            raise ConfigurationError(str(error), public=sentence) from None

    def _stream(self, method: str, state: StreamState | None) -> AdaptationStream:
        return AdaptationStream(self._adapter(method or self._method), state, pixels=self.limits.pixels)

    @contextlib.contextmanager
    def _slot(self, requests: Iterator[messages.AdaptRequest]) -> Iterator[_Inbox]:
        """The requests of a call, while there is room for it."""
        with self._lock:
            if self._stopping:
                raise _Ended(grpc.StatusCode.UNAVAILABLE, "the service is stopping")
            if len(self._inboxes) >= self.limits.streams:
                sentence = f"{self.limits.streams} streams are open, which is the most"
                raise _Ended(grpc.StatusCode.RESOURCE_EXHAUSTED, sentence)
            inbox = _Inbox(requests, self.limits)
            self._inboxes.add(inbox)
        try:
            yield inbox
        finally:
            inbox.close()
            with self._lock:
                self._inboxes.discard(inbox)
                self._lock.notify_all()

    @contextlib.contextmanager
    def _held(self, name: str) -> Iterator[StreamState | None]:
        """A stream, held against other calls and other processes; its state where there is a folder."""
        check_stream_name(name)
        with self._lock:
            if name in self._taken:
                raise StreamTaken(f"stream {name} is in use by another call")
            self._taken.add(name)
        try:
            if self._folder is None or self._key is None:
                yield None
            else:
                with StreamState(self._folder, self._key, name) as state:
                    yield state
        finally:
            with self._lock:
                self._taken.discard(name)

    @contextlib.contextmanager
    def _read_in_time(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Cancels a call whose client does not take the reply."""
        timer = threading.Timer(self.limits.idle_seconds, context.cancel)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


class _Inbox:
    """The requests of one call, read by a thread of its own, so that waiting for the next one can end.

    A request is read when it is asked for: one message per call is in memory.
    """

    def __init__(self, requests: Iterator[messages.AdaptRequest], limits: Limits) -> None:
        self._idle = limits.idle_seconds
        self._end = time.monotonic() + limits.call_seconds
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[messages.AdaptRequest | _Ended | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(requests,), name="adaptation-inbox", daemon=True).start()

    def take(self) -> messages.AdaptRequest | None:
        """The next request; None after the last one.

        Raises:
            _Ended: It does not come in time, or the service stops.
        """
        self._asked.put(True)
        left = self._end - time.monotonic()
        try:
            found = self._found.get(timeout=max(min(self._idle, left), 0))
        except queue.Empty:
            late = (
                "the call lasts longer than the service allows" if left < self._idle else "no request in time"
            )
            raise _Ended(grpc.StatusCode.DEADLINE_EXCEEDED, late) from None
        if isinstance(found, _Ended):
            raise found
        return found

    def stop(self) -> None:
        """Ends the call at the next request."""
        self._found.put(_Ended(grpc.StatusCode.UNAVAILABLE, "the service is stopping"))

    def close(self) -> None:
        """Nothing more is read."""
        self._asked.put(False)

    def _read(self, requests: Iterator[messages.AdaptRequest]) -> None:
        while self._asked.get():
            try:
                self._found.put(next(requests))
            except StopIteration:
                self._found.put(None)
            except Exception:  # noqa: BLE001 - grpc raises an exception of no class when the call is over
                self._found.put(None)


@contextlib.contextmanager
def _statuses(context: grpc.ServicerContext) -> Iterator[None]:
    """Ends a call that fails with a status and a public sentence."""
    try:
        yield
    except _Ended as ended:
        _abort(context, ended.code, ended.sentence)
    except FedpromptError as error:
        _log.warning("adaptation: %s", error)
        _abort(context, _code(error), error.public)
    except Exception:  # noqa: BLE001 - grpc would send its text to the caller
        _log.exception("adaptation failed")
        _abort(context, grpc.StatusCode.INTERNAL, FedpromptError.default_public)


def _code(error: FedpromptError) -> grpc.StatusCode:
    if isinstance(error, StreamTaken):
        return grpc.StatusCode.ABORTED
    if isinstance(error, UnusableState):
        return grpc.StatusCode.FAILED_PRECONDITION
    if isinstance(error, ConfigurationError):
        return grpc.StatusCode.INVALID_ARGUMENT
    return grpc.StatusCode.INTERNAL


def _abort(context: grpc.ServicerContext, code: grpc.StatusCode, sentence: str) -> NoReturn:
    abort: Callable[[grpc.StatusCode, str], NoReturn] = context.abort
    abort(code, sentence)
