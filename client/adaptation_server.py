"""Where the adaptation service listens: a Unix socket for its user alone, or loopback with mutual TLS."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from client import adaptation_pb2
from client.adaptation_pb2_grpc import add_AdaptationServicer_to_server
from client.adaptation_service import AdaptationService
from fedprompt.errors import ConfigurationError
from fedprompt.locks import FileLock

__all__ = ["AdaptationServer", "Loopback", "stop_signals"]

_LONGEST = 107  # bytes of a Unix socket's path, with Linux
_SHORT_CALLS = 4  # that are served beside the streams
_LAST_REPLIES = 1.0  # seconds for what is on its way when everything has ended
_umask = threading.Lock()


@dataclass(frozen=True)
class Loopback:
    """A port of 127.0.0.1 with TLS; any user of the machine can reach it, so clients show a certificate too.

    Attributes:
        port: 0 takes a free one.
        certificate: PEM file with the service's certificate chain.
        key: PEM file with its private key.
        clients: PEM file with the authority that signed the certificates of clients.
    """

    port: int
    certificate: Path
    key: Path
    clients: Path


class AdaptationServer:
    """Serves from `start` to `stop`, with the health service beside it.

    Args:
        service: What is served.
        place: Path of the Unix socket, or a port with TLS.
    """

    def __init__(self, service: AdaptationService, place: Path | Loopback) -> None:
        self._service = service
        self._place = place
        self._lock: FileLock | None = None
        self._health = health.HealthServicer()
        limits = service.limits
        rooms = limits.streams + _SHORT_CALLS
        self._threads = ThreadPoolExecutor(rooms, thread_name_prefix="adaptation")
        self._server = grpc.server(
            self._threads,
            options=[
                ("grpc.max_receive_message_length", limits.message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=2 * rooms,
        )
        add_AdaptationServicer_to_server(service, self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    def start(self) -> str:
        """Listens; returns the address that clients take.

        Raises:
            ConfigurationError: The socket or port is in use or cannot be, or a TLS file is none.
        """
        address = (
            self._bind_port(self._place) if isinstance(self._place, Loopback) else self._bind(self._place)
        )
        self._server.start()
        name = adaptation_pb2.DESCRIPTOR.services_by_name["Adaptation"].full_name
        for served in ("", name):
            self._health.set(served, health_pb2.HealthCheckResponse.SERVING)
        return address

    def stop(self) -> bool:
        """Ends all calls, streams after the image they are at; whether all ended in time."""
        self._health.enter_graceful_shutdown()
        ended = self._service.stop()
        self._server.stop(_LAST_REPLIES if ended else 0).wait(_LAST_REPLIES + 1)
        self._threads.shutdown(wait=False)
        if self._lock is not None:
            self._lock.release()
        return ended

    def _bind(self, path: Path) -> str:
        address = f"unix:{quote(str(path))}"
        size = len(os.fsencode(path))
        if size > _LONGEST:
            raise ConfigurationError(
                f"{path}: expected a socket path of at most {_LONGEST} bytes, got one of {size}"
            )
        try:
            self._lock = FileLock(path.with_name(f".{path.name}.lock"))
        except BlockingIOError:
            raise ConfigurationError(f"{path}: another service listens there") from None
        except OSError as error:
            raise ConfigurationError(f"{path}: expected a socket in a folder ({error.strerror})") from None
        try:
            _check_free(path)
            with _private():
                self._server.add_insecure_port(address)
            path.chmod(0o600)
        except (OSError, RuntimeError) as error:
            self._lock.release()
            raise ConfigurationError(f"{path}: cannot listen there ({error})") from None
        except ConfigurationError:
            self._lock.release()
            raise
        return address

    def _bind_port(self, place: Loopback) -> str:
        files = []
        for path in (place.key, place.certificate, place.clients):
            try:
                files.append(path.read_bytes())
            except OSError as error:
                raise ConfigurationError(f"{path}: expected a PEM file ({error.strerror})") from None
        key, certificate, clients = files
        try:
            credentials = grpc.ssl_server_credentials(
                [(key, certificate)], root_certificates=clients, require_client_auth=True
            )
            port = self._server.add_secure_port(f"127.0.0.1:{place.port}", credentials)
        except (RuntimeError, ValueError):
            raise ConfigurationError(
                f"127.0.0.1:{place.port}: cannot listen there; the port is in use, or certificate and key do "
                "not fit"
            ) from None
        return f"127.0.0.1:{port}"


def stop_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set, unless the process ignores them; for the main thread alone."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: stopping.set())
    return stopping


def _check_free(path: Path) -> None:
    """Removes a socket that nobody listens at; refuses everything else that is there."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise ConfigurationError(f"{path}: expected no file or an old socket, got another file")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            raise ConfigurationError(f"{path}: another service may listen there ({error})") from None
    raise ConfigurationError(f"{path}: another service listens there")


@contextlib.contextmanager
def _private() -> Iterator[None]:
    """What is made meanwhile is for its user alone: a socket has its mode before it can be changed."""
    with _umask:
        before = os.umask(0o077)
        try:
            yield
        finally:
            os.umask(before)
