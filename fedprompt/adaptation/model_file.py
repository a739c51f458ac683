"""A network that somebody brings along, as one TOML file describes it: class, weights, images, classes."""

from __future__ import annotations

import tomllib
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fedprompt.adaptation.network import Activation, Network
from fedprompt.config.errors import parsed
from fedprompt.config.tables import Folder, Table
from fedprompt.errors import ConfigurationError, DataError

__all__ = ["load_network"]

_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")


def _sides(value: Any) -> Any:
    """Height and width from one number for both, or from the two."""
    pair = list(value) if isinstance(value, (list, tuple)) else [value, value]
    if len(pair) != 2 or not all(type(side) is int and side > 0 for side in pair):
        raise ValueError(f"expected a number of pixels or [height, width], got {value!r}")
    return tuple(pair)


Numbers = Annotated[tuple[float, ...], Field(strict=False)]
Names = Annotated[tuple[str, ...], Field(strict=False)]


class _Architecture(Table):
    path: str = Field(alias="class")
    weights: Folder
    arguments: dict[str, Any] = Field(default_factory=dict)


class _Input(Table):
    size: Annotated[tuple[int, int] | None, BeforeValidator(_sides)] = None
    mean: Numbers
    std: Numbers


class _Output(Table):
    classes: Names
    activation: Activation = "softmax"


class _ModelFile(Table):
    network: _Architecture
    input: _Input
    output: _Output


def load_network(path: Path) -> Network:
    """Builds the network that a model file describes, fills it with its weights and freezes it.

    The class is imported by its name: a model file, like a script, can run what is installed on this machine.
    Weights are read from safetensors alone. The network lies on the GPU where there is one.

    Raises:
        ConfigurationError: The file is missing or no TOML, has a key or value that cannot be, or names a
            class that cannot be imported or built.
        DataError: The weights are missing, damaged, not safe to read, not finite, or of another network.
    """
    described = parsed(_ModelFile, _read(path), str(path))
    module = _built(path, described.network)
    _fill(module, path.parent / described.network.weights)
    module.eval().requires_grad_(False)
    module.to("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return Network(
            module,
            described.output.classes,
            mean=described.input.mean,
            std=described.input.std,
            size=described.input.size,
            activation=described.output.activation,
        )
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not a TOML file ({error})") from None


def _built(path: Path, described: _Architecture) -> nn.Module:
    """The network with random weights; the process's random state stays as it was."""
    module, colon, name = described.path.partition(":")
    if not (module and colon and name):
        raise ConfigurationError(
            f"{path}: network.class: expected 'package.module:Class', got {described.path!r}"
        )
    try:
        made = getattr(import_module(module), name)
    except Exception as error:  # noqa: BLE001 - a foreign module may raise anything
        raise ConfigurationError(
            f"{path}: network.class: expected an importable class, got {described.path!r} ({_told(error)})"
        ) from None
    if not (isinstance(made, type) and issubclass(made, nn.Module)):
        raise ConfigurationError(
            f"{path}: network.class: expected a torch module, got {described.path!r}, which is none"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            return made(**described.arguments)
    except Exception as error:  # noqa: BLE001 - as above
        raise ConfigurationError(
            f"{path}: network.arguments: expected what {name} takes, got others ({_told(error)})"
        ) from None


def _fill(module: nn.Module, file: Path) -> None:
    """Copies the file's tensors into the network; names and shapes must be those of its state dict."""
    stored = _tensors(file)
    expected: dict[str, Tensor] = module.state_dict()
    for name in sorted(expected.keys() ^ stored.keys()):
        state = "missing" if name in expected else "foreign"
        raise DataError(
            f"{file}: expected the weights of {type(module).__name__}, got a file where {name} is {state}"
        )
    with torch.no_grad():
        for name, tensor in expected.items():
            found = stored[name]
            if found.shape != tensor.shape:
                raise DataError(
                    f"{file}: {name}: expected shape {tuple(tensor.shape)}, got {tuple(found.shape)}"
                )
            if found.is_floating_point() and not found.isfinite().all():
                raise DataError(f"{file}: {name}: expected finite values, got NaN or infinity")
            tensor.copy_(found)


def _tensors(file: Path) -> dict[str, Tensor]:
    if file.suffix.lower() in _PICKLES:
        raise DataError(
            f"{file}: expected weights in safetensors, got a pickle, which can run code and is refused"
        )
    try:
        with safe_open(str(file), framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file}: expected a safetensors file, got a corrupt one ({error})") from None


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
