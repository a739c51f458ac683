"""An adaptation service in this process on a real socket, and images to send to it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from client import adaptation_pb2 as messages
from client.adaptation_client import AdaptationClient
from client.adaptation_server import AdaptationServer
from client.adaptation_service import AdaptationService, Limits
from fedprompt.adaptation.network import Network
from fedprompt.errors import RunError

__all__ = ["image_files", "opening", "png", "refused", "same", "served"]


@contextmanager
def served(
    network: Network, place: Path, *, limits: Limits | None = None, **options: Any
) -> Iterator[AdaptationClient]:
    """A client of a service that listens at `place`/adapt.sock."""
    server = AdaptationServer(AdaptationService(network, limits=limits, **options), place / "adapt.sock")
    server.start()
    try:
        with AdaptationClient(place / "adapt.sock") as client:
            yield client
    finally:
        assert server.stop()


def image_files(count: int, side: int = 40) -> list[bytes]:
    """PNG files of smooth random images; no two are alike."""
    rng = np.random.default_rng(5)
    files = []
    for number in range(count):
        coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((side + number, side), Image.Resampling.BICUBIC)
        files.append(png(np.asarray(picture)))
    return files


def png(array: np.ndarray) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def same(reply: messages.Adapted) -> messages.Adapted:
    """A reply without what no two runs have in common."""
    copy = messages.Adapted()
    copy.CopyFrom(reply)
    copy.seconds = 0
    return copy


def opening(stream: str, method: str = "") -> messages.AdaptRequest:
    """The first request of a call."""
    return messages.AdaptRequest(opening=messages.Opening(stream=stream, method=method))


@contextmanager
def refused(code: grpc.StatusCode, sentence: str) -> Iterator[None]:
    """Expects a call to end with a status whose sentence contains the given words."""
    with pytest.raises(RunError, match=sentence) as caught:
        yield
    status = caught.value.__cause__
    assert isinstance(status, grpc.RpcError)
    assert status.code() is code
    for private in ("/", "pytest", "Traceback", "ward-3"):
        assert private not in status.details()
