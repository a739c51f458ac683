"""A network of another group: read from a model file and safetensors, or refused with one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.networks.nets import UNet
from safetensors.torch import load_file, save_file
from tiny_model_file import write_model_file

from fedprompt.adaptation.model_file import load_network
from fedprompt.errors import ConfigurationError, DataError, FedpromptError


def changed(file: Path, old: str, new: str) -> Path:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return file


def test_the_network_computes_what_its_author_computes(tmp_path: Path) -> None:
    network = load_network(write_model_file(tmp_path))
    author = UNet(2, 3, 2, channels=(4, 8), strides=(2,), norm="batch").eval()
    author.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network.module(images), author(images))
    assert not network.module.training
    assert not any(parameter.requires_grad for parameter in network.module.parameters())
    assert (network.classes, network.size, network.channels) == (("background", "polyp"), (32, 32), 3)
    assert (network.mean, network.std, network.activation) == ((0.5,) * 3, (0.25,) * 3, "softmax")


def test_the_fingerprint_tells_networks_apart_and_loading_draws_no_random_number(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    first = load_network(write_model_file(tmp_path / "a"))
    again = load_network(write_model_file(tmp_path / "b"))
    other = load_network(write_model_file(tmp_path / "c", seed=1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.fingerprint == again.fingerprint != other.fingerprint


@pytest.mark.parametrize(("size", "found"), [(None, None), ([32, 48], (32, 48))])
def test_sizes(size: list[int] | None, found: tuple[int, int] | None, tmp_path: Path) -> None:
    assert load_network(write_model_file(tmp_path, size=size)).size == found


def test_one_channel_and_sigmoid(tmp_path: Path) -> None:
    network = load_network(write_model_file(tmp_path, channels=1, activation="sigmoid"))
    assert (network.channels, network.activation) == (1, "sigmoid")
    logits = network.module(torch.rand(1, 1, 32, 32))
    assert network.probabilities(logits).shape == (1, 2, 32, 32)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('class = "monai', 'klass = "monai', "network.klass: no such key (did you mean 'class'?)"),
        (":UNet", ".UNet", "expected 'package.module:Class', got 'monai.networks.nets.UNet'"),
        ("nets:UNet", "nets:UNett", "got 'monai.networks.nets:UNett' (AttributeError"),
        (
            "monai.networks.nets:UNet",
            "nowhere.at_all:UNet",
            "(ModuleNotFoundError: No module named 'nowhere')",
        ),
        ("monai.networks.nets:UNet", "pathlib:Path", "network.class: expected a torch module"),
        (
            "spatial_dims = 2",
            "dims = 2",
            "arguments: expected what UNet takes, got others (TypeError",
        ),
        (
            "size = 32",
            'size = "big"',
            "size: expected a number of pixels or [height, width], got 'big'",
        ),
        ("size = 32", "size = [32, 32, 3]", "input.size: expected a number of pixels or [height, width]"),
        ("size = 32", "size = 0", "input.size: expected a number of pixels or [height, width], got 0"),
        ("std = [0.25, ", "std = [", "expected a mean and a positive std per channel"),
        ("[0.25, 0.25, 0.25]", "[0.25, 0.25, 0]", "expected a mean and a positive std per channel"),
        ("'polyp'", "'background'", "expected two or more different class names"),
        ('"softmax"', '"relu"', "output.activation: expected 'softmax' or 'sigmoid', got 'relu'"),
        ("[output]", "[out]", "output: expected a value, got nothing"),
        ("[input]", "[input", "not a TOML file"),
    ],
)
def test_a_wrong_file_is_one_sentence(old: str, new: str, sentence: str, tmp_path: Path) -> None:
    file = changed(write_model_file(tmp_path), old, new)
    with pytest.raises(ConfigurationError) as caught:
        load_network(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"model\.toml: no such file"):
        load_network(tmp_path / "model.toml")


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ("other.safetensors", "other.safetensors: no such file"),
        ("weights.pt", "got a pickle, which can run code and is refused"),
        ("model.toml", "expected a safetensors file, got a corrupt one"),
    ],
)
def test_weights_that_cannot_be_read(weights: str, sentence: str, tmp_path: Path) -> None:
    file = changed(write_model_file(tmp_path), "weights.safetensors", weights)
    with pytest.raises(DataError, match=sentence):
        load_network(file)


def test_weights_of_another_network(tmp_path: Path) -> None:
    file = write_model_file(tmp_path)
    weights = tmp_path / "weights.safetensors"
    whole = load_file(weights)
    name, first = min(whole.items())
    cases: list[tuple[dict[str, torch.Tensor], str]] = [
        ({key: value for key, value in whole.items() if key != name}, f"{name} is missing"),
        (whole | {"more": first}, "more is foreign"),
        (whole | {name: first[None]}, f"{name}: expected shape"),
        (whole | {name: torch.full_like(first, torch.nan)}, f"{name}: expected finite values"),
    ]
    for tensors, sentence in cases:
        save_file({key: value.clone() for key, value in tensors.items()}, weights)
        with pytest.raises(FedpromptError) as caught:
            load_network(file)
        assert type(caught.value) is DataError
        assert sentence in str(caught.value)
