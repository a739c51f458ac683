"""Folders of `transformers`: an encoder with all of its weights, and how its images are prepared.

A folder comes from elsewhere and is not trusted: nothing of it is run, weights are read from safetensors
alone, and nothing that it lacks is filled with random numbers in silence.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fedprompt.artifacts import read_json
from fedprompt.backbones.base import Preprocessing
from fedprompt.backbones.download import hub_folder
from fedprompt.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from fedprompt.backbones.hub import HubBackbone

__all__ = ["Encoder", "locate", "read_encoder", "read_preprocessing", "write_encoder"]

Encoder = Any  # a model of transformers, which takes a second to import and is hardly typed

_CONFIG = "config.json"
_ADAPTER = "adapter_config.json"
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# What a config.json may say to make transformers run code from a hub, read other files or change the weights.
_UNSAFE = frozenset(
    {
        "attn_implementation",
        "_attn_implementation",
        "experts_implementation",
        "transformers_weights",
        "quantization_config",
    }
)


def locate(source: Path | str) -> Path:
    """The local folder of an encoder: `source` itself, or the files of the hub id that it is.

    Raises:
        ConfigurationError: There is no such folder or id.
        DataError, RunError: As in `fedprompt.backbones.download.hub_folder`.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if isinstance(source, Path) or folder.is_absolute():
        raise ConfigurationError(f"{source}: expected a folder with an encoder, got none")
    return hub_folder(source)


def read_encoder(family: type[HubBackbone], source: Path | str, *, decoder: bool = False) -> Encoder:
    """The encoder of a folder or hub id in eval mode, float32; errors as in `HubBackbone.from_pretrained`.

    Args:
        family: Names the class and the types that it reads.
        source: Folder or hub id.
        decoder: Whether a decoder will read it, so that it may lack what a decoder does not use.
    """
    import transformers

    folder = locate(source)
    _check_config(family, folder)
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        got = f"{pickles[0]}, a pickle, which can run code and is refused" if pickles else "none"
        raise DataError(f"{folder}: expected a {family.name} encoder with safetensors weights, got {got}")
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):  # random initial weights, which the file's replace
            encoder, report = getattr(transformers, family.model_class).from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,  # never a pickle
                ignore_mismatched_sizes=True,  # reported instead, and refused below
                output_loading_info=True,
                dtype=torch.float32,
                **family.load_options,
            )
    except Exception as error:  # noqa: BLE001 - a damaged folder makes transformers raise anything
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{folder}: expected a {family.name} encoder with safetensors weights, got one that cannot be "
            f"read ({cause})"
        ) from None
    unused = (*family.unused, *(family.unused_by_decoder if decoder else ()))
    _check_weights(encoder, report, f"{folder}: expected all weights of a {family.name}", unused)
    return encoder.eval()


def _check_config(family: type[HubBackbone], folder: Path) -> None:
    """Refuses another family and a configuration that would have transformers do more than load weights."""
    path = folder / _CONFIG
    stored = read_json(path)
    kind = stored.get("model_type") if isinstance(stored, dict) else None
    expected = " or ".join(family.model_types)
    if not isinstance(kind, str):
        raise DataError(f"{path}: expected a model_type ({expected}), got none")
    if kind not in family.model_types:
        raise ConfigurationError(f"{folder}: expected an encoder of type {expected}, got {kind}")
    for key in sorted(_UNSAFE & _keys(stored)):
        raise DataError(f"{path}: expected a plain model, got one with {key}, which is refused")
    if (folder / _ADAPTER).exists():  # where peft is installed, transformers would load it too
        raise DataError(f"{folder / _ADAPTER}: expected a plain model, got one with an adapter")
    vision = stored.get("vision_config")
    channels = (vision if isinstance(vision, dict) else stored).get("num_channels", 3)
    if channels != 3:
        raise ConfigurationError(f"{folder}: expected an encoder of images with 3 channels, got {channels}")


def _keys(value: Any) -> set[str]:
    """All keys of a JSON value, at any depth."""
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set(value if isinstance(value, dict) else ()).union(*map(_keys, below))


