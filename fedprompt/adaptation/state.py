"""What adaptation remembers of a stream, on the site's disk: one encrypted file per stream, one writer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from fedprompt.encryption import SiteKey, read_encrypted_arrays, write_encrypted_arrays
from fedprompt.errors import ConfigurationError, RunError
from fedprompt.locks import FileLock
from fedprompt.manifest import Arrays

__all__ = ["StreamState", "StreamTaken", "check_stream_name", "key_of_states"]

_NAME = re.compile(r"[a-z0-9-]{1,64}")


class StreamTaken(RunError):
    """Another process, or another part of this one, is at work on the stream."""

    default_public = "the stream is in use"


class StreamState:
    """The state of one stream, held against other writers from its making until `close`.

    A process that is killed between two images leaves the state after the first of them. A state under the
    name of another stream, or one that was changed, is refused.

    Args:
        folder: Of all streams; made for its user alone where it is missing.
        key: The site's key.
        stream: Name of the stream.

    Attributes:
        path: Its file.

    Raises:
        ConfigurationError: The name is no stream name, or the folder cannot be used.
        StreamTaken: Somebody else holds the stream.
    """

    def __init__(self, folder: Path, key: SiteKey, stream: str) -> None:
        check_stream_name(stream)
        self.path = folder / f"{stream}.state"
        self._key = key
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = FileLock(folder / f".{stream}.lock")
        except BlockingIOError:
            raise StreamTaken(f"{folder}: stream {stream} is in use by another process") from None
        except OSError as error:
            raise ConfigurationError(f"{folder}: expected a folder for states ({error.strerror})") from None
        for partial in folder.glob(f".{self.path.name}.*.partial"):  # of a writer that was killed
            partial.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def load(self) -> tuple[Arrays, dict[str, Any]] | None:
        """Arrays and metadata that were saved last; None where there is no state.

        Raises:
            DataError: The state is of another key or another stream, or damaged.
        """
        return read_encrypted_arrays(self.path, self._key) if self.path.exists() else None

    def save(self, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
        """Puts a new state in the place of the old one, whole or not at all.

        Raises:
            RunError: The disk is full, or the folder cannot be written.
        """
        try:
            write_encrypted_arrays(self.path, arrays, metadata, self._key)
        except OSError as error:
            raise RunError(
                f"{self.path}: the state cannot be written ({error.strerror})",
                public="the state of the stream cannot be written",
            ) from None

    def delete(self) -> bool:
        """Removes the state; whether there was one.

        Raises:
            RunError: The folder cannot be written.
        """
        try:
            self.path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise RunError(
                f"{self.path}: the state cannot be deleted ({error.strerror})",
                public="the state of the stream cannot be deleted",
            ) from None
        return True

    def close(self) -> None:
        """Lets others have the stream; a second call does nothing."""
        self._lock.release()


def key_of_states(path: Path, folder: Path) -> SiteKey:
    """The site's key for a folder of states; a new one where the site has neither a key nor a state.

    Raises:
        ConfigurationError: There is no key but a state that was written with one, or the file is no key.
    """
    if path.exists() or not any(folder.glob("*.state")):
        return SiteKey.load(path) if path.exists() else SiteKey.create(path)
    raise ConfigurationError(f"{path}: no such file; expected the key of the states in {folder}")


def check_stream_name(stream: str) -> None:
    """Refuses what is no stream name: such a name is also that of a file.

    Raises:
        ConfigurationError: It is not of 1 to 64 lower-case letters, digits and hyphens.
    """
    if not _NAME.fullmatch(stream):
        raise ConfigurationError(
            f"stream: expected 1 to 64 lower-case letters, digits and hyphens, got {stream!r}",
            public="a stream's name has 1 to 64 lower-case letters, digits and hyphens",
        )
