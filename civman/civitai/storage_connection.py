"""Download ranges of a file over one kept-alive connection, directly into a caller's buffer.

httpx is not used here: on one core, a 1 GB file takes 3.0-3.6 s with httpx streams and 1.4-1.7 s with this module,
because nothing is copied between the socket and the buffer that is written to disk (`response_body`). The TLS settings
are the same as those of httpx.
"""

import http.client
import re
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import SplitResult, quote, urlsplit

import httpx

from civman.civitai import allowed_urls
from civman.civitai.connecting import dial, shut
from civman.civitai.decoded_body import ENCODINGS, DecodedBody
from civman.civitai.failures import storage_cause
from civman.civitai.response_body import CUT_HINT, Body, connection_cut
from civman.errors import BadAnswer, Cause, NetworkError

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_UNSATISFIED = re.compile(r"bytes \*/(\d+)")
_KEPT = "%/:=&?~#+!$,;'@()*[]"
"""Characters of a URL that are not percent-encoded: reserved characters, and the `%` of existing escapes."""
_ERROR_BODY_BYTES = 1 << 16
_PLAIN = "identity"


@dataclass(frozen=True, slots=True)
class Network:
    """How connections are made: user agent, API key, timeouts in seconds, and which servers are allowed."""

    user_agent: str
    stall_s: float = 20.0
    connect_s: float = 15.0
    loopback_allowed: bool = False
    token: str | None = field(default=None, repr=False)
    """The API key: only sent if a request asks for it (`send_token`), never to another origin after a redirect."""
    own_server: tuple[str, str] | None = None
    """Scheme and host with port of a server that the user has configured, such as ("http", "10.0.0.5:9000").

    This server may be in a private network and use plain http. A redirect to it is checked like any other redirect.
    """


