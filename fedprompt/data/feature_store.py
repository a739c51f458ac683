"""A folder of features: bounded, shared by threads and processes, never a reason to stop training."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import time
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from fedprompt.data.feature_file import file_parts, map_features
from fedprompt.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from fedprompt.data.cache import FeatureKey

__all__ = ["FeatureStore"]

_LOG = logging.getLogger("fedprompt.cache")
_FILE = re.compile(r"[0-9a-f]{64}\.safetensors")
_PARTIAL = re.compile(r"\.[0-9a-f]{64}\..+\.partial")
_STALE = 3600  # seconds after which a partial file belongs to a process that was killed
_SHARE = 16  # of the limit: what is freed at once, and what is written between two looks at the folder


class FeatureStore:
    """Features in a folder, one file per key, back as memory maps; the files used longest ago leave first.

    The features derive from patients' images. The folder belongs to the site, is made with mode 0700 and its
    files with 0600, so that no other user reads them; it can be deleted at any time, also while it is in use
    (but no file may be edited in place). A folder that cannot be written, or a full disk, gives one warning
    in the log `fedprompt.cache`; from then on nothing more is written. Foreign files are left alone.

    Args:
        folder: Made where it is missing. Threads and processes may share it.
        limit: Bytes that the files may take. What is alone larger is not written. The order of use is the
            files' time of modification. Each further process that writes may exceed the limit by a sixteenth,
            or by one file that is larger than that.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._writable = True
        self._used = 0  # bytes of all files, as far as this process knows
        self._unseen = 0  # bytes written since it last looked
        self._last = 0
        self._lock = Lock()
        self._clock = Lock()
        try:
            self._make_folder()
            self._remove_stale()
            self._look(0)
        except OSError as error:
            self._give_up(error)

    def load(self, key: FeatureKey) -> tuple[Tensor, ...] | None:
        """The features of `key` on the CPU, mapped; None where there are none or the file is damaged."""
        try:
            features = map_features(self._path(key), key)
        except FileNotFoundError:
            return None
        except (OSError, DataError) as error:
            _LOG.info("features are computed again: %s", error)
            return None
        self.touch(key)
        return features

    def save(self, key: FeatureKey, features: tuple[Tensor, ...]) -> set[str]:
        """Writes the features where there is room to make; a reader sees the whole file or none.

        Returns:
            Names (`FeatureKey.name`) of those that had to leave for them.
        """
        if not self._writable or (parts := file_parts(key, features)) is None:
            return set()
        size = sum(len(part) for part in parts)
        if size > self.limit:
            return set()
        left: set[str] = set()
        with self._lock:
            try:
                left = self._make_room(size)
                self._write(self._path(key), parts)
            except FileNotFoundError:
                return left  # somebody is deleting the folder; the next one makes it anew
            except OSError as error:
                self._give_up(error)
        return left

    def touch(self, key: FeatureKey) -> None:
        """Marks the features of `key` as used just now."""
        try:
            self._mark(self._path(key))
        except OSError:
            return  # it left, or belongs to someone else

    def _path(self, key: FeatureKey) -> Path:
        return self.folder / f"{key.name}.safetensors"

    def _mark(self, path: Path) -> None:
        with self._clock:  # two uses never get the same time
            self._last = now = max(time.time_ns(), self._last + 1)
        os.utime(path, ns=(now, now))

    def _make_folder(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _write(self, path: Path, parts: list[bytes | memoryview]) -> None:
        self._make_folder()
        # mkstemp gives mode 0600
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".partial", dir=self.folder)
        partial = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                for part in parts:
                    file.write(part)
            self._mark(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _make_room(self, size: int) -> set[str]:
        self._used += size
        self._unseen += size
        if self._used <= self.limit and self._unseen <= self.limit // _SHARE:
            return set()
        return self._look(size)

    def _look(self, size: int) -> set[str]:
        """Counts the files, and where they and `size` bytes more exceed the limit, deletes the oldest."""
        files = []
        for path in self._files(_FILE):
            try:
                state = path.stat()
            except FileNotFoundError:  # another process was faster
                continue
            files.append((state.st_mtime_ns, path, state.st_size))
        used = size + sum(each for _, _, each in files)
        left: set[str] = set()
        if used > self.limit:
            for _, path, each in sorted(files):
                path.unlink(missing_ok=True)
                left.add(path.stem)
                used -= each
                if used <= self.limit - self.limit // _SHARE:
                    break
        self._used = used
        self._unseen = size
        return left

    def _remove_stale(self) -> None:
        for path in self._files(_PARTIAL):
            try:
                if path.stat().st_mtime < time.time() - _STALE:
                    path.unlink()
            except FileNotFoundError:
                continue

    def _files(self, pattern: re.Pattern[str]) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [path for path in self.folder.iterdir() if pattern.fullmatch(path.name)]

    def _give_up(self, error: OSError) -> None:
        if self._writable:
            self._writable = False
            _LOG.warning("features are kept in memory alone: %s cannot be written (%s)", self.folder, error)
