"""Bulk bytes: one kept-alive connection that reads ranges of a file straight into a caller's buffer.

Beside httpx on purpose: on one core a 1 GB file takes 3.0-3.6 s through httpx streams and 1.4-1.7 s here, because
nothing is copied between the socket and the buffer that is written to disk. TLS settings are httpx's own.
"""

import base64
import http.client
import re
import socket
import ssl
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit

import httpx

from civman.civitai import redirects
from civman.civitai.causes import storage_cause
from civman.errors import BadAnswer, ConfigError, NetworkError

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_UNSATISFIED = re.compile(r"bytes \*/(\d+)")
_ERROR_BODY_BYTES = 1 << 16
_FIRST_READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Network:
    """How connections are made: who we are, how long silence may last (seconds), and where we may go."""

    user_agent: str
    stall_s: float = 20.0
    connect_s: float = 15.0
    loopback_allowed: bool = False
    token: str | None = field(default=None, repr=False)
    """Sent only to an address that says so, and never past its first hop."""


class Body:
    """The bytes of one answer, `[start, end)` of a file of `total_bytes` (None: the server did not say)."""

    def __init__(self, response: http.client.HTTPResponse, start: int, total_bytes: int | None, host: str) -> None:
        self.start = start
        self.total_bytes = total_bytes
        self.host = host
        self.is_partial = response.status == http.HTTPStatus.PARTIAL_CONTENT
        self.etag = response.headers.get("ETag")
        self.left_bytes = response.length
        self._response = response
        self._started = False

    def read_into(self, view: memoryview) -> int:
        """Put what has arrived into `view`, waiting for at least one byte; 0 at the end.

        Raises: NetworkError: cut short (`connection-cut`) or silent for `stall_s` (`stalled`).
        """
        if self.left_bytes is not None:
            view = view[: self.left_bytes]
        if not len(view):
            return 0
        try:
            count = self._read(view)
        except TimeoutError as error:
            raise NetworkError(f"`{self.host}` sends nothing any more", code="stalled", host=self.host) from error
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            # ValueError and AttributeError: another thread closed the connection under this read
            raise _cut(self.host, error) from error
        if self.left_bytes is not None:
            if count == 0:
                raise _cut(self.host, None)
            self.left_bytes -= count
            if self.left_bytes == 0:
                self._response.close()  # lets the connection be used again
        return count

    def read_all(self, most_bytes: int) -> bytes:
        """The whole body, for small things. Raises: NetworkError, BadAnswer: it is longer than `most_bytes`."""
        data = bytearray()
        view = memoryview(bytearray(_FIRST_READ_BYTES))
        while count := self.read_into(view):
            data += view[:count]
            if len(data) > most_bytes:
                raise BadAnswer(f"`{self.host}` sends more than {most_bytes:,} bytes", code="too-long", host=self.host)
        return bytes(data)

    def _read(self, view: memoryview) -> int:
        if self._response.chunked:
            return self._response.readinto(view[:_FIRST_READ_BYTES])
        if self._started:  # past http.client's buffer: from the socket into the caller's memory
            return int(self._response.fp.raw.readinto(view) or 0)
        wanted = min(len(view), _FIRST_READ_BYTES)
        data = self._response.fp.read1(wanted)
        self._started = len(data) < wanted
        view[: len(data)] = data
        return len(data)