class StorageConnection:
    """One connection to a file's host, used for several ranges. Only `abort` may be called from another thread."""

    def __init__(self, network: Network, tls: Callable[[], ssl.SSLContext]) -> None:
        self._network = network
        self._tls = tls
        self._connection: http.client.HTTPConnection | None = None
        self._response: http.client.HTTPResponse | None = None
        self._origin: tuple[str, str] | None = None
        self._body: Body | None = None
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        """The socket that `abort` shuts down. http.client gives up its own reference if the server will close the
        connection.
        """
        self.is_aborted = False
        """Set by `abort` and never reset: the connection then delivers no more data."""
        self.is_dialling = False
        """Whether a name lookup or connect is in progress.

        `abort` cannot interrupt it from another thread, but its result is then discarded.
        """

    def open(self, url: str, *, start: int, end: int | None, send_token: bool = False, etag: str | None = None) -> Body:
        """Request the bytes `[start, end)` of `url` (`end` None: to the end of the file), following safe redirects.

        `etag` is sent as If-Range, so if the file has changed, the whole file is returned, from byte 0. A server that
        does not support ranges also returns the whole file. If `start` is 0 and `end` is None, no range is requested.

        Raises: NetworkError, NotAllowed, NotFound, depending on the server's response. UnsafeRedirect. BadAnswer: a web
        page, a body with unsupported compression, or a range that was not requested.
        """
        headers = {
            "User-Agent": self._network.user_agent,
            "Accept": "*/*",
            "Accept-Encoding": "identity",
        }
        if start or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
            if etag and not etag.startswith("W/"):
                headers["If-Range"] = etag
        if send_token and self._network.token:
            headers["Authorization"] = f"Bearer {self._network.token}"
        for _ in range(allowed_urls.MAX_HOPS + 1):
            parts = self._checked(url)
            self._response = response = self._request(parts, headers)
            location = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or location is None:
                return self._accept(response, parts, start, end)
            self.close()
            target = allowed_urls.follow(url, _as_text(location), loopback_allowed=self._network.loopback_allowed)
            if _origin(urlsplit(target)) != _origin(parts):
                headers.pop("Authorization", None)
            url = target
        raise BadAnswer(f"more than {allowed_urls.MAX_HOPS} redirects", code=Cause.REDIRECT_LOOP, host=parts.hostname)

    def _checked(self, url: str) -> SplitResult:
        parts = urlsplit(url)
        if (parts.scheme, parts.netloc) == self._network.own_server:
            return parts
        return allowed_urls.check_address(url, loopback_allowed=self._network.loopback_allowed)

    def abort(self) -> None:
        """Stop the transfer; may be called from another thread.

        A read that is in progress fails at once, and so do all later calls.
        """
        with self._lock:
            self.is_aborted = True
            if self._socket is not None:
                shut(self._socket)

    def close(self) -> None:
        """Close the connection; the next `open` makes a new one."""
        with self._lock:
            self._socket = None
        if self._connection is not None:
            self._connection.close()
        if self._response is not None:
            # close the response; http.client then drops the connection if the server is going to close it
            self._response.close()
        self._connection, self._response, self._origin, self._body = None, None, None, None

    def _request(self, parts: SplitResult, headers: dict[str, str]) -> http.client.HTTPResponse:
        if self._origin != _origin(parts) or self._body is None or self._body.left_bytes != 0:
            self.close()
        is_reused = self._connection is not None
        try:
            return self._exchange(parts, headers)
        except NetworkError:
            self.close()
            if not is_reused or self.is_aborted:
                raise
        # send the request again on a new connection, because the server may have closed the kept-alive one
        return self._exchange(parts, headers)

    def _exchange(self, parts: SplitResult, headers: dict[str, str]) -> http.client.HTTPResponse:
        host = parts.hostname or ""
        try:
            if self._connection is None:
                self._connection = self._dialled(parts, host)
                self._origin = _origin(parts)
            self._connection.request("GET", _target(parts), headers=headers)
            return self._connection.getresponse()
        except TimeoutError as error:
            self.close()
            raise NetworkError(f"`{host}` does not respond", code=Cause.STALLED, hint=CUT_HINT, host=host) from error
        except ssl.SSLCertVerificationError as error:
            self.close()
            raise NetworkError(
                f"the certificate of `{host}` is not trusted: {error.verify_message}",
                code=Cause.TLS,
                host=host,
                hint="check this computer's clock; if a proxy decrypts TLS, its certificate must be in SSL_CERT_FILE",
            ) from error
        except http.client.HTTPException as error:
            self.close()
            if isinstance(error, http.client.RemoteDisconnected):
                raise connection_cut(host, error) from error
            raise BadAnswer(f"`{host}` sent an invalid HTTP response: {type(error).__name__}", host=host) from error
        except (OSError, ValueError, AttributeError) as error:
            # ValueError and AttributeError mean that another thread shut down the connection during this request
            self.close()
            raise connection_cut(host, error) from error

    def _dialled(self, parts: SplitResult, host: str) -> http.client.HTTPConnection:
        self.is_dialling = True
        try:
            sock = dial(
                parts,
                tls=self._tls,
                connect_s=self._network.connect_s,
                loopback_allowed=self._network.loopback_allowed,
                is_own=(parts.scheme, parts.netloc) == self._network.own_server,
                publish=self._publish,
            )
        finally:
            self.is_dialling = False
        sock.settimeout(self._network.stall_s)
        kind = _OverTls if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(host, parts.port)
        connection.sock = sock
        return connection

    def _publish(self, sock: socket.socket) -> None:
        with self._lock:
            if self.is_aborted:
                raise ConnectionAbortedError("aborted")
            self._socket = sock

    def _accept(self, response: http.client.HTTPResponse, parts: SplitResult, start: int, end: int | None) -> Body:
        host = parts.hostname or ""
        if response.status not in (200, 206):
            body = _some(response)
            self.close()
            if response.status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                unsatisfied = _UNSATISFIED.fullmatch(response.headers.get("Content-Range") or "")
                raise BadAnswer(
                    f"the file on `{host}` has no bytes from {start} on",
                    code=Cause.RANGE_NOT_SATISFIABLE,
                    host=host,
                    total_bytes=int(unsatisfied[1]) if unsatisfied else None,
                )
            raise storage_cause(response.status, dict(response.headers.items()), body)
        refusal = _refusal(response, start, end)
        if refusal:
            self.close()
            code, problem = refusal
            raise BadAnswer(f"{problem} (server: `{host}`)", code=code, host=host, hint=_NOT_A_FILE_HINT)
        sock = self._socket
        if sock is None:
            raise AssertionError("a response arrived, so there is a socket")
        coding = _coding(response)
        if coding != _PLAIN:
            self._body = DecodedBody(response, sock, coding, host=host, stall_s=self._network.stall_s)
            return self._body
        if response.status == http.HTTPStatus.OK:
            start, length, total = 0, response.length, response.length
        else:
            start, last, total = _range_in(response)
            length = last - start + 1
        self._body = Body(response, sock, start, length, total, host=host, stall_s=self._network.stall_s)
        return self._body


