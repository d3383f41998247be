"""A CivitAI-compatible server on loopback: one port for the site, one for its storage.

`CivitaiServer.respond` writes each response to the connection; the tests override it in a subclass to cause faults.
"""

import contextlib
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from http.client import responses
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from civman.demo.api_server import Api
from civman.demo.demo_catalog import Catalogue
from civman.demo.demo_models import demo_catalogue
from civman.demo.download_endpoint import Downloads
from civman.demo.enums import Vocabulary
from civman.demo.http_messages import Answer, Request
from civman.demo.storage_server import Storage

DEMO_TOKEN = "civman-demo-key"
"""The API key that the demo accepts. It is not a secret: it gives access to nothing but the demo."""


def utc_now() -> datetime:
    """Return the current UTC time."""
    return datetime.now(UTC)


class Wire:
    """The connection that a response is written to."""

    def __init__(self, connection: socket.socket, request: Request, stopped: threading.Event) -> None:
        self._connection = connection
        self._request = request
        self._stopped = stopped
        self.must_close = False
        """Whether the connection is closed after this response."""

    def send(self, answer: Answer) -> None:
        """Send a complete, well-formed response."""
        self.head(answer.status, {"Content-Length": str(len(answer.body)), **answer.headers})
        self.data(answer.body)

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the status line and exactly these headers."""
        phrase = responses.get(status, "Unknown")
        lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        self.raw("\r\n".join(lines).encode("latin-1"))

    def data(self, data: bytes | memoryview) -> None:
        """Send bytes of the body; nothing in response to HEAD."""
        if self._request.method != "HEAD":
            self.raw(data)

    def raw(self, data: bytes | memoryview) -> None:
        """Send bytes unchanged. Raises: OSError: the client has disconnected."""
        self._connection.sendall(data)

    def wait(self, seconds: float) -> None:
        """Wait for `seconds`, or until the server stops."""
        self._stopped.wait(seconds)

    @property
    def is_stopping(self) -> bool:
        """Whether the server is being stopped, which should end responses that are otherwise endless."""
        return self._stopped.is_set()

    def hang_up(self) -> None:
        """Close the connection normally, even in the middle of a response."""
        self.must_close = True
        self._connection.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """Close the connection with a TCP reset."""
        self.must_close = True
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.close(self._connection.detach())


class CivitaiServer:
    """CivitAI's API and storage on two loopback ports. A context manager that starts and stops the server.

    `requests` lists the received requests in order. `token` is the only valid key; `granted` contains the ids of
    versions whose early access the key's owner has bought. A port of 0 lets the system choose one. `clock` returns the
    server's time.
    """

    def __init__(
        self,
        catalogue: Catalogue | None = None,
        port: int = 0,
        storage_port: int = 0,
        *,
        token: str = DEMO_TOKEN,
        granted: Collection[int] = (),
        clock: Callable[[], datetime] = utc_now,
        url_lifetime_s: int = 86400,
    ) -> None:
        self.catalogue = demo_catalogue() if catalogue is None else catalogue
        self.token = token
        self.requests: list[Request] = []
        self._stopped = threading.Event()
        self._listeners = {name: _Listener(self, name, at) for name, at in (("api", port), ("storage", storage_port))}
        self._threads: list[threading.Thread] = []
        self.storage = Storage(self.catalogue, clock, url_lifetime_s)
        vocabulary = Vocabulary.load()
        downloads = Downloads(
            self.catalogue, vocabulary, self.storage, self.storage_url, clock, token, frozenset(granted)
        )
        self._api = Api(self.catalogue, vocabulary, downloads, clock, self.url)

    @property
    def url(self) -> str:
        """The URL of the site: `http://127.0.0.1:port`, without a trailing slash."""
        return self._listeners["api"].url

    @property
    def storage_url(self) -> str:
        """The URL of the storage server."""
        return self._listeners["storage"].url

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` has begun."""
        return self._stopped.is_set()

    def start(self) -> Self:
        """Start serving in background threads."""
        for listener in self._listeners.values():
            thread = threading.Thread(target=listener.accept_until_stopped, daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def stop(self) -> None:
        """Close all connections and release the ports."""
        self._stopped.set()
        for listener, thread in zip(self._listeners.values(), self._threads, strict=False):
            listener.wake()
            thread.join()
            listener.close_connections()
        for listener in self._listeners.values():
            listener.server_close()
        self._threads.clear()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def requests_to(self, server: str, path: str = "") -> list[Request]:
        """List the received requests to "api" or "storage" whose path starts with `path`."""
        return [each for each in tuple(self.requests) if each.server == server and each.path.startswith(path)]

    def answer(self, request: Request) -> Answer:
        """Build the correct response to a request."""
        return self._api.answer(request) if request.server == "api" else self.storage.answer(request)

    def respond(self, request: Request, answer: Answer, wire: Wire) -> None:  # noqa: ARG002 - for those who override it
        """Write the response to the connection. A subclass may override this method to cause faults."""
        wire.send(answer)

    def exchange(self, request: Request, connection: socket.socket) -> bool:
        """Read one request, log it and respond. Returns whether the connection may be used again."""
        self.requests.append(request)
        wire = Wire(connection, request, self._stopped)
        self.respond(request, self.answer(request), wire)
        return not wire.must_close


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, owner: CivitaiServer, name: str, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Connection)
        self.owner = owner
        self.name = name
        self._connections: set[socket.socket] = set()
        self._workers: list[threading.Thread] = []
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def accept_until_stopped(self) -> None:
        """Accept connections until the server stops.

        Unlike `serve_forever` it does not poll, so stopping is immediate.
        """
        while True:
            try:
                connection, address = self.get_request()
            # retry: the client disconnected before it was accepted, or the process has no free file descriptor
            except OSError:
                time.sleep(0.01)
                continue
            if self.owner.is_stopping:
                connection.close()
                return
            self.process_request(connection, address)

    def wake(self) -> None:
        """Wake the accepting thread so that it notices that the server stops."""
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.server_address[1]), timeout=5).close()

    def process_request(self, request: "socket.socket | tuple[bytes, socket.socket]", client_address: object) -> None:
        assert isinstance(request, socket.socket)
        worker = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        with self._lock:
            self._connections.add(request)
            self._workers = [each for each in self._workers if each.is_alive()]
            self._workers.append(worker)
        worker.start()

    def shutdown_request(self, request: "socket.socket | tuple[bytes, socket.socket]") -> None:
        assert isinstance(request, socket.socket)
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        with self._lock:
            connections, workers = tuple(self._connections), tuple(self._workers)
        for connection in connections:
            with contextlib.suppress(OSError):  # the client may have closed the connection already
                connection.shutdown(socket.SHUT_RDWR)
        for worker in workers:
            worker.join(timeout=5)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore disconnected clients; print any other error, because it is a bug."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener
    disable_nagle_algorithm = True

    def serve(self) -> None:
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", "0")))
        request = Request(self.server.name, self.command, path, query, headers, body)
        if not self.server.owner.exchange(request, self.connection):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = serve  # noqa: N815 - names the base class looks up

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Print nothing: `CivitaiServer.requests` is the log."""
