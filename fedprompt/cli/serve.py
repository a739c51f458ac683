"""`fedprompt adapt serve`: test-time adaptation as a service of the site, until it is told to stop."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from click.core import ParameterSource

from fedprompt.errors import ConfigurationError

if TYPE_CHECKING:
    from client.adaptation_server import Loopback
    from fedprompt.adaptation.network import Network
    from fedprompt.adaptation.statistics import SourceStatistics

__all__ = ["serve"]

_KEY = Path(".config/fedprompt/site.key")  # in the home folder


def serve(
    context: typer.Context,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompt bundle of a study, or its run directory.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="TOML file that describes a network of your own.")
    ] = None,
    backbone: Annotated[
        Path | None, typer.Option(help="Folder of the bundle's backbone, where it is elsewhere now.")
    ] = None,
    socket: Annotated[Path | None, typer.Option(help="Unix socket, for this user alone.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of 127.0.0.1 with TLS; 0 takes a free one.")
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="Certificate of the service (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    tls_clients: Annotated[
        Path | None, typer.Option(help="Authority that signs the certificates of clients (PEM).")
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="Folder that keeps what is remembered of every stream, encrypted.")
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            envvar="FEDPROMPT_SITE_KEY",
            help=f"Key file of the site, made where it is missing; default: ~/{_KEY}.",
        ),
    ] = None,
    statistics: Annotated[
        Path | None, typer.Option(help="Source statistics of `collect`; by default those of the bundle.")
    ] = None,
    method: Annotated[str, typer.Option(help="Method of streams that name none.")] = "low-frequency",
    streams: Annotated[int, typer.Option(min=1, max=64, help="Streams at a time.")] = 4,
    max_message: Annotated[int, typer.Option(min=1, max=1024, help="MiB of the largest image file.")] = 32,
) -> None:
    """Serve adaptation over gRPC: streams of images in, masks out."""
    if (prompts is None) == (model is None):
        raise ConfigurationError("expected --prompts BUNDLE or --model FILE, got neither or both")
    if model is not None and backbone is not None:
        raise ConfigurationError("--backbone: expected it with --prompts alone, as a model file has its own")
    if state is None and context.get_parameter_source("key") is ParameterSource.COMMANDLINE:
        raise ConfigurationError("--key: expected --state FOLDER beside it, got none")
    loopback = _loopback(socket, port, (tls_certificate, tls_key, tls_clients))

    from client.adaptation_server import AdaptationServer, stop_signals
    from client.adaptation_service import AdaptationService, Limits
    from fedprompt.adaptation.state import key_of_states

    network, known = _network(prompts, model, backbone, statistics)
    site_key = None if state is None else key_of_states(key or Path.home() / _KEY, state)
    service = AdaptationService(
        network,
        statistics=known,
        method=method,
        folder=state,
        key=site_key,
        limits=Limits(streams=streams, message_bytes=max_message << 20),
    )
    place = loopback or socket
    assert place is not None  # noqa: S101 - for the type checker
    server = AdaptationServer(service, place)
    stopping = stop_signals()
    print(f"adaptation service: {server.start()}", file=sys.stderr, flush=True)
    stopping.wait()
    if server.stop():
        print("adaptation service: stopped", file=sys.stderr)
        return
    print("adaptation service: stopped before an image was ready; its stream goes on at it", file=sys.stderr)
    sys.stderr.flush()
    os._exit(0)  # a thread that computes would keep the process


def _network(
    prompts: Path | None, model: Path | None, backbone: Path | None, statistics: Path | None
) -> tuple[Network, SourceStatistics | None]:
    """The network, and source statistics where there are some."""
    from fedprompt.adaptation.statistics import SourceStatistics

    known: SourceStatistics | None = None
    if prompts is not None:
        from fedprompt.adaptation.bundle import load_bundle

        network, known = load_bundle(prompts, backbone=backbone)
    else:
        from fedprompt.adaptation.model_file import load_network

        assert model is not None  # noqa: S101 - for the type checker
        network = load_network(model)
    return network, known if statistics is None else SourceStatistics.load(statistics, network.fingerprint)


def _loopback(
    socket: Path | None, port: int | None, files: tuple[Path | None, Path | None, Path | None]
) -> Loopback | None:
    """Where to listen with TLS; None for the socket."""
    if (socket is None) == (port is None):
        raise ConfigurationError("expected --socket PATH or --port PORT, got neither or both")
    if port is None:
        if any(files):
            raise ConfigurationError("--tls-certificate, --tls-key and --tls-clients go with --port")
        return None
    certificate, key, clients = files
    if certificate is None or key is None or clients is None:
        raise ConfigurationError("--port needs --tls-certificate, --tls-key and --tls-clients")

    from client.adaptation_server import Loopback

    return Loopback(port, certificate, key, clients)