class _OverTls(http.client.HTTPConnection):
    """A connection over a socket that already uses TLS; http.client's own class would load all certificates again."""

    default_port = http.client.HTTPS_PORT


def tls_context() -> ssl.SSLContext:
    """Create the TLS settings that httpx uses: certificates from SSL_CERT_FILE or SSL_CERT_DIR, else from certifi."""
    return httpx.create_ssl_context()


_NOT_A_FILE_HINT = "the response was discarded; try again, and run `civman doctor` if it happens again"


def _refusal(response: http.client.HTTPResponse, start: int, end: int | None) -> tuple[Cause, str] | None:
    """Return the cause and message if a 200 or 206 response does not contain the requested bytes; None if it does."""
    headers = response.headers
    if headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        return Cause.LOGIN_PAGE, "the server sent a web page instead of the file"
    coding = _coding(response)
    if coding in ENCODINGS and response.status == http.HTTPStatus.OK:
        return None  # no error, because `DecodedBody` will decompress the body
    if coding in ENCODINGS:
        return Cause.COMPRESSED_RANGE, f"the server sent a part of the compressed file ({coding})"
    if coding != _PLAIN:
        encoding = coding
        return (
            Cause.COMPRESSED_BODY,
            f"the server compressed the file ({encoding}) although the request did not allow it",
        )
    if response.status == http.HTTPStatus.OK:
        return None
    if _CONTENT_RANGE.fullmatch(headers.get("Content-Range") or "") is None:
        return Cause.BAD_RANGE, "the server sent a part of the file without a Content-Range header"
    first, last, total = _range_in(response)
    wrong = first != start or last < first or (end is not None and last >= end)
    wrong = wrong or (total is not None and last >= total)
    if wrong or (response.length is not None and response.length != last - first + 1):
        return (
            Cause.BAD_RANGE,
            f"the server sent bytes {first}-{last} where {start}-{'' if end is None else end - 1} were requested",
        )
    return None


def _coding(response: http.client.HTTPResponse) -> str:
    """Return the compression of the body; `identity` if it is not compressed."""
    return (response.headers.get("Content-Encoding") or _PLAIN).strip().lower()


def _range_in(response: http.client.HTTPResponse) -> tuple[int, int, int | None]:
    """Parse a valid Content-Range header: first byte, last byte and, if given, the size of the whole file."""
    match = _CONTENT_RANGE.fullmatch(response.headers["Content-Range"])
    first, last, total = match.groups() if match else ("0", "-1", "*")
    return int(first), int(last), None if total == "*" else int(total)


def _as_text(header: str) -> str:
    """Decode as UTF-8 a header value that http.client has decoded as Latin-1, because servers send UTF-8."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeDecodeError:
        return header


def _target(parts: SplitResult) -> str:
    """Build the path and query of the request.

    Characters that servers forget to percent-encode (spaces, non-ASCII) are encoded, as browsers do.
    """
    path, query = (quote(part, safe=_KEPT) for part in (parts.path or "/", parts.query))
    return f"{path}?{query}" if query else path


def _origin(parts: SplitResult) -> tuple[str, str]:
    return parts.scheme, parts.netloc.rpartition("@")[2].lower()


def _some(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_ERROR_BODY_BYTES)
    except (OSError, http.client.HTTPException):
        return b""
