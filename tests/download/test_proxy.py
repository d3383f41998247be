"""Storage over TLS and through a CONNECT proxy. Loopback is never proxied, so the host has a public name here."""

import contextlib
import functools
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from civman.civitai.storage_connection import Network, StorageConnection
from civman.errors import CivmanError, ConfigError, NetworkError

HOST = "files.civman.example"
DATA = bytes(range(256)) * 4000
NETWORK = Network("civman-tests/1", stall_s=2.0, connect_s=2.0)


class _File(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        low, _, high = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = DATA[int(low) : int(high or len(DATA)) + 1]
        self.server.hosts.append(self.headers["Host"])
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {low}-{int(low) + len(part) - 1}/{len(DATA)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        with contextlib.suppress(OSError):
            if self.path == "/slow":
                self.wfile.write(part[:1000])
                self.wfile.flush()
                self.server.release.wait(20)
            else:
                self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _File)
        self.hosts: list[str] = []
        self.release = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class Proxy:
    """Leads every CONNECT to one port; `status` is what it answers."""

    def __init__(self, target_port: int) -> None:
        self.asked: list[str] = []
        self.status = "200 Connection established"
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096)
        self.asked.append(head.decode())
        client.sendall(f"HTTP/1.1 {self.status}\r\nVia: test\r\n\r\n".encode())
        if not self.status.startswith("2"):
            client.close()
            return
        target = socket.create_connection(("127.0.0.1", self._target_port))
        back = threading.Thread(target=_pump, args=(target, client), daemon=True)
        back.start()
        _pump(client, target)
        back.join()
        client.close()
        target.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}", "-keyout", str(path), "-out", f"{path}.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


@pytest.fixture
def storage(certificate: Path) -> Iterator[_Server]:
    server = _Server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def proxy(storage: _Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    running = Proxy(storage.server_address[1])
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:p%40ss@127.0.0.1:{running.port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    yield running
    running.close()


@pytest.fixture
def connection(certificate: Path) -> Iterator[StorageConnection]:
    context = functools.partial(ssl.create_default_context, cafile=f"{certificate}.crt")
    made = StorageConnection(NETWORK, context)
    yield made
    made.close()


def test_bytes_come_through_a_proxy_and_one_connection_serves_many_ranges(
    proxy: Proxy, storage: _Server, connection: StorageConnection
) -> None:
    got = [
        connection.open(f"https://{HOST}/file", start=start, end=start + 300_000).read_all(1 << 20)
        for start in (0, 300_000)
    ]

    assert b"".join(got) == DATA[:600_000]
    assert len(proxy.asked) == 1
    assert proxy.asked[0].startswith(f"CONNECT {HOST}:443 HTTP/1.1\r\n")
    assert "Proxy-Authorization: Basic dXNlcjpwQHNz" in proxy.asked[0]
    assert storage.hosts == [HOST, HOST]  # without the port: signed addresses sign this header


def test_a_proxy_that_refuses_is_named(proxy: Proxy, connection: StorageConnection) -> None:
    proxy.status = "407 Proxy Authentication Required"

    with pytest.raises(NetworkError, match="407 Proxy Authentication Required") as refused:
        connection.open(f"https://{HOST}/file", start=0, end=10)

    assert refused.value.code == "proxy"
    assert "p@ss" not in refused.value.message + refused.value.hint


def test_a_proxy_that_is_not_there_is_named(
    connection: StorageConnection, monkeypatch: pytest.MonkeyPatch, certificate: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")

    with pytest.raises(NetworkError, match="proxy") as refused:
        connection.open(f"https://{HOST}/file", start=0, end=10)

    assert refused.value.code == "proxy"


def test_a_kind_of_proxy_that_is_not_supported_is_refused_with_the_way_out(
    connection: StorageConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks4://127.0.0.1:1")

    with pytest.raises(ConfigError, match="socks4") as refused:
        connection.open(f"https://{HOST}/file", start=0, end=10)

    assert "socks5://" in refused.value.hint


class SocksProxy(Proxy):
    """Speaks SOCKS5 (RFC 1928, RFC 1929); `reply` is what it answers to a request to connect."""

    reply = 0

    def _serve(self, client: socket.socket) -> None:
        with client:
            methods = client.recv(2 + 255)
            assert methods[0] == 5
            client.sendall(b"\x05\x02" if 2 in methods[2:] else b"\x05\x00")
            if 2 in methods[2:]:
                login = client.recv(513)
                self.asked.append(login[2 : 2 + login[1]].decode() + ":" + login[3 + login[1] :].decode())
                client.sendall(b"\x01\x00")
            request = client.recv(300)
            name = request[5 : 5 + request[4]].decode()
            self.asked.append(f"{name}:{int.from_bytes(request[-2:], 'big')}")
            client.sendall(bytes([5, self.reply, 0, 1]) + bytes(6))
            if self.reply:
                return
            with socket.create_connection(("127.0.0.1", self._target_port)) as target:
                back = threading.Thread(target=_pump, args=(target, client), daemon=True)
                back.start()
                _pump(client, target)
                back.join()


@pytest.fixture
def socks(storage: _Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[SocksProxy]:
    running = SocksProxy(storage.server_address[1])
    monkeypatch.setenv("HTTPS_PROXY", f"socks5h://127.0.0.1:{running.port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    yield running
    running.close()


def test_bytes_come_through_a_socks_proxy_that_looks_up_the_name(
    socks: SocksProxy, connection: StorageConnection
) -> None:
    assert connection.open(f"https://{HOST}/file", start=0, end=300_000).read_all(1 << 20) == DATA[:300_000]
    assert socks.asked == [f"{HOST}:443"]


def test_a_socks_proxy_gets_user_and_password(
    socks: SocksProxy, connection: StorageConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"socks5://user:p%40ss@127.0.0.1:{socks.port}")

    assert connection.open(f"https://{HOST}/file", start=0, end=10).read_all(100) == DATA[:10]
    assert socks.asked[0] == "user:p@ss"


def test_a_socks_proxy_that_refuses_says_why(socks: SocksProxy, connection: StorageConnection) -> None:
    socks.reply = 4

    with pytest.raises(NetworkError, match="the host is unreachable") as refused:
        connection.open(f"https://{HOST}/file", start=0, end=10)

    assert refused.value.code == "proxy"


def test_a_certificate_that_nobody_vouches_for_is_refused(proxy: Proxy) -> None:
    connection = StorageConnection(NETWORK, ssl.create_default_context)

    with pytest.raises(NetworkError, match="not trusted") as refused:
        connection.open(f"https://{HOST}/file", start=0, end=10)

    assert refused.value.code == "tls"
    connection.close()


def test_an_aborted_tls_connection_fails_at_once_and_yields_no_byte_more(
    proxy: Proxy, connection: StorageConnection
) -> None:
    body = connection.open(f"https://{HOST}/slow", start=0, end=500_000)
    view = memoryview(bytearray(1 << 16))
    got = bytearray()
    errors: list[CivmanError] = []

    def read() -> None:
        try:
            while True:
                got.extend(view[: body.read_into(view)])
        except CivmanError as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    deadline = time.monotonic() + 5
    while len(got) < 1000 and time.monotonic() < deadline:
        time.sleep(0.01)
    began = time.monotonic()
    connection.abort()
    reader.join(5)

    assert [error.code for error in errors] == ["connection-cut"]
    assert time.monotonic() - began < 1
    assert bytes(got) == DATA[:1000]
    with pytest.raises(NetworkError):
        connection.open(f"https://{HOST}/file", start=0, end=10)
