"""One stream of the adaptation service: image files in, replies out, and nothing is lost in a kill."""

from __future__ import annotations

import base64
import hashlib
import io
import logging
from typing import Any

import numpy as np
from PIL import Image

from client import adaptation_pb2 as messages
from fedprompt.adaptation.adapter import Adapted, Adapter
from fedprompt.adaptation.state import StreamState
from fedprompt.adaptation.stream_files import class_numbers, network_input
from fedprompt.data.images import picture_from_bytes
from fedprompt.errors import ConfigurationError, DataError

__all__ = ["AdaptationStream", "UnusableState"]

_log = logging.getLogger("fedprompt.site")

_SUFFIXES = (".nii", ".nii.gz", ".dcm", ".dicom")  # the others are told by their bytes
_UNUSABLE = "the image cannot be used: expected one 2-D slice as PNG, JPEG, TIFF, DICOM or NIfTI file"


class UnusableState(DataError):
    """What is stored of a stream cannot be used."""

    default_public = (
        "the stored state is damaged or of another key, network or method; the log of the service says which"
    )


class AdaptationStream:
    """Answers the images of one stream in order.

    The state is saved before a reply is given, together with the reply. So a reply that got lost on its way
    can be asked for again, and a stream that is cut off anywhere goes on as if nothing had happened.

    Args:
        adapter: New, of the stream's method; it gets the stored state.
        state: Where the stream is kept, held by this one alone; None keeps it in memory.
        pixels: Refuse larger images.

    Attributes:
        images: Answered so far, also in earlier calls.

    Raises:
        UnusableState: The stored state is of another key, network or method, or damaged.
    """

    def __init__(self, adapter: Adapter, state: StreamState | None, *, pixels: int) -> None:
        self._adapter = adapter
        self._state = state
        self._pixels = pixels
        self.images = 0
        self._last: tuple[str, bytes] | None = None  # hash of the last image, and its reply
        try:
            stored = None if state is None else state.load()
            if stored is not None:
                self._restore(*stored)
        except DataError as error:
            raise UnusableState(str(error)) from None

    def answer(self, image: messages.Image) -> messages.Adapted:
        """The reply to one image; one that cannot be used gets a reason instead of a mask.

        Raises:
            ConfigurationError: Its number is neither the next one nor that of the last image.
            RunError: The state cannot be written.
        """
        digest = hashlib.sha256(image.content).hexdigest()
        number = image.number if image.HasField("number") else self.images
        if number == self.images - 1 and self._last is not None and self._last[0] == digest:
            return messages.Adapted.FromString(self._last[1])  # type: ignore[no-any-return]
        if number != self.images:
            sentence = f"expected image number {self.images}, got number {number}"
            raise ConfigurationError(sentence, public=sentence)
        reply = self._adapted(image)
        reply.number = number
        self.images += 1
        self._last = digest, reply.SerializeToString()
        if self._state is not None:
            arrays, metadata = self._adapter.state()
            self._state.save(arrays, {"adapter": metadata, "service": self._kept()})
        return reply

    def _adapted(self, image: messages.Image) -> messages.Adapted:
        try:
            picture = picture_from_bytes(_name(image.suffix), image.content, pixels=self._pixels)
            adapted = self._adapter(network_input(picture, self._adapter.network))
        except DataError as error:
            _log.warning("image %d of a stream: %s", self.images, error)
            return messages.Adapted(reason=_UNUSABLE)
        height, width = picture.array.shape[:2]
        return _reply(adapted, class_numbers(adapted.probabilities, height, width))

    def _kept(self) -> dict[str, Any]:
        assert self._last is not None  # noqa: S101 - for the type checker
        digest, reply = self._last
        return {"images": self.images, "sha256": digest, "reply": base64.b64encode(reply).decode()}

    def _restore(self, arrays: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
        try:
            adapter, kept = metadata["adapter"], metadata["service"]
        except KeyError as error:
            raise DataError(f"state: expected one of the service, got one without {error}") from None
        self._adapter.restore(arrays, adapter)
        self.images = int(kept["images"])
        self._last = kept["sha256"], base64.b64decode(kept["reply"])


def _name(suffix: str) -> str:
    """A file name of which nothing but the format comes from the caller."""
    return "image" + next((known for known in _SUFFIXES if suffix.lower().endswith(known)), "")


def _reply(adapted: Adapted, mask: np.ndarray) -> messages.Adapted:
    png = io.BytesIO()
    Image.fromarray(mask).save(png, "PNG")
    return messages.Adapted(
        mask=png.getvalue(),
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
    )
