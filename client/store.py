"""A site's prompt store: personal tensors and optimiser state per round, on the site's own disk."""

from __future__ import annotations

import re
from pathlib import Path

from fedprompt.artifacts import read_arrays, write_arrays
from fedprompt.errors import DataError
from fedprompt.manifest import Arrays

__all__ = ["PromptStore"]

_NAME = re.compile(r"round-(\d{6})\.safetensors")
_KEPT = 2  # the last round, and the one before it for a server that lost the last


class PromptStore:
    """Keeps what a round leaves at the site, so that any process may die at any time.

    A server that is resumed may ask for a round again; the state before that round is still there, because
    the last two are kept.

    Args:
        folder: Where the files lie.
        study: Digest of the study; the state of another study is refused.
        durable: fsync every file. A simulation that only needs to survive a killed process goes without.
    """

    def __init__(self, folder: Path, study: str, *, durable: bool = True) -> None:
        self._folder = folder
        self._study = study
        self._durable = durable

    def load(self, up_to: int) -> tuple[Arrays, Arrays]:
        """Personal tensors and optimiser state after the last stored round that is not later than `up_to`.

        Both are empty where there is none.

        Raises:
            DataError: The stored state is damaged or of another study.
        """
        rounds = [number for number in self._rounds() if number <= up_to]
        if not rounds:
            return {}, {}
        path = self._path(rounds[-1])
        arrays, metadata = read_arrays(path)
        if metadata["study"] != self._study:
            raise DataError(
                f"{path}: expected the state of study {self._study[:12]}, got {metadata['study'][:12]}"
            )
        return _unprefixed(arrays, "personal/"), _unprefixed(arrays, "optimiser/")

    def require(self, round: int) -> None:
        """Raises `DataError` that names the file unless the state after this round is there and whole."""
        read_arrays(self._path(round))

    def save(self, round: int, personal: Arrays, optimiser: Arrays) -> None:
        """Stores the state after a round and drops all but the last two."""
        arrays = {f"personal/{name}": array for name, array in personal.items()}
        arrays |= {f"optimiser/{name}": array for name, array in optimiser.items()}
        metadata = {"study": self._study, "round": round}
        write_arrays(self._path(round), arrays, metadata, durable=self._durable)
        rounds = self._rounds()
        kept = [number for number in rounds if number <= round][-_KEPT:]
        for number in rounds:
            if number not in kept:
                self._path(number).unlink()

    def _path(self, round: int) -> Path:
        return self._folder / f"round-{round:06d}.safetensors"

    def _rounds(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        matches = (_NAME.fullmatch(path.name) for path in self._folder.iterdir())
        return sorted(int(match[1]) for match in matches if match)


def _unprefixed(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
