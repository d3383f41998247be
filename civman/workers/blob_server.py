"""Serves the files of one job to workers on other machines, which request them by digest and send a token.

A worker can also request a range of a file.

Workers verify what they receive, so they need not trust this server; the token keeps everyone else from reading files.
"""

import re
import secrets
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar, Self

from civman.domain.digests import Sha256

_PIECE = 1 << 20
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class BlobServer:
    """A context manager that serves the given files on all interfaces, at `GET /blobs/sha256/<digest>`."""

    def __init__(self, files: Mapping[Sha256, Path], host: str) -> None:
        """`host`: the name or IP address under which other machines can reach this one."""
        self.token = secrets.token_urlsafe(24)

        handler = type("Handler", (_Handler,), {"paths": dict(files), "token": self.token})
        self._server = ThreadingHTTPServer(("", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="blobs", daemon=True)
        self.origin = f"{host}:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    paths: ClassVar[dict[Sha256, Path]]
    token: ClassVar[str]

    def do_GET(self) -> None:  # http.server requires this name
        """Send a file, or the requested range of a file."""
        if not secrets.compare_digest(self.headers.get("Authorization", ""), f"Bearer {self.token}"):
            self._refuse(HTTPStatus.UNAUTHORIZED)
            return
        path = self.paths.get(Sha256(self.path.removeprefix("/blobs/sha256/")))
        if path is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        with path.open("rb") as file:
            size = file.seek(0, 2)
            asked = _RANGE.fullmatch(self.headers.get("Range", ""))
            start = int(asked[1]) if asked else 0
            end = min(int(asked[2]) + 1, size) if asked and asked[2] else size
            if start >= end:
                self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, size)
                return
            self.send_response(HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK)
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
            self.send_header("Content-Length", str(end - start))
            self.send_header("Content-Type", "application/octet-stream")
            self.end_headers()
            file.seek(start)
            while start < end and (piece := file.read(min(_PIECE, end - start))):
                self.wfile.write(piece)
                start += len(piece)

    def _refuse(self, status: HTTPStatus, size: int | None = None) -> None:
        self.send_response(status)
        if size is not None:
            self.send_header("Content-Range", f"bytes */{size}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # http.server's name
        """Discard the message: requests are not logged."""
