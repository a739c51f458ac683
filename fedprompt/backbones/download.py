"""Models of the hub as local folders: fetched once, then read from the cache of `huggingface_hub`."""

from __future__ import annotations

import re
import threading
from pathlib import Path

from fedprompt.artifacts import read_json
from fedprompt.errors import ConfigurationError, DataError, RunError

__all__ = ["hub_folder", "revision"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PATIENCE = 20.0  # seconds
_INDEX = "model.safetensors.index.json"
# Never a pickle, and no weights of other libraries, which lie in folders of their own.
_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    _INDEX,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


def hub_folder(hub: str) -> Path:
    """A local folder with config, weights and preprocessing of a model; downloads what is not there yet.

    A hub that does not answer is given up after 20 seconds; a download that has begun takes its time.

    Raises:
        ConfigurationError: It is no id, or the hub has no such model, or does not show it to this user.
        DataError: The model has no safetensors weights.
        RunError: The hub cannot be reached, and the cache does not have the model.
    """
    nothing = f"{hub}: expected a folder or the hub id of a public model (owner/model), got neither"
    if not _HUB_ID.fullmatch(hub):
        raise ConfigurationError(nothing)
    import huggingface_hub
    from huggingface_hub import errors

    def snapshot(*, cached: bool) -> Path:
        return Path(
            huggingface_hub.snapshot_download(hub, allow_patterns=list(_FILES), local_files_only=cached)
        )

    try:
        folder = snapshot(cached=True)
        if _complete(folder):
            return folder
    except (OSError, ValueError):
        pass  # not in the cache, or not all of it
    try:
        _ask_for(hub)
        folder = snapshot(cached=False)
    except errors.GatedRepoError:
        raise ConfigurationError(
            f"{hub}: the hub shows this model only to users who accepted its terms; accept them there and "
            "run `hf auth login`"
        ) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ConfigurationError(f"{nothing} ({_first(error)})") from None
    except Exception as error:  # noqa: BLE001 - those of its HTTP library, which changes between versions
        raise RunError(
            f"{hub}: no such folder or cached model, and the hub cannot be reached ({_first(error)}); what "
            "`fedprompt backbone fetch` writes on another machine can be carried here"
        ) from None
    if not (folder / "config.json").is_file():
        raise DataError(f"{hub}: expected a model of transformers, got one without config.json")
    if not _complete(folder):
        raise DataError(
            f"{hub}: expected weights in safetensors, got none; where the model has pickled ones and you "
            "trust them, `save_pretrained` of transformers writes a folder with safetensors"
        )
    return folder


def revision(folder: Path) -> str:
    """The commit of a folder that `hub_folder` gave."""
    return folder.name


def _ask_for(hub: str) -> None:
    """Raises where the hub does not know the model, or does not answer in time.

    A connection tries every address of the hub, each with a limit of its own, so only a thread bounds it.
    """
    import huggingface_hub

    failures: list[Exception] = []

    def ask() -> None:
        try:
            huggingface_hub.HfApi().model_info(hub, timeout=_PATIENCE)
        except Exception as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    thread = threading.Thread(target=ask, name="hub", daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {_PATIENCE:.0f} s")
    if failures:
        raise failures[0]


def _complete(folder: Path) -> bool:
    if (folder / _INDEX).is_file():
        stored = read_json(folder / _INDEX)
        if not isinstance(stored, dict) or not isinstance(stored.get("weight_map"), dict):
            raise DataError(f"{folder / _INDEX}: expected an index of weights, got other content")
        return all((folder / Path(str(name)).name).is_file() for name in stored["weight_map"].values())
    return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()


def _first(error: Exception) -> str:
    """The first line of what an error says, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
