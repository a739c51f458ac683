"""A stream of image files adapted one after the other: masks, a table, a drift report; it can go on later.

Per image the mask comes first, then the state, then the line of the table. Whatever a killed process leaves
behind, the next one with the same images writes the same bytes as one that was never disturbed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fedprompt.adaptation.adapter import Adapter
from fedprompt.adaptation.state import StreamState
from fedprompt.adaptation.stream_files import (
    check_stems,
    class_numbers,
    file_digest,
    find_truths,
    image_stem,
    mask_file,
    mask_name,
    network_input,
    read_truth,
)
from fedprompt.adaptation.stream_rows import ResultsFile, Row, summarised
from fedprompt.artifacts import write_atomic, write_json
from fedprompt.data.images import read_picture
from fedprompt.errors import ConfigurationError, DataError, RunError
from fedprompt.training.metrics import dice_per_class

__all__ = ["DRIFT", "MASKS", "RESULTS", "SUMMARY", "Stream"]

MASKS = "masks"
RESULTS = "results.csv"
SUMMARY = "summary.json"
DRIFT = "drift.html"


class Stream:
    """Iterating adapts the images that are left and gives a row for each, once its mask and line are on disk.

    An image that cannot be read or segmented gets a line with the reason and no mask, and the stream goes on.
    Masks have the name of their image, so two images of one name are refused. Nothing is written before the
    first step of the iteration.

    Args:
        images: Files in the order of the stream.
        adapter: A new one.
        out: Folder for `masks/`, `results.csv` and what `finish` writes; made where it is missing.
        state: Of the stream; without it the folder must be new, and nothing can be gone on with.
        truth: Folder with a mask per image, to tell Dice without and with adaptation.

    Attributes:
        done: Number of images that have a line.

    Raises:
        ConfigurationError: The folder holds something else, or results that the state does not know.
        DataError: Two images have one name, a truth is missing or no mask, or the state is of another
            network.
    """

    def __init__(
        self,
        images: Sequence[Path],
        adapter: Adapter,
        out: Path,
        *,
        state: StreamState | None = None,
        truth: Path | None = None,
    ) -> None:
        check_stems(images)
        if adapter.network.channels not in (1, 3):
            raise ConfigurationError(
                f"network: expected 1 or 3 channels, as image files have, got {adapter.network.channels}"
            )
        self._adapter = adapter
        self._classes = adapter.network.classes
        self._baseline = None if truth is None else Adapter(adapter.network, "none")
        self._truths = {} if truth is None else find_truths(images, truth)
        self._out = out
        self._state = state
        self._results = ResultsFile(out / RESULTS, None if truth is None else self._classes[1:])
        if state is None and self._results.path.exists():
            raise ConfigurationError(
                f"{out}: expected a folder without {RESULTS}, got one with it; a stream without --state "
                "cannot go on"
            )
        lines = self._results.texts()
        self._kept_line = self._restored(lines)
        if self._kept_line is not None:
            lines.append(self._kept_line)
        known = {image_stem(Path(line["image"])): line for line in lines}
        self._left = deque(image for image in images if not self._has_line(image, known))
        self.done = len(known)
        self._check_folder()
        for image in self._left if self._truths else ():
            read_truth(self._truths[image], len(self._classes))

    def __len__(self) -> int:
        """Number of images left."""
        return len(self._left)

    def __iter__(self) -> Iterator[Row]:
        try:
            (self._out / MASKS).mkdir(parents=True, exist_ok=True)
            self._results.begin()
            if self._kept_line is not None:
                self._results.append(self._kept_line)
                self._kept_line = None
        except OSError as error:
            raise ConfigurationError(
                f"{self._out}: expected a folder that can be written ({error.strerror})"
            ) from None
        while self._left:
            yield self._step(self._left[0])

    def finish(self) -> dict[str, Any]:
        """Writes `summary.json` and `drift.html` over all lines of the table; returns the summary.

        Raises:
            RunError: They cannot be written.
        """
        from fedprompt.report.drift import render_drift  # slow import: matplotlib

        rows = self._results.rows()
        summary = summarised(rows)
        with self._writing():
            write_json(self._out / SUMMARY, summary, durable=False)
            write_atomic(
                self._out / DRIFT, render_drift(rows, summary).encode(errors="replace"), durable=False
            )
        return summary

    def _restored(self, lines: list[dict[str, str]]) -> dict[str, str] | None:
        """Brings the adapter to where the stream was; gives the line that a killed process did not write."""
        stored = None if self._state is None else self._state.load()
        if self._state is None or stored is None:
            if lines:
                raise ConfigurationError(
                    f"{self._results.path}: expected the results of this stream, got {len(lines)} lines of "
                    "one that the state does not know"
                )
            return None
        arrays, metadata = stored
        try:
            adapter, mask, out = metadata["adapter"], metadata["mask"], metadata["out"]
            line: dict[str, str] = metadata["line"]
            self._adapter.restore(arrays, adapter)
        except KeyError as error:
            raise DataError(
                f"{self._state.path}: expected the state of a stream of files, got one without {error}"
            ) from None
        except DataError as error:
            raise DataError(f"{self._state.path}: {str(error).removeprefix('state: ')}") from None
        here = out == str(self._out.resolve()) and self._results.path.exists()
        whole = not mask or (self._out / MASKS / mask).exists()
        missing = all(line["image"] != each["image"] for each in lines)
        return line if here and whole and missing else None

    def _has_line(self, image: Path, known: dict[str, dict[str, str]]) -> bool:
        line = known.get(image_stem(image))
        if line is None:
            return False
        if (line["image"], line["sha256"]) != (image.name, file_digest(image)):
            raise ConfigurationError(
                f"{self._results.path}: expected no line for {image}, got one of another image, "
                f"{line['image']}; masks of different images of one name need different folders"
            )
        return True

    def _check_folder(self) -> None:
        """Refuses to write over what is not of this stream, such as masks that somebody drew."""
        if self._results.path.exists():
            return
        ours = [self._out / SUMMARY, self._out / DRIFT]
        for path in [*ours, *(self._out / MASKS / mask_name(image) for image in self._left)]:
            if path.exists():
                raise ConfigurationError(
                    f"{self._out}: expected a new folder or that of a stream, got one with {path.name} in it"
                )

    def _step(self, image: Path) -> Row:
        row, content = self._adapted(image)
        name = None if content is None else mask_name(image)
        line = row.texts()
        with self._writing():
            if name is not None and content is not None:
                write_atomic(self._out / MASKS / name, content, durable=False)
            if self._state is not None:
                arrays, metadata = self._adapter.state()
                out = str(self._out.resolve())
                kept = {"adapter": metadata, "line": line, "mask": name, "out": out}
                self._state.save(arrays, kept)
            self._results.append(line)
        self._left.popleft()
        self.done += 1
        return row

    def _adapted(self, image: Path) -> tuple[Row, bytes | None]:
        """The row of an image and its mask as a file; None where there can be no mask."""
        try:
            picture = read_picture(image)
        except DataError as error:
            return _failed(image, error, file_digest(image)), None
        height, width = picture.array.shape[:2]
        truth = self._truth(image, (height, width))
        pixels = network_input(picture, self._adapter.network)
        try:
            adapted = self._adapter(pixels)
            mask = class_numbers(adapted.probabilities, height, width)
            content = mask_file(image, mask)
        except DataError as error:
            return _failed(image, error, picture.sha256), None
        before: dict[str, float] = {}
        after: dict[str, float] = {}
        if truth is not None and self._baseline is not None:
            unadapted = class_numbers(self._baseline(pixels).probabilities, height, width)
            before, after = self._dice(unadapted, truth), self._dice(mask, truth)
        row = Row(
            image=image.name,
            accepted=adapted.accepted,
            reason=adapted.reason,
            loss_before=adapted.loss_before,
            loss_after=adapted.loss_after,
            entropy=adapted.entropy,
            agreement=adapted.agreement,
            foreground=float((mask > 0).mean()),
            reused=adapted.reused,
            restarted=adapted.restarted,
            seconds=adapted.seconds,
            sha256=picture.sha256,
            dice_before=before,
            dice_after=after,
        )
        return row, content

    def _truth(self, image: Path, shape: tuple[int, int]) -> np.ndarray | None:
        if image not in self._truths:
            return None
        truth = read_truth(self._truths[image], len(self._classes))
        if truth.shape != shape:
            raise DataError(
                f"{self._truths[image]}: expected {shape[1]}×{shape[0]} pixels as in {image}, got "
                f"{truth.shape[1]}×{truth.shape[0]}"
            )
        return truth

    def _dice(self, mask: np.ndarray, truth: np.ndarray) -> dict[str, float]:
        values = dice_per_class(mask, truth, len(self._classes))
        return {name: float(value) for name, value in zip(self._classes[1:], values, strict=True)}

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns a full disk or a folder that cannot be written into one sentence."""
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self._out}: cannot be written ({error.strerror}); {self.done} images are done and keep "
                f"their masks and lines, {len(self._left)} are left"
            ) from None


def _failed(image: Path, error: DataError, sha256: str) -> Row:
    """The row of an image without a mask."""
    reason = " ".join(str(error).removeprefix(f"{image}: ").split())
    return Row(image=image.name, accepted=False, reason=reason, sha256=sha256)
