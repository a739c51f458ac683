"""Where the service listens, who may come in, how it stops, and what a killed one leaves."""

from __future__ import annotations

import datetime
import importlib
import importlib.util
import ipaddress
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image
from safetensors.torch import save_file
from serving import image_files, refused, same, served
from tiny_model_file import write_model_file

from client import adaptation_service
from client.adaptation_client import AdaptationClient
from client.adaptation_server import AdaptationServer, Loopback
from client.adaptation_service import AdaptationService, Limits
from fedprompt.adaptation.model_file import load_network
from fedprompt.adaptation.network import Network
from fedprompt.errors import ConfigurationError, RunError

ROOT = Path(__file__).parents[2]
CODE = grpc.StatusCode
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
NAME = "fedprompt.adaptation.v1.Adaptation"


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return load_network(write_model_file(tmp_path_factory.mktemp("model")))


def health(place: Path) -> health_pb2_grpc.HealthStub:
    return health_pb2_grpc.HealthStub(grpc.insecure_channel(f"unix:{place}"))


def test_health_tells_when_it_serves_and_when_it_stops(tmp_path: Path, network: Network) -> None:
    server = AdaptationServer(AdaptationService(network), tmp_path / "a.sock")
    server.start()
    stub = health(tmp_path / "a.sock")
    for name in ("", NAME):
        assert stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5).status == SERVING
    watched = stub.Watch(health_pb2.HealthCheckRequest(service=NAME), timeout=20)
    assert next(watched).status == SERVING
    start = time.monotonic()
    assert server.stop()
    assert time.monotonic() - start < 5  # the watching client does not hold it up
    assert next(watched).status == NOT_SERVING


def test_the_socket_is_for_its_user_alone_and_goes_with_the_service(tmp_path: Path, network: Network) -> None:
    folder = tmp_path / "a b%20c#d?é"
    folder.mkdir()
    before = os.umask(0)
    try:
        with served(network, folder) as client:
            mode = (folder / "adapt.sock").stat().st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600
            assert client.describe().fingerprint == network.fingerprint
    finally:
        assert os.umask(before) == 0
    assert list(folder.iterdir()) == []


def test_a_stale_socket_is_replaced_and_a_living_one_is_not(tmp_path: Path, network: Network) -> None:
    path = tmp_path / "adapt.sock"
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(path))
        foreign.listen()
        with pytest.raises(ConfigurationError, match=r"adapt\.sock: another service listens there"):
            AdaptationServer(AdaptationService(network), path).start()
    assert path.exists()  # nobody listens there any more
    with served(network, tmp_path) as client:
        with pytest.raises(ConfigurationError, match=r"adapt\.sock: another service listens there"):
            AdaptationServer(AdaptationService(network), path).start()
        assert client.describe().fingerprint == network.fingerprint
    path.write_text("precious")
    with pytest.raises(ConfigurationError, match=r"adapt\.sock: expected no file or an old socket"):
        AdaptationServer(AdaptationService(network), path).start()
    assert path.read_text() == "precious"


def test_places_that_cannot_be_are_one_sentence(tmp_path: Path, network: Network) -> None:
    service = AdaptationService(network)
    long = Path("/", "é" * 60, "a.sock")
    with pytest.raises(
        ConfigurationError, match=r"expected a socket path of at most 107 bytes, got one of 128"
    ):
        AdaptationServer(service, long).start()
    with pytest.raises(ConfigurationError, match=r"expected a socket in a folder \(No such file"):
        AdaptationServer(service, tmp_path / "none" / "a.sock").start()


