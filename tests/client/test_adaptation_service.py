"""Calls of the adaptation service: what an adapter gives, image by image, and how every call ends."""

from __future__ import annotations

import contextlib
import io
import queue
import threading
import time
from pathlib import Path

import grpc
import nibabel
import numpy as np
import pytest
import torch
from serving import image_files, opening, png, refused, same, served
from tiny_model_file import write_model_file

from client import adaptation_pb2 as messages
from client import adaptation_service
from client.adaptation_client import AdaptationClient, mask_of
from client.adaptation_pb2_grpc import AdaptationStub
from client.adaptation_service import AdaptationService, Limits
from fedprompt.adaptation.adapter import Adapter
from fedprompt.adaptation.methods import METHODS
from fedprompt.adaptation.model_file import load_network
from fedprompt.adaptation.network import Network
from fedprompt.adaptation.state import StreamState
from fedprompt.adaptation.stream_files import class_numbers, network_input
from fedprompt.data.images import picture_from_bytes
from fedprompt.encryption import SiteKey
from fedprompt.errors import ConfigurationError, RunError

KEY = SiteKey(bytes(32))
CODE = grpc.StatusCode


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return load_network(write_model_file(tmp_path_factory.mktemp("model")))


def stub(folder: Path) -> AdaptationStub:
    return AdaptationStub(grpc.insecure_channel(f"unix:{folder / 'adapt.sock'}"))


def answers(client: AdaptationClient, files: list[bytes], name: str = "ward-3", method: str = "") -> list:
    with client.stream(name, method, timeout=60) as stream:
        return [same(stream.adapt(content)) for content in files]


@pytest.mark.parametrize("method", ["", "none"])
def test_a_stream_gives_what_its_adapter_gives(tmp_path: Path, network: Network, method: str) -> None:
    files = image_files(4)
    with served(network, tmp_path) as client:
        replies = answers(client, files, method=method)
    adapter = Adapter(network, method or "low-frequency")
    for number, (content, reply) in enumerate(zip(files, replies, strict=True)):
        picture = picture_from_bytes("a.png", content, pixels=10_000)
        adapted = adapter(network_input(picture, network))
        mask = mask_of(reply)
        assert mask is not None
        assert mask.shape == picture.array.shape[:2]
        np.testing.assert_array_equal(mask, class_numbers(adapted.probabilities, *mask.shape))
        assert (reply.number, reply.accepted, reply.reason) == (number, adapted.accepted, adapted.reason)
        for name in ("loss_before", "loss_after", "entropy", "agreement"):
            found = getattr(reply, name) if reply.HasField(name) else None
            assert found == getattr(adapted, name)
        assert reply.foreground == (mask > 0).mean()


