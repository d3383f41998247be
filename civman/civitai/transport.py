"""The only HTTP client for CivitAI's JSON: it adds the API key, retries, limits sizes and translates httpx's errors.

The key is sent in the Authorization header, only to the configured scheme, host and port, and redirects are never
followed. Every URL in a message has passed `safe_url`.
"""

import json
import random
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar
from urllib.parse import urlencode, urlsplit

import httpx

from civman.civitai.failures import Asked, cause
from civman.civitai.responses import Json, safe_url
from civman.civitai.site import checked_address, checked_token, headers_of, open_client
from civman.civitai.wire_values import OnNotice
from civman.errors import BadAnswer, Cause, CivmanError, ConfigError, NetworkError, Offline

Params = Sequence[tuple[str, str]]

_LONGEST_WAIT_S = 30.0
_LONGEST_RETRY_AFTER_S = 120.0
_LONGEST_ANSWER_S = 180.0
_PROBE_CONNECT_S = 5.0
_ERROR_BODY_BYTES = 1 << 16
_OUR_STATUSES = (200, 206)


def utc_now() -> datetime:
    """Return the current UTC time as a timezone-aware datetime."""
    return datetime.now(UTC)


def quiet(notice: str) -> None:
    """Ignore a notice. The default for `on_notice`."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: status, headers, and as much of the body as was read."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(default=b"", repr=False)


class Transport:
    """Sends requests to one site, with or without an API key.

    Args:
        address: scheme, host, port and optionally a path; `https` unless it is loopback.
        token: CivitAI's API key, or None.
        offline: raise Offline before any socket is opened.
        timeout_s: the longest wait without progress, separately for connecting, sending and receiving.
        tries: the maximum number of attempts for one request.
        backoff_s: the delay before the second attempt; it doubles after each further attempt.
        max_body_bytes: the maximum size of a JSON response.
        sleep, clock, jitter: replaceable by tests; jitter returns numbers in [0, 1).
        on_notice: receives a notice about each retry.

    Raises: ConfigError: the address or the key cannot be used.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        offline: bool = False,
        timeout_s: float = 30.0,
        tries: int = 4,
        backoff_s: float = 1.0,
        max_body_bytes: int = 64 << 20,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], datetime] = utc_now,
        jitter: Callable[[], float] = random.random,
        on_notice: OnNotice = quiet,
    ) -> None:
        self.address = checked_address(address, has_token=bool(token))
        self.has_key = bool(token)
        self._token = checked_token(token) if token else None
        self._offline = offline
        self._timeout_s = timeout_s
        self._tries = tries
        self._backoff_s = backoff_s
        self._max_body_bytes = max_body_bytes
        self._sleep = sleep
        self._clock = clock
        self._jitter = jitter
        self._on_notice = on_notice
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None

    def __repr__(self) -> str:
        return f"Transport({self.address!r}, has_key={self.has_key})"

    def close(self) -> None:
        """Close the connections. They are opened again if another request is sent."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def url(self, path: str, params: Params = ()) -> str:
        """Build the absolute URL of `path` (which starts with `/`) on the configured site."""
        query = urlencode(params)
        return f"{self.address}{path}" + (f"{'&' if '?' in path else '?'}{query}" if query else "")

    def get_json(self, path: str, params: Params = (), *, asked: Asked) -> Json:
        """Send `GET path` and return the JSON of the response.

        Raises: the CivmanError for an error response. BadAnswer: the body is not JSON, or too large.
        """
        return self._json(self._persist("GET", self.url(path, params), asked), asked)

    def post_json(self, path: str, content: Json, *, asked: Asked, is_probe: bool = False) -> Json:
        """Send `POST path` and return the JSON of the response.

        Only for lookups, because a failed request is repeated. With `is_probe`, it is not repeated if the site cannot
        be reached, and connecting may take 5 seconds at most.
        """
        body = json.dumps(content, separators=(",", ":")).encode()
        return self._json(self._persist("POST", self.url(path), asked, content=body, is_probe=is_probe), asked)

    def first_hop(self, url: str, *, asked: Asked) -> Answer:
        """Send `GET url` to CivitAI and return the status and headers of a redirect or of a file.

        Redirects are not followed, and the body of a file is not read.

        Raises: the CivmanError for any other response.
        """
        answer = self._persist("GET", url, asked, wants_file=True)
        if 300 <= answer.status < 400 and answer.headers.get("location"):
            return answer
        if answer.status in _OUR_STATUSES and not _is_text(answer.headers):
            return answer
        raise cause(answer.status, answer.headers, answer.body, asked)

    def _json(self, answer: Answer, asked: Asked) -> Json:
        kind = answer.headers.get("content-type", "")
        if answer.status != httpx.codes.OK or "html" in kind.lower():
            raise cause(answer.status, answer.headers, answer.body, asked)
        try:
            return _parsed(answer.body)
        except (ValueError, RecursionError):
            problem = "nothing" if not answer.body.strip() else "a response that is not JSON"
            raise BadAnswer(
                f"CivitAI responded to the request for {asked.what} with {problem}",
                hint="try again; if it happens again, check `civitai_url` in the settings",
                content_type=kind[:80],
            ) from None

    def _persist(
        self,
        method: str,
        url: str,
        asked: Asked,
        *,
        content: bytes | None = None,
        wants_file: bool = False,
        is_probe: bool = False,
    ) -> Answer:
        """Send a request up to `tries` times until a response is usable. Only for requests that change nothing."""
        if self._offline:
            raise Offline(f"civman is offline and cannot request {asked.what}")
        attempt = 1
        while True:
            failure: CivmanError
            retry_after: str | None = None
            try:
                answer = self._once(method, url, asked, content=content, wants_file=wants_file, is_probe=is_probe)
            except _UnreachedError as error:
                failure = error.failure
                is_dead = is_probe and failure.code in (Cause.UNREACHABLE, Cause.TIMEOUT)
                if not error.may_pass or is_dead or attempt >= self._tries:
                    raise failure from error.__cause__
            else:
                if answer.status != httpx.codes.TOO_MANY_REQUESTS and answer.status < 500:
                    return answer
                failure = cause(answer.status, answer.headers, answer.body, asked)
                retry_after = answer.headers.get("retry-after")
                if not failure.code.recovery.is_possible or attempt >= self._tries:
                    raise failure
            self._wait(attempt, failure, retry_after)
            attempt += 1

    def _wait(self, attempt: int, failure: CivmanError, retry_after: str | None) -> None:
        wait_s = min(_LONGEST_WAIT_S, self._backoff_s * 2.0 ** (attempt - 1) * (1 + 0.25 * self._jitter()))
        asked_s = retry_after_s(retry_after, self._clock())
        if asked_s is not None and asked_s > _LONGEST_RETRY_AFTER_S:
            raise failure
        wait_s = max(wait_s, asked_s or 0.0)
        self._on_notice(f"{failure.message}; trying again in {wait_s:.0f} s ({attempt + 1} of {self._tries})")
        self._sleep(wait_s)

    def _once(
        self, method: str, url: str, asked: Asked, *, content: bytes | None, wants_file: bool, is_probe: bool
    ) -> Answer:
        headers = {"Accept": "*/*" if wants_file else "application/json"}
        if wants_file:
            headers["Accept-Encoding"] = "identity"
        if content is not None:
            headers["Content-Type"] = "application/json"
        connect_s = min(self._timeout_s, _PROBE_CONNECT_S) if is_probe else self._timeout_s
        timeout = httpx.Timeout(self._timeout_s, connect=connect_s)
        try:
            with self._http().stream(method, url, headers=headers, content=content, timeout=timeout) as response:
                if wants_file and (300 <= response.status_code < 400 or _is_file(response)):
                    return Answer(response.status_code, headers_of(response))
                return Answer(response.status_code, headers_of(response), self._body(response, asked))
        except (httpx.RequestError, httpx.InvalidURL, httpx.StreamError) as error:
            raise _UnreachedError(*self._translated(error)) from error

    def _body(self, response: httpx.Response, asked: Asked) -> bytes:
        is_answer = response.status_code in _OUR_STATUSES
        limit = self._max_body_bytes if is_answer else _ERROR_BODY_BYTES
        began = self._clock()
        parts: list[bytes] = []
        length = 0
        for part in response.iter_bytes():
            parts.append(part)
            length += len(part)
            if length > limit and is_answer:
                raise BadAnswer(
                    f"CivitAI's response for {asked.what} is longer than {limit} bytes",
                    code=Cause.TOO_LONG, hint="check `civitai_url` in the settings", limit_bytes=limit,
                )  # fmt: skip
            if length > limit:
                break
            if (self._clock() - began).total_seconds() > _LONGEST_ANSWER_S:
                raise httpx.ReadTimeout("the response arrives too slowly", request=response.request)
        return self._without_token(b"".join(parts)[:limit])

    def _without_token(self, body: bytes) -> bytes:
        """Remove the API key from `body`: a server may echo it, and bodies are saved in messages and the database."""
        return body.replace(self._token.encode(), b"***") if self._token else body

    def _translated(self, error: Exception) -> tuple[CivmanError, bool]:
        """Translate an error of httpx. Returns civman's error, and whether another attempt may help."""
        host = urlsplit(self.address).hostname or ""
        tls = _cause_of_kind(error, ssl.SSLError)
        if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
            return ConfigError(f"not a URL that civman can request: {safe_url(self.address)}"), False
        if isinstance(error, httpx.ProxyError):
            return NetworkError(f"the proxy refuses to connect to `{host}`", code=Cause.PROXY, hint=_PROXY_HINT), False
        if tls is not None:
            untrusted = _cause_of_kind(error, ssl.SSLCertVerificationError)
            why = (
                f"the server's certificate is not trusted: {untrusted.verify_message}"
                if untrusted
                else "no TLS handshake"
            )
            return NetworkError(
                f"no secure connection to `{host}`: {why}", code=Cause.TLS, hint=_TLS_HINT
            ), not untrusted
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            refusal = _cause_of_kind(error, OSError)
            reason = f": {refusal.strerror or refusal}" if refusal is not None else ""
            return NetworkError(f"cannot reach `{host}`{reason}", code=Cause.UNREACHABLE, hint=_PROXY_HINT), True
        if isinstance(error, httpx.TimeoutException):
            return NetworkError(f"`{host}` does not respond", code=Cause.TIMEOUT, hint=_ONLINE_HINT), True
        if isinstance(error, httpx.DecodingError):
            return BadAnswer(
                f"the response of `{host}` cannot be decompressed: its compression does not match its headers",
                code=Cause.BAD_ANSWER,
            ), True
        return NetworkError(f"the connection to `{host}` broke", code=Cause.CONNECTION_CUT, hint=_ONLINE_HINT), True

    def _http(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                self._client = open_client(self.address, self._token, timeout_s=self._timeout_s)
            return self._client


_ONLINE_HINT = "try again; if it happens again, check the network"
_PROXY_HINT = "check the network, or HTTPS_PROXY and NO_PROXY if you are behind a proxy"
_TLS_HINT = "check this computer's clock; if a proxy decrypts TLS, its certificate must be in SSL_CERT_FILE"


class _UnreachedError(Exception):
    """Carries the error of one attempt to the retry loop, and whether another attempt may help."""

    def __init__(self, failure: CivmanError, may_pass: bool) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.may_pass = may_pass


def _is_text(headers: Mapping[str, str]) -> bool:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind.startswith("text/") or any(word in kind for word in ("html", "json", "xml"))


def _is_file(response: httpx.Response) -> bool:
    return response.status_code in _OUR_STATUSES and not _is_text(response.headers)


def _parsed(body: bytes) -> Json:
    """Parse the JSON value in `body`. Raises: ValueError, RecursionError: invalid JSON, or NaN."""
    value: Json = json.loads(body.decode("utf-8-sig"), parse_constant=_no_constant)
    if rb"\ud" in body.lower():
        # JSON may contain half a surrogate pair, which cannot be encoded as UTF-8, and so cannot be stored in the
        # database
        text = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        value = json.loads(text)
    return value


def _no_constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")


def retry_after_s(retry_after: str | None, now: datetime) -> float | None:
    """Parse a Retry-After header (a number or a date) into seconds to wait; None if it is neither."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())


E = TypeVar("E", bound=BaseException)


def _cause_of_kind(error: BaseException, kind: type[E]) -> E | None:
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, kind):
            return current
        current = current.__cause__ or current.__context__
    return None
