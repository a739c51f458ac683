"""Models of a hub: what is downloaded, what is read again, and every way in which there is none."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_hub import COMMIT, FakeHub
from huggingface_hub import constants
from tiny_transformers import tiny_clip, tiny_vit

from fedprompt.backbones import download, fingerprint, load_backbone, load_folder
from fedprompt.backbones.download import hub_folder, revision
from fedprompt.config import BackboneSettings
from fedprompt.errors import ConfigurationError, DataError, RunError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    (tmp_path / "hub").mkdir()
    with FakeHub(tmp_path / "hub").running() as hub:
        use(hub.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


def use(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def published(hub: FakeHub, name: str = "owner/vit") -> Path:
    folder = hub.root / name
    folder.mkdir(parents=True)
    return tiny_vit(folder)


def lose(cached: Path) -> None:
    """Removes a file of the cache, which is a link to its content."""
    cached.resolve().unlink()
    cached.unlink()


def test_a_model_is_downloaded_once_and_without_what_is_not_needed(hub: FakeHub) -> None:
    source = published(hub)
    for name in ("pytorch_model.bin", "tf_model.h5", "modeling_vit.py", "onnx/model.safetensors"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"danger")
    folder = hub_folder("owner/vit")
    assert hub.downloads() == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert revision(folder) == COMMIT
    assert fingerprint(load_folder(folder)) == fingerprint(load_folder(source))
    hub.asked.clear()
    assert hub_folder("owner/vit") == folder
    assert hub.asked == []


def test_a_study_reads_a_model_of_the_hub(hub: FakeHub) -> None:
    source = published(hub)
    mark = fingerprint(load_folder(source))
    settings = BackboneSettings(name="vit", hub="owner/vit", fingerprint=mark)
    backbone = load_backbone(settings, task="classification", classes=3)
    assert backbone.encode(torch.zeros(1, 3, 32, 32))[-1].shape == (1, 24, 4, 4)


def test_a_tokenizer_comes_along(hub: FakeHub) -> None:
    (hub.root / "owner/clip").mkdir(parents=True)
    source = tiny_clip(hub.root / "owner/clip")
    assert fingerprint(load_folder(hub_folder("owner/clip"))) == fingerprint(load_folder(source))


def test_weights_in_parts_must_all_be_there(hub: FakeHub) -> None:
    source = published(hub)
    load_folder(source).encoder.save_pretrained(source, max_shard_size="20KB")
    (source / "model.safetensors").unlink()
    parts = sorted(source.glob("model-*-of-*.safetensors"))
    assert len(parts) > 1
    assert fingerprint(load_folder(hub_folder("owner/vit"))) == fingerprint(load_folder(source))
    lose(hub_folder("owner/vit") / parts[0].name)
    hub.asked.clear()
    hub_folder("owner/vit")
    assert hub.downloads() == {parts[0].name}


def test_a_download_that_broke_off_is_completed(hub: FakeHub) -> None:
    published(hub)
    lose(hub_folder("owner/vit") / "model.safetensors")
    assert (hub_folder("owner/vit") / "model.safetensors").is_file()


def test_weights_that_are_not_safetensors_are_not_taken(hub: FakeHub) -> None:
    source = published(hub)
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(DataError, match="owner/vit: expected weights in safetensors, got none"):
        hub_folder("owner/vit")
    assert "pytorch_model.bin" not in hub.downloads()
    (published(hub, "owner/other") / "config.json").unlink()
    with pytest.raises(DataError, match=r"owner/other: expected a model of transformers"):
        hub_folder("owner/other")


def test_what_the_hub_does_not_have_or_show_is_named(hub: FakeHub) -> None:
    published(hub)
    hub.gated.add("owner/vit")
    with pytest.raises(ConfigurationError, match="owner/vit: the hub shows this model only to users who"):
        hub_folder("owner/vit")
    with pytest.raises(ConfigurationError, match="owner/none: expected a folder or the hub id of a public"):
        hub_folder("owner/none")


@pytest.mark.parametrize("text", ["nowhere", "./there/vit", "/there/vit", "a/b/c", "a b/c", "a/..", ""])
def test_what_cannot_be_an_id_is_not_asked_for(text: str, hub: FakeHub) -> None:
    with pytest.raises(ConfigurationError, match="expected a folder or the hub id of a public model"):
        hub_folder(text)
    assert hub.asked == []


def test_without_a_network_what_was_downloaded_is_read(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    published(hub)
    folder = hub_folder("owner/vit")
    use("http://127.0.0.1:9", monkeypatch)  # nobody listens there
    assert hub_folder("owner/vit") == folder
    with pytest.raises(RunError, match="owner/other: no such folder or cached model, and the hub cannot"):
        hub_folder("owner/other")


def test_a_hub_that_never_answers_is_given_up(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch)
        started = time.perf_counter()
        with pytest.raises(RunError, match=r"owner/vit: .* the hub cannot be reached"):
            hub_folder("owner/vit")
        assert time.perf_counter() - started < 5
