"""A hub of one folder of models on this machine, as `huggingface_hub` asks for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

__all__ = ["COMMIT", "FakeHub"]

COMMIT = "c" * 40


class FakeHub:
    """Serves `root/OWNER/MODEL` at `url`; `asked` has the path of every request."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []
        self.gated: set[str] = set()
        self.url = ""

    @contextmanager
    def running(self) -> Iterator[FakeHub]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def downloads(self) -> set[str]:
        """Names of the files that were fetched."""
        return {path.rpartition("/")[2] for path in self.asked if "/resolve/" in path}


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, *words: object) -> None:
            """Says nothing."""

        def _answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            if body:
                hub.asked.append(path)
            parts = path.strip("/").split("/")
            model = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
            folder = hub.root / model
            if not folder.is_dir():
                return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)
            if model in hub.gated:
                return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"}, body=body)
            if parts[0] != "api":
                return self._file(folder / "/".join(parts[4:]), body=body)
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            if "tree" in parts:
                found: object = [
                    {
                        "type": "file",
                        "path": file.relative_to(folder).as_posix(),
                        "size": file.stat().st_size,
                        "oid": hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest(),
                    }
                    for file in files
                ]
            else:
                siblings = [{"rfilename": file.relative_to(folder).as_posix()} for file in files]
                found = {"id": model, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}
            self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json"}, body=body)
            return None

        def _file(self, file: Path, *, body: bool) -> None:
            if not file.is_file():
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body=body)
            content = file.read_bytes()
            mark = hashlib.sha256(content).hexdigest()
            self._send(200, content, {"ETag": f'"{mark}"', "X-Repo-Commit": COMMIT}, body=body)
            return None

        def _send(self, status: int, content: bytes, headers: dict[str, str], *, body: bool) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    return Handler