def _check_weights(
    encoder: Encoder, report: Mapping[str, Any], expected: str, unused: tuple[str, ...]
) -> None:
    """Refuses what transformers filled with random numbers (no or other weights), NaN and infinity."""
    tensors = encoder.state_dict()
    for name in sorted(report["missing_keys"]):
        if not name.startswith(unused) and not name.endswith(".num_batches_tracked"):
            raise DataError(f"{expected}, got none for {name}")
        tensors[name].zero_()  # what is not used must not make two fingerprints of one folder
    for name, got, shape in sorted(report["mismatched_keys"]):
        raise DataError(f"{expected}, got {name} of shape {tuple(got)} instead of {tuple(shape)}")
    known = {_NUMBER.sub("#", name) for name in tensors}
    for name in sorted(report["unexpected_keys"]):  # heads are left out on purpose, further blocks are not
        parts = _NUMBER.sub("#", name).split(".")
        if any(".".join(parts[start:]) in known for start in range(len(parts) - 1)) and "#" in parts:
            raise DataError(f"{expected} that its config.json describes, got {name} beside them")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise DataError(f"{expected} to be finite, got NaN or infinity in {name}")


def read_preprocessing(source: Path | str, usual: Preprocessing) -> Preprocessing:
    """Mean, standard deviation and size from the model's own processor; `usual` where it has none.

    Raises:
        DataError: The processor's file has other content.
    """
    folder = locate(source)
    path = next((folder / name for name in _PROCESSORS if (folder / name).is_file()), None)
    if path is None:
        return replace(usual, size=_trained_size(folder) or usual.size)
    stored = read_json(path)
    try:
        stored = stored.get("image_processor", stored)
        size = stored.get("crop_size") if stored.get("do_center_crop", False) else None
        found = Preprocessing(*_normalisation(stored, usual), _side(size or stored.get("size") or usual.size))
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, StopIteration) as error:
        raise DataError(
            f"{path}: expected image_mean, image_std and size, got {str(error) or 'other entries'}"
        ) from None
    if not all(map(math.isfinite, (*found.mean, *found.std))) or min(*found.std, found.size) <= 0:
        raise DataError(f"{path}: expected finite image_mean, positive image_std and size, got {found}")
    return found


def _trained_size(folder: Path) -> int | None:
    """The side of images that config.json names."""
    stored = read_json(folder / "config.json")
    found = {**stored.get("vision_config", {}), **stored}.get("image_size")
    return found if isinstance(found, int) and found > 0 else None


def _normalisation(
    stored: Mapping[str, Any], usual: Preprocessing
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation for images in 0 to 1; the processor counts them in its own scale."""
    if not stored.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    else:
        mean, std = stored.get("image_mean", usual.mean), stored.get("image_std", usual.std)
    factor = stored.get("rescale_factor", 1 / 255) if stored.get("do_rescale", True) else 1.0
    scale = round(255 * factor, 9)
    return _three(mean, scale), _three(std, scale)


def _side(size: Any) -> int:
    if isinstance(size, dict):
        keys = ("height", "shortest_edge", "longest_edge")
        size = next(size[key] for key in keys if key in size)
    return int(size)


def _three(values: Sequence[float], scale: float) -> tuple[float, float, float]:
    red, green, blue = (float(value) / scale for value in values)
    return red, green, blue


def write_encoder(encoder: Encoder, preprocessing: Preprocessing, folder: Path) -> None:
    """Writes what `read_encoder` and `read_preprocessing` read."""
    with _quiet():
        encoder.save_pretrained(folder)
    size = {"height": preprocessing.size, "width": preprocessing.size}
    mean, std = list(preprocessing.mean), list(preprocessing.std)
    text = json.dumps({"image_mean": mean, "image_std": std, "size": size}, indent=2)
    (folder / _PROCESSORS[0]).write_text(text + "\n", encoding="utf-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the reports and progress bars of transformers."""
    import transformers

    log: Any = transformers.utils.logging
    verbosity, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bar:
            log.enable_progress_bar()