class StorageConnection:
    """One connection to wherever a file lies, reused from range to range."""

    def __init__(self, network: Network, tls: Callable[[], ssl.SSLContext]) -> None:
        self._network = network
        self._tls = tls
        self._connection: http.client.HTTPConnection | None = None
        self._origin: tuple[str, str] | None = None
        self._body: Body | None = None

    def open(self, url: str, *, start: int, end: int | None, send_token: bool = False, etag: str | None = None) -> Body:
        """Ask for `[start, end)` (None: to the end) of what `url` leads to, following safe redirects.

        `etag` goes along as If-Range: a changed file comes back whole, from 0. A server without ranges does so too.

        Raises: NetworkError, NotAllowed, NotFound by what the server answered; UnsafeRedirect; BadAnswer: a web
            page, a compressed body or a range that was not asked for.
        """
        headers = {
            "User-Agent": self._network.user_agent,
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "Range": f"bytes={start}-{'' if end is None else end - 1}",
        }
        if etag and not etag.startswith("W/"):
            headers["If-Range"] = etag
        if send_token and self._network.token:
            headers["Authorization"] = f"Bearer {self._network.token}"
        for _ in range(redirects.MAX_HOPS + 1):
            parts = redirects.check_address(url, loopback_allowed=self._network.loopback_allowed)
            response = self._request(parts, headers)
            location = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or location is None:
                return self._accept(response, parts, start, end)
            self.close()
            target = redirects.follow(url, location, loopback_allowed=self._network.loopback_allowed)
            if _origin(urlsplit(target)) != _origin(parts):
                headers.pop("Authorization", None)
            url = target
        raise BadAnswer(f"more than {redirects.MAX_HOPS} redirects", code="redirect-loop", host=parts.hostname)

    def abort(self) -> None:
        """End the transfer from another thread: a waiting read fails at once."""
        connection = self._connection
        sock = connection.sock if connection is not None else None
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it is gone already, which was the wish

    def close(self) -> None:
        """Drop the connection; the next `open` makes a new one."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._origin, self._body = None, None, None

    def _request(self, parts: SplitResult, headers: dict[str, str]) -> http.client.HTTPResponse:
        if self._origin != _origin(parts) or self._body is None or self._body.left_bytes != 0:
            self.close()
        is_reused = self._connection is not None
        try:
            return self._exchange(parts, headers)
        except NetworkError:
            self.close()
            if not is_reused:
                raise
        return self._exchange(parts, headers)  # a kept-alive connection may have been closed meanwhile

    def _exchange(self, parts: SplitResult, headers: dict[str, str]) -> http.client.HTTPResponse:
        host = parts.hostname or ""
        try:
            if self._connection is None:
                self._connection = _connection(parts, self._network, self._tls)
                self._origin = _origin(parts)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            self._connection.request("GET", target, headers=headers)
            return self._connection.getresponse()
        except TimeoutError as error:
            self.close()
            raise NetworkError(f"`{host}` does not answer", code="stalled", host=host) from error
        except ssl.SSLCertVerificationError as error:
            self.close()
            raise NetworkError(
                f"the certificate of `{host}` is not trusted: {error.verify_message}",
                code="tls",
                host=host,
                hint="check the clock and SSL_CERT_FILE; a proxy that opens TLS needs its certificate there",
            ) from error
        except http.client.HTTPException as error:
            self.close()
            if isinstance(error, http.client.RemoteDisconnected):
                raise _cut(host, error) from error
            raise BadAnswer(f"`{host}` does not speak HTTP as it should: {type(error).__name__}", host=host) from error
        except OSError as error:
            self.close()
            raise _cut(host, error) from error

    def _accept(self, response: http.client.HTTPResponse, parts: SplitResult, start: int, end: int | None) -> Body:
        host = parts.hostname or ""
        if response.status not in (200, 206):
            body = _some(response)
            self.close()
            if response.status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                unsatisfied = _UNSATISFIED.fullmatch(response.headers.get("Content-Range") or "")
                raise BadAnswer(
                    f"`{host}` has no bytes from {start} on",
                    code="range-not-satisfiable",
                    host=host,
                    total_bytes=int(unsatisfied[1]) if unsatisfied else None,
                )
            raise storage_cause(response.status, dict(response.headers.items()), body)
        refusal = _refusal(response, start, end)
        if refusal:
            self.close()
            code, problem = refusal
            raise BadAnswer(f"`{host}` {problem}", code=code, host=host, hint=_NOT_A_FILE_HINT)
        if response.status == http.HTTPStatus.OK:
            self._body = Body(response, 0, response.length, host)
        else:
            total = _CONTENT_RANGE.fullmatch(response.headers["Content-Range"])
            self._body = Body(response, start, int(total[3]) if total and total[3] != "*" else None, host)
        return self._body


def tls_context() -> ssl.SSLContext:
    """Httpx's TLS settings: the certificates that SSL_CERT_FILE or SSL_CERT_DIR name, else certifi's."""
    return httpx.create_ssl_context()


_NOT_A_FILE_HINT = "nothing was kept of it; try again, and look at `civman doctor` if it repeats"


def _refusal(response: http.client.HTTPResponse, start: int, end: int | None) -> tuple[str, str] | None:
    """Why a 200 or 206 is not the bytes that were asked for, as (code, words), or None."""
    headers = response.headers
    if headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        return "login-page", "sent a web page instead of the file"
    encoding = (headers.get("Content-Encoding") or "identity").lower()
    if encoding != "identity":
        return "compressed-body", f"compressed the file ({encoding}) although it was asked not to"
    if response.status == http.HTTPStatus.OK:
        return None
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range") or "")
    if match is None:
        return "bad-range", "sent a part of the file without saying which"
    first, last = int(match[1]), int(match[2])
    wrong = first != start or last < first or (end is not None and last >= end)
    wrong = wrong or (match[3] != "*" and last >= int(match[3]))
    if wrong or (response.length is not None and response.length != last - first + 1):
        return "bad-range", f"sent bytes {first}-{last} where {start}-{'' if end is None else end - 1} were asked for"
    return None


def _connection(parts: SplitResult, network: Network, tls: Callable[[], ssl.SSLContext]) -> http.client.HTTPConnection:
    host, secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    proxy = None if redirects.is_loopback(parts.geturl()) else _proxy_for(parts.scheme, host)
    if proxy is not None:
        connection = http.client.HTTPSConnection(
            proxy.hostname or "", proxy.port or 8080, timeout=network.stall_s, context=tls()
        )
        raw = socket.create_connection((proxy.hostname or "", proxy.port or 8080), network.connect_s)
        auth = {}
        if proxy.username:
            login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
            auth["Proxy-Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
        connection.set_tunnel(host, port, auth)
        # http.client opens the tunnel inside connect(); hand it the plain connection to the proxy
        connection._create_connection = lambda *_: raw  # type: ignore[attr-defined]  # noqa: SLF001
        connection.connect()
        raw.settimeout(network.stall_s)
        return connection
    sock = redirects.connect(host, port, network.connect_s, loopback_allowed=network.loopback_allowed)
    sock.settimeout(network.stall_s)
    if not secure:
        plain = http.client.HTTPConnection(host, port)
        plain.sock = sock
        return plain
    connection = http.client.HTTPSConnection(host, port, context=tls())
    connection.sock = tls().wrap_socket(sock, server_hostname=host)
    return connection


def _proxy_for(scheme: str, host: str) -> SplitResult | None:
    if urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    address = proxies.get(scheme) or proxies.get("all")
    if not address:
        return None
    parts = urlsplit(address if "://" in address else f"http://{address}")
    if parts.scheme != "http":
        raise ConfigError(
            f"a {parts.scheme} proxy is not supported for downloads",
            hint="set HTTPS_PROXY to an http:// proxy, or NO_PROXY for CivitAI's hosts",
        )
    return parts


def _origin(parts: SplitResult) -> tuple[str, str]:
    return parts.scheme, parts.netloc.rpartition("@")[2].lower()


def _some(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_ERROR_BODY_BYTES)
    except (OSError, http.client.HTTPException):
        return b""


def _cut(host: str, error: Exception | None) -> NetworkError:
    why = f": {error}" if isinstance(error, ConnectionError) and str(error) else ""
    return NetworkError(f"the connection to `{host}` broke{why}", code="connection-cut", host=host)
