"""A real HTTP server on loopback that gives canned answers in order and remembers what it was asked."""

import json
import socket
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

NOW = datetime(2026, 8, 15, 12, tzinfo=UTC)
TOKEN = "0123456789abcdef0123456789abcdef"


@dataclass
class Canned:
    status: int = 200
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    """Send only so many bytes of the body, then close."""


@dataclass
class Asked:
    method: str
    target: str
    headers: Message
    body: bytes

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def params(self) -> list[tuple[str, str]]:
        return parse_qsl(urlsplit(self.target).query, keep_blank_values=True)


class ScriptedServer:
    def __init__(self) -> None:
        self.script: list[Canned] = []
        self.asked: list[Asked] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def answers(self, *script: Canned | Any, status: int = 200) -> Self:
        """What to answer next, in order; the last one is repeated. A plain value is JSON with `status`."""
        self.script += [one if isinstance(one, Canned) else Canned(status, one) for one in script]
        return self

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                server.asked.append(Asked(self.command, self.path, self.headers, self.rfile.read(length)))
                canned = server.script.pop(0) if len(server.script) > 1 else server.script[0]
                is_bytes = isinstance(canned.body, bytes)
                body = canned.body if is_bytes else json.dumps(canned.body).encode()
                headers = {"Content-Type": "text/plain" if is_bytes else "application/json", **canned.headers}
                self.send_response_only(canned.status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body[: canned.cut_after])
                if canned.cut_after is not None:
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True

            do_GET = answer  # noqa: N815  # the names http.server looks for
            do_POST = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (ConnectionError, ValueError):
                    self.close_connection = True  # the client hung up, as some tests want it to

        return Handler
