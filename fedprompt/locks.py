"""One process at a time: an advisory lock on a file, which the system lets go when its process ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["FileLock"]


class FileLock:
    """Holds a lock file from its making until `release`; also against other holders in this process.

    A killed process leaves the file behind, but not the lock.

    Args:
        path: The lock file, in a folder that exists.

    Raises:
        BlockingIOError: Somebody else holds it.
        OSError: The file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._owner = os.getpid()
        self._handle = -1
        while self._handle < 0:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(handle, path):
                    self._handle = handle
            finally:
                if self._handle != handle:
                    os.close(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()

    def release(self) -> None:
        """Lets others have it and removes the file; a second call does nothing."""
        handle, self._handle = self._handle, -1
        if handle >= 0 and os.getpid() == self._owner:  # a forked child has the handle, but not the say
            with contextlib.suppress(OSError):
                self._path.unlink()
            os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file still has its name: the last holder may have removed it before we locked it."""
    try:
        found, opened = path.stat(), os.fstat(handle)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino)