def test_streams_side_by_side_give_what_they_give_alone(tmp_path: Path, network: Network) -> None:
    files = image_files(6)
    with served(network, tmp_path) as client:
        alone = {order: answers(client, files[::order], f"alone-{order + 1}") for order in (1, -1)}
        found: dict[int, list] = {}
        threads = [
            threading.Thread(
                target=lambda order: found.update({order: answers(client, files[::order], f"s{order + 1}")}),
                args=(order,),
            )
            for order in (1, -1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert found == alone


def test_describe_tells_network_classes_methods_and_limits(tmp_path: Path, network: Network) -> None:
    with served(network, tmp_path, limits=Limits(message_bytes=1 << 20), method="none") as client:
        described = client.describe()
    assert described.fingerprint == network.fingerprint
    assert list(described.classes) == ["background", "polyp"]
    assert list(described.methods) == list(METHODS)
    assert described.default_method == "none"
    assert described.max_message_bytes == 1 << 20


@pytest.mark.parametrize("folder", [None, "states"])
def test_a_bad_image_gets_a_reason_and_the_stream_goes_on(
    tmp_path: Path, network: Network, folder: str | None
) -> None:
    first, second = image_files(2)
    bad = [b"", b"not an image", first[: len(first) // 2], png(np.zeros((300, 300), np.uint8))]
    options = {} if folder is None else {"folder": tmp_path / folder, "key": KEY}
    with served(network, tmp_path, limits=Limits(pixels=50_000), **options) as client:
        expected = answers(client, [first, second], "clean")
        replies = answers(client, [first, *bad, second])
    for reply in replies[1:-1]:
        assert not reply.mask
        assert not reply.accepted
        assert reply.reason.startswith("the image cannot be used")
    assert [reply.number for reply in replies] == list(range(6))
    assert replies[0].mask == expected[0].mask
    assert replies[-1].mask == expected[-1].mask


def test_formats_are_told_by_the_suffix_and_nothing_else_of_a_name_is_used(
    tmp_path: Path, network: Network
) -> None:
    image = nibabel.Nifti1Image(np.arange(1200, dtype=np.int16).reshape(30, 40), np.eye(4))
    with served(network, tmp_path) as client, client.stream("ward-3") as stream:
        for suffix in (".nii", "/../patient-17.NII"):
            mask = mask_of(stream.adapt(image.to_bytes(), suffix))
            assert mask is not None
            assert mask.shape == (40, 30)
        assert mask_of(stream.adapt(image.to_bytes(), ".png")) is None


def test_a_stream_goes_on_in_a_later_call_and_in_a_later_service(tmp_path: Path, network: Network) -> None:
    files = image_files(5)
    with served(network, tmp_path) as client:
        expected = answers(client, files)
    with served(network, tmp_path, folder=tmp_path / "states", key=KEY) as client:
        found = answers(client, files[:2])
        found += answers(client, files[2:3])
    with served(network, tmp_path, folder=tmp_path / "states", key=KEY) as client:
        with client.stream("ward-3") as stream:
            assert stream.images == 3
        found += answers(client, files[3:])
    assert found == expected


def test_a_reply_that_was_lost_is_given_again_and_changes_nothing(tmp_path: Path, network: Network) -> None:
    files = image_files(3)
    with served(network, tmp_path) as client:
        expected = answers(client, files)
    with served(network, tmp_path, folder=tmp_path / "states", key=KEY) as client:
        with client.stream("ward-3") as stream:
            stream.adapt(files[0])
            lost = stream.adapt(files[1], number=1)
            assert stream.adapt(files[1], number=1) == lost
        with client.stream("ward-3") as stream:
            assert stream.images == 2
            assert stream.adapt(files[1], number=1) == lost
            assert same(stream.adapt(files[2])) == expected[2]
        for number, content in ((1, files[1]), (2, files[0]), (4, files[0])):
            with (
                refused(CODE.INVALID_ARGUMENT, f"expected image number 3, got number {number}"),
                client.stream("ward-3") as stream,
            ):
                stream.adapt(content, number=number)


def test_forget_deletes_what_is_remembered(tmp_path: Path, network: Network) -> None:
    files = image_files(2)
    with served(network, tmp_path, folder=tmp_path / "states", key=KEY) as client:
        first = answers(client, files)
        assert list((tmp_path / "states").iterdir()) == [tmp_path / "states" / "ward-3.state"]
        assert client.forget("ward-3")
        assert not client.forget("ward-3")
        assert list((tmp_path / "states").iterdir()) == []
        assert answers(client, files) == first
        with client.stream("ward-3"), refused(CODE.ABORTED, "in use"):
            client.forget("ward-3")
        with refused(CODE.INVALID_ARGUMENT, "lower-case"):
            client.forget("../ward-3")
    with served(network, tmp_path) as client:
        assert not client.forget("ward-3")


def test_requests_that_do_not_fit_end_the_call(tmp_path: Path, network: Network) -> None:
    image = messages.AdaptRequest(image=messages.Image(content=image_files(1)[0]))
    cases = [
        ([opening("Ward 3")], "lower-case letters"),
        ([opening("")], "lower-case letters"),
        ([opening("a", "magic")], "method: expected one of none, "),
        ([image], "the first request has to open a stream"),
        ([messages.AdaptRequest()], "the first request has to open a stream"),
        ([opening("a"), opening("a")], "expected an image"),
        ([opening("a"), messages.AdaptRequest()], "expected an image"),
    ]
    with served(network, tmp_path):
        for requests, sentence in cases:
            with pytest.raises(grpc.RpcError) as caught:
                list(stub(tmp_path).Adapt(iter(requests), timeout=10))
            assert caught.value.code() is CODE.INVALID_ARGUMENT
            assert sentence in caught.value.details()
        assert list(stub(tmp_path).Adapt(iter([]), timeout=10)) == []


def test_a_message_over_the_limit_ends_the_call_and_keeps_the_stream(
    tmp_path: Path, network: Network
) -> None:
    files = image_files(2)
    large = files[1] + bytes(70_000)
    limits = Limits(message_bytes=65_536)
    with served(network, tmp_path, limits=limits, folder=tmp_path / "states", key=KEY) as client:
        with refused(CODE.RESOURCE_EXHAUSTED, "larger than"), client.stream("ward-3") as stream:
            stream.adapt(files[0])
            stream.adapt(large)
        with client.stream("ward-3") as stream:
            assert stream.images == 1
            assert stream.adapt(files[1]).mask


def test_calls_end_at_their_deadline(tmp_path: Path, network: Network) -> None:
    with served(network, tmp_path) as client:
        start = time.monotonic()
        with (
            refused(CODE.DEADLINE_EXCEEDED, "Deadline Exceeded"),
            client.stream("ward-3", timeout=0.5) as stream,
        ):
            while True:
                stream.adapt(image_files(1)[0])
        assert time.monotonic() - start < 5
        _wait_until_free(client)


def test_silent_clients_and_endless_calls_are_ended_without_any_deadline(
    tmp_path: Path, network: Network
) -> None:
    image = messages.AdaptRequest(image=messages.Image(content=b"bad"))
    for limits, sentence in (
        (Limits(idle_seconds=0.4), "no request in time"),
        (Limits(call_seconds=0.4), "longer than the service allows"),
    ):
        with served(network, tmp_path, limits=limits) as client:
            for sent in ([], [opening("ward-3")], [opening("ward-3"), image]):
                start = time.monotonic()
                requests: queue.SimpleQueue = queue.SimpleQueue()
                for request in sent:
                    requests.put(request)
                with pytest.raises(grpc.RpcError) as caught:
                    list(stub(tmp_path).Adapt(iter(requests.get, None)))
                assert caught.value.code() is CODE.DEADLINE_EXCEEDED
                assert sentence in caught.value.details()
                assert 0.3 < time.monotonic() - start < 5
                requests.put(None)
                _wait_until_free(client)


def test_a_client_that_reads_no_reply_loses_its_call(
    tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = messages.Adapted(mask=bytes(1 << 20))
    monkeypatch.setattr(adaptation_service.AdaptationStream, "answer", lambda *_: large)
    image = messages.AdaptRequest(image=messages.Image())
    with served(network, tmp_path, limits=Limits(idle_seconds=0.5)) as client:
        taken = threading.Event()

        def requests():
            yield opening("ward-3")
            for _ in range(1000):
                taken.set()
                yield image

        call = stub(tmp_path).Adapt(requests())
        assert taken.wait(10)
        _wait_until_free(client, 20)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() is CODE.CANCELLED


def test_only_so_many_streams_are_open_at_a_time(tmp_path: Path, network: Network) -> None:
    with served(network, tmp_path, limits=Limits(streams=2)) as client:
        with client.stream("a"), client.stream("b"):
            with refused(CODE.RESOURCE_EXHAUSTED, "2 streams are open"), client.stream("c"):
                pass
            assert client.describe().fingerprint == network.fingerprint
        with client.stream("c"):
            pass


@pytest.mark.parametrize("kept", [False, True])
def test_a_stream_that_is_in_use_is_refused(tmp_path: Path, network: Network, kept: bool) -> None:
    options = {"folder": tmp_path / "states", "key": KEY} if kept else {}
    with served(network, tmp_path, **options) as client:
        with client.stream("ward-3") as stream:
            with refused(CODE.ABORTED, "the stream is in use"), client.stream("ward-3"):
                pass
            assert stream.adapt(image_files(1)[0]).mask
        if kept:
            with (
                StreamState(tmp_path / "states", KEY, "ward-3"),  # as another process would
                refused(CODE.ABORTED, "the stream is in use"),
                client.stream("ward-3"),
            ):
                pass
        with client.stream("ward-3"):
            pass


def test_a_client_that_goes_away_leaves_its_stream_to_the_next(tmp_path: Path, network: Network) -> None:
    with served(network, tmp_path, folder=tmp_path / "states", key=KEY) as client:
        for _ in range(3):
            with contextlib.suppress(KeyboardInterrupt), client.stream("ward-3") as stream:
                stream.adapt(image_files(1)[0])
                raise KeyboardInterrupt
            _wait_until_free(client)
        with client.stream("ward-3") as stream:
            assert stream.images == 3
    deadline = time.monotonic() + 10
    while _threads() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _threads() == []


def test_states_of_another_key_network_or_method_are_refused(tmp_path: Path, network: Network) -> None:
    states = tmp_path / "states"
    with served(network, tmp_path, folder=states, key=KEY) as client:
        answers(client, image_files(1))
        with (
            refused(CODE.FAILED_PRECONDITION, "another key, network or method"),
            client.stream("ward-3", "none"),
        ):
            pass
    with (
        served(network, tmp_path, folder=states, key=SiteKey(b"x" * 32)) as client,
        refused(CODE.FAILED_PRECONDITION, "another key"),
        client.stream("ward-3"),
    ):
        pass
    other = load_network(write_model_file(tmp_path / "model", seed=7))
    with (
        served(other, tmp_path, folder=states, key=KEY) as client,
        refused(CODE.FAILED_PRECONDITION, "another key, network"),
        client.stream("ward-3"),
    ):
        pass
    state = states / "ward-3.state"
    state.write_bytes(state.read_bytes()[:-1])
    with served(network, tmp_path, folder=states, key=KEY) as client:
        with refused(CODE.FAILED_PRECONDITION, "damaged"), client.stream("ward-3"):
            pass
        assert client.forget("ward-3")
        answers(client, image_files(1))


def test_a_state_of_the_command_line_is_refused(tmp_path: Path, network: Network) -> None:
    with StreamState(tmp_path, KEY, "ward-3") as state:
        arrays, metadata = Adapter(network).state()
        state.save(arrays, {"adapter": metadata, "line": {}})
    with (
        served(network, tmp_path, folder=tmp_path, key=KEY) as client,
        refused(CODE.FAILED_PRECONDITION, "damaged"),
        client.stream("ward-3"),
    ):
        pass


def test_a_full_disk_ends_the_call_with_a_sentence_and_loses_nothing(
    tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = image_files(2)

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with served(network, tmp_path) as client:
        expected = answers(client, files)
    with served(network, tmp_path, folder=tmp_path / "states", key=KEY) as client:
        found = answers(client, files[:1])
        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", full)
            with (
                refused(CODE.INTERNAL, "the state of the stream cannot be written"),
                client.stream("ward-3") as stream,
            ):
                stream.adapt(files[1])
        assert found + answers(client, files[1:]) == expected


def test_what_breaks_inside_stays_inside(
    tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Adapter):
        def __call__(self, image):
            raise RuntimeError("/data/patient-17.png broke")

    monkeypatch.setattr(adaptation_service, "Adapter", Broken)
    with (
        served(network, tmp_path) as client,
        refused(CODE.INTERNAL, "the site failed; its local log has the details"),
        client.stream("ward-3") as stream,
    ):
        stream.adapt(image_files(1)[0])
    assert "patient-17" in caplog.text


def test_a_service_that_cannot_work_is_refused_at_once(tmp_path: Path, network: Network) -> None:
    with pytest.raises(ConfigurationError, match=r"method: expected one of none, .*, got 'magic'"):
        AdaptationService(network, method="magic")
    with pytest.raises(ConfigurationError, match="expected a state folder and a key"):
        AdaptationService(network, folder=tmp_path)


def test_a_method_that_cannot_work_on_the_network_is_refused(tmp_path: Path) -> None:
    network = Network(torch.nn.Conv2d(3, 2, 1), ("background", "polyp"), size=(32, 32))
    with pytest.raises(ConfigurationError, match="or collected source statistics"):
        AdaptationService(network)
    with (
        served(network, tmp_path, method="none") as client,
        refused(CODE.INVALID_ARGUMENT, "the method cannot work on the network"),
        client.stream("ward-3", "low-frequency"),
    ):
        pass


def test_images_of_one_channel(tmp_path: Path) -> None:
    network = load_network(write_model_file(tmp_path / "model", channels=1, size=None))
    rng = np.random.default_rng(0)
    with served(network, tmp_path) as client, client.stream("ward-3") as stream:
        reply = stream.adapt(png(rng.integers(0, 256, (48, 32), dtype=np.uint8)))
        assert np.asarray(mask_of(reply)).shape == (48, 32)


def test_mask_of_reads_png_alone() -> None:
    buffer = io.BytesIO(png(np.array([[0, 1]], np.uint8)))
    np.testing.assert_array_equal(mask_of(messages.Adapted(mask=buffer.getvalue())), [[0, 1]])
    assert mask_of(messages.Adapted()) is None


def _threads() -> list[str]:
    """Threads of services in this process."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("adaptation")]


def _wait_until_free(client: AdaptationClient, seconds: float = 5) -> None:
    """Returns when the stream can be opened again."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with client.stream("ward-3", timeout=5):
                return
        except RunError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
