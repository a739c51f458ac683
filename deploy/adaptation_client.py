"""Streams the images of a folder to a site's adaptation service and writes their masks.

    python deploy/adaptation_client.py SOCKET STREAM IMAGES MASKS

Started again after it was cut off, it goes on at the first image that has no mask yet. The images of a stream
are those of the folder by name, so new ones need names that come later.
"""

import sys
from pathlib import Path

from client.adaptation_client import AdaptationClient
from fedprompt.errors import RunError


def main(socket: str, name: str, images: Path, masks: Path) -> None:
    """Adapts what has no mask yet; one line per image."""
    masks.mkdir(parents=True, exist_ok=True)
    with AdaptationClient(socket) as client, client.stream(name) as stream:
        for number, path in enumerate(sorted(images.iterdir())):
            mask = masks / f"{path.name}.png"
            if mask.exists() or number < stream.images - 1:
                continue
            reply = stream.adapt(path.read_bytes(), "".join(path.suffixes), number=number)
            if reply.mask:
                partial = mask.with_suffix(".partial")
                partial.write_bytes(reply.mask)
                partial.replace(mask)
            state = "adapted" if reply.accepted else f"not adapted ({reply.reason})"
            print(f"{path.name}: {state}, {reply.seconds:.2f} s")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(f"usage: {sys.argv[0]} SOCKET STREAM IMAGES MASKS")
    try:
        main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    except (RunError, OSError) as error:
        sys.exit(f"error: {error}")
