"""A client of the adaptation service; it needs neither torch nor the network."""

from __future__ import annotations

import contextlib
import io
import queue
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import grpc
import numpy as np
from PIL import Image

from client import adaptation_pb2 as messages
from client.adaptation_pb2_grpc import AdaptationStub
from fedprompt.errors import RunError

__all__ = ["AdaptationClient", "ClientStream", "mask_of"]


class AdaptationClient:
    """Calls the service of a site.

    Args:
        place: Path of its Unix socket, or `127.0.0.1:port` with credentials.
        credentials: Of TLS, with a certificate of this client.
        timeout: Seconds for a short call, and for connecting.
    """

    def __init__(
        self,
        place: Path | str,
        credentials: grpc.ChannelCredentials | None = None,
        *,
        timeout: float = 10.0,
    ) -> None:
        self._timeout = timeout
        options = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
        if credentials is None:
            self._channel = grpc.insecure_channel(f"unix:{quote(str(place))}", options)
        else:
            self._channel = grpc.secure_channel(str(place), credentials, options)
        self._stub = AdaptationStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def describe(self) -> messages.DescribeReply:
        """The network and the methods of the service.

        Raises:
            RunError: The call failed; its `__cause__` has the status.
        """
        with _sentences():
            reply: messages.DescribeReply = self._stub.Describe(
                messages.DescribeRequest(), timeout=self._timeout
            )
            return reply

    def forget(self, stream: str) -> bool:
        """Deletes all that is remembered of a stream; whether there was anything.

        Raises:
            RunError: As `describe`.
        """
        with _sentences():
            reply = self._stub.Forget(messages.ForgetRequest(stream=stream), timeout=self._timeout)
            return bool(reply.forgotten)

    @contextlib.contextmanager
    def stream(self, name: str, method: str = "", *, timeout: float = 3600.0) -> Iterator[ClientStream]:
        """Opens a stream.

        Args:
            name: 1 to 64 lower-case letters, digits and hyphens.
            method: The default one of the service where it is empty.
            timeout: Seconds for all its images.

        Raises:
            RunError: As `describe`.
        """
        opened = ClientStream(self._stub, name, method, timeout)
        try:
            yield opened
        except BaseException:
            opened.cancel()
            raise
        opened.close()


class ClientStream:
    """One open stream: one image after the other.

    Attributes:
        images: Of the stream that the service has answered, also in earlier calls.
    """

    def __init__(self, stub: AdaptationStub, name: str, method: str, timeout: float) -> None:
        self._requests: queue.SimpleQueue[messages.AdaptRequest | None] = queue.SimpleQueue()
        self._call = stub.Adapt(iter(self._requests.get, None), timeout=timeout)
        opening = messages.Opening(stream=name, method=method)
        self.images: int = self._ask(messages.AdaptRequest(opening=opening)).opened.images

    def adapt(self, content: bytes, suffix: str = "", *, number: int | None = None) -> messages.Adapted:
        """The reply to one image.

        Args:
            content: Bytes of its file.
            suffix: Of its name, as `.nii.gz`.
            number: Its place in the stream; the next one without it. The last image may be asked again.

        Raises:
            RunError: The call failed; its `__cause__` has the status.
        """
        image = messages.Image(content=content, suffix=suffix, number=number)
        adapted = self._ask(messages.AdaptRequest(image=image)).adapted
        self.images = adapted.number + 1
        return adapted

    def close(self) -> None:
        """Ends the call and waits until the service has let go of the stream."""
        self._requests.put(None)
        with contextlib.suppress(grpc.RpcError):
            for _ in self._call:
                pass

    def cancel(self) -> None:
        """Ends the call at once; the service lets go of the stream after the image it is at."""
        self._requests.put(None)
        self._call.cancel()

    def _ask(self, request: messages.AdaptRequest) -> messages.AdaptReply:
        self._requests.put(request)
        with _sentences():
            reply: messages.AdaptReply = next(self._call)
            return reply


def mask_of(reply: messages.Adapted) -> np.ndarray | None:
    """Class numbers (H, W) uint8; None where the image could not be used."""
    return np.asarray(Image.open(io.BytesIO(reply.mask), formats=["PNG"])) if reply.mask else None


@contextlib.contextmanager
def _sentences() -> Iterator[None]:
    try:
        yield
    except StopIteration:
        raise RunError("adaptation service: the call has ended") from None
    except grpc.RpcError as error:
        raise RunError(f"adaptation service: {error.code().name}: {error.details()}") from error