def test_a_stopping_service_finishes_the_image_at_work(
    tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, at_work = image_files(2), _slow(monkeypatch, 0.7)
    server = AdaptationServer(AdaptationService(network), tmp_path / "a.sock")
    server.start()
    with AdaptationClient(tmp_path / "a.sock") as client, client.stream("idle") as idle:
        stopped: list[bool] = []
        stopper = threading.Thread(target=lambda: (at_work.wait(10), stopped.append(server.stop())))
        stopper.start()
        with refused(CODE.UNAVAILABLE, "stopping"), client.stream("busy") as busy:
            assert busy.adapt(files[0]).mask
            busy.adapt(files[1])
        with refused(CODE.UNAVAILABLE, "stopping"):
            idle.adapt(files[0])
        stopper.join(10)
        assert stopped == [True]


def test_a_stop_has_an_end_whatever_is_at_work(
    tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work = _slow(monkeypatch, 3.0)
    service = AdaptationService(network, limits=Limits(stop_seconds=0.3))
    server = AdaptationServer(service, tmp_path / "a.sock")
    server.start()
    with AdaptationClient(tmp_path / "a.sock") as client:
        ended: list[str] = []

        def call() -> None:
            try:
                with client.stream("busy") as busy:
                    busy.adapt(image_files(1)[0])
            except RunError as error:
                ended.append(str(error))

        caller = threading.Thread(target=call)
        caller.start()
        assert at_work.wait(10)
        start = time.monotonic()
        assert not server.stop()
        assert time.monotonic() - start < 2.8
        caller.join(10)
    assert len(ended) == 1


def _slow(monkeypatch: pytest.MonkeyPatch, seconds: float) -> threading.Event:
    """Every image takes so long; the event tells that the first is at work."""
    at_work, answer = threading.Event(), adaptation_service.AdaptationStream.answer

    def slow(self, image):
        at_work.set()
        time.sleep(seconds)
        return answer(self, image)

    monkeypatch.setattr(adaptation_service.AdaptationStream, "answer", slow)
    return at_work


def test_loopback_takes_only_clients_with_a_certificate(tmp_path: Path, network: Network) -> None:
    authority = _certificate(tmp_path, "authority")
    _certificate(tmp_path, "service", authority)
    _certificate(tmp_path, "client", authority)
    _certificate(tmp_path, "stranger")
    pem = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    place = Loopback(0, tmp_path / "service.pem", tmp_path / "service.key", tmp_path / "authority.pem")
    server = AdaptationServer(AdaptationService(network), place)
    address = server.start()
    try:
        assert address.startswith("127.0.0.1:")
        root = pem["authority.pem"]
        known = grpc.ssl_channel_credentials(root, pem["client.key"], pem["client.pem"])
        with AdaptationClient(address, known) as client, client.stream("ward-3") as stream:
            assert stream.adapt(image_files(1)[0]).mask
        for credentials in (
            grpc.ssl_channel_credentials(root),
            grpc.ssl_channel_credentials(root, pem["stranger.key"], pem["stranger.pem"]),
        ):
            with (
                AdaptationClient(address, credentials, timeout=2) as client,
                pytest.raises(RunError, match=r"UNAVAILABLE|DEADLINE_EXCEEDED"),
            ):
                client.describe()
        taken = Loopback(int(address.split(":")[1]), place.certificate, place.key, place.clients)
        with pytest.raises(ConfigurationError, match=r"127\.0\.0\.1:\d+: cannot listen there"):
            AdaptationServer(AdaptationService(network), taken).start()
    finally:
        assert server.stop()
    missing = Loopback(0, tmp_path / "none.pem", place.key, place.clients)
    with pytest.raises(ConfigurationError, match=r"none\.pem: expected a PEM file"):
        AdaptationServer(AdaptationService(network), missing).start()
    wrong = Loopback(0, place.key, place.key, place.clients)
    with pytest.raises(ConfigurationError, match="certificate and key do not fit"):
        AdaptationServer(AdaptationService(network), wrong).start()


def _certificate(folder: Path, name: str, authority: tuple | None = None) -> tuple:
    """Writes name.pem and name.key, signed by the authority or by itself; returns key and certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer, issuer = (key, subject) if authority is None else (authority[0], authority[1].subject)
    now = datetime.datetime.now(datetime.UTC)
    usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .sign(signer, hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / f"{name}.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))
    return key, certificate


_PLAIN = """
from torch import nn

class Plain(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=2))
"""
_MODEL = """
network = {class = "plain:Plain", weights = "weights.safetensors"}
input = {size = 32, mean = [0.5, 0.5, 0.5], std = [0.25, 0.25, 0.25]}
output = {classes = ["background", "polyp"]}
"""


def _write_plain(folder: Path) -> Path:
    """A model file whose network needs torch alone, so that a process is up soon."""
    folder.mkdir()
    (folder / "plain.py").write_text(_PLAIN)
    (folder / "model.toml").write_text(_MODEL)
    sys.path.insert(0, str(folder))
    try:
        plain = importlib.import_module("plain").Plain()
    finally:
        sys.path.remove(str(folder))
    save_file(plain.state_dict(), folder / "weights.safetensors")
    return folder / "model.toml"


@contextmanager
def _process(folder: Path) -> Iterator[subprocess.Popen]:
    """`fedprompt adapt serve` with states, once it listens."""
    words = ["adapt", "serve", "--model", folder / "model" / "model.toml", "--socket", folder / "a.sock"]
    words += ["--state", folder / "states", "--key", folder / "site.key"]
    command = [str(Path(sys.executable).with_name("fedprompt")), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": f"{folder / 'model'}:{os.environ.get('PYTHONPATH', '')}"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("adaptation service: unix:"), line + process.stderr.read()
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_a_killed_service_goes_on_as_if_nothing_had_happened_and_a_stopped_one_ends_well(
    tmp_path: Path,
) -> None:
    files = image_files(100)
    network = load_network(_write_plain(tmp_path / "model"))
    with served(network, tmp_path) as client, client.stream("ward-3") as stream:
        expected = [same(stream.adapt(content)) for content in files]
    found = []
    with _process(tmp_path) as process, AdaptationClient(tmp_path / "a.sock") as client:
        with pytest.raises(RunError), client.stream("ward-3") as stream:  # noqa: PT012
            for number, content in enumerate(files):
                if number == 5:
                    threading.Timer(0.02, process.send_signal, [signal.SIGKILL]).start()
                found.append(same(stream.adapt(content)))
        assert process.wait(10) == -signal.SIGKILL
    assert 5 <= len(found) < 95
    assert (tmp_path / "a.sock").exists()
    with _process(tmp_path) as process, AdaptationClient(tmp_path / "a.sock") as client:
        stub = health(tmp_path / "a.sock")
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=5).status == SERVING
        with client.stream("ward-3") as stream:
            assert stream.images - len(found) in (0, 1)
            for number in range(len(found), len(found) + 5):
                found.append(same(stream.adapt(files[number], number=number)))
        assert found == expected[: len(found)]
        with refused(CODE.UNAVAILABLE, "stopping"), client.stream("ward-4") as stream:
            start = time.monotonic()
            process.send_signal(signal.SIGTERM)
            while True:
                stream.adapt(files[0])
        assert process.wait(10) == 0
        assert time.monotonic() - start < 10
        assert process.stderr is not None
        assert process.stderr.read() == "adaptation service: stopped\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "site.key", "states"]


def test_the_example_streams_a_folder_and_goes_on(
    tmp_path: Path, network: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    example = _example()
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    for number, content in enumerate(image_files(3)):
        (images / f"{number}.png").write_bytes(content)
    (images / "1b.png").write_text("no image")
    with served(network, tmp_path):
        example.main(str(tmp_path / "adapt.sock"), "ward-3", images, masks)
    assert sorted(path.name for path in masks.iterdir()) == ["0.png.png", "1.png.png", "2.png.png"]
    assert np.asarray(Image.open(masks / "1.png.png")).shape == (40, 41)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "1b.png: not adapted (the image cannot be used" in lines[2]


def _example():
    spec = importlib.util.spec_from_file_location("example", ROOT / "deploy" / "adaptation_client.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_modules_are_those_of_the_proto_file(tmp_path: Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc")
    out = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    assert protoc.main(["protoc", f"-I{ROOT}", *out, str(ROOT / "client" / "adaptation.proto")]) == 0
    for name in ("adaptation_pb2.py", "adaptation_pb2.pyi", "adaptation_pb2_grpc.py"):
        assert (tmp_path / "client" / name).read_text() == (ROOT / "client" / name).read_text()
