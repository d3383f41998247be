"""Checks before routing that refuse requests from other sites and other machines.

A page on another site can make a browser send requests to a port of this computer. Such a request is recognised by its
Host header (after DNS rebinding, the only sign), by Origin or Sec-Fetch-Site, or by a content type that browsers send
without a CORS preflight.
"""

import base64
import binascii
import hmac
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from ipaddress import IPv6Address, ip_address

from starlette.datastructures import Headers, QueryParams
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BODY_BYTES = 64 * 1024 * 1024
COOKIE = "civman-token"
_SAFE = ("GET", "HEAD", "OPTIONS")
_BODY_TYPES = ("application/json", "application/octet-stream")
_FORM_PATHS = ("/v1/images/edits",)
_MOST_GUESSES, _GUESS_SECONDS = 20, 60.0
_HEADERS: Mapping[str, str] = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class Access:
    """Who may use the server. `hosts`: valid values of the Host header; `origins`: other sites that may send requests.

    `needs_token`: every request needs the token, not only requests that hand over a command.
    `by_address`: the server listens on all addresses of the machine, so the address at which a request arrives is also
    a valid Host.
    """

    token: str
    hosts: frozenset[str]
    origins: frozenset[str] = frozenset()
    needs_token: bool = False
    by_address: bool = False

    def hosts_for(self, scope: Scope) -> frozenset[str]:
        """Return the valid values of the Host header for this request.

        If the server listens on all addresses, the local address of the connection's socket is valid, too; this
        includes addresses that the machine was given after the start. This is safe, because a page that uses DNS
        rebinding sends its own name in the Host header, never an IP address.
        """
        server = scope.get("server")
        if not self.by_address or not server or server[1] is None:
            return self.hosts
        return self.hosts | {f"{_bracketed(str(server[0]))}:{server[1]}"}


def _bracketed(address: str) -> str:
    """Format an IP address for the Host header: IPv6 in brackets, without a zone; IPv4-mapped IPv6 as IPv4."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address.lower()
    if isinstance(found, IPv6Address):
        return str(found.ipv4_mapped) if found.ipv4_mapped is not None else f"[{found}]"
    return str(found)


def hosts_of(host: str, port: int) -> frozenset[str]:
    """List the values of the Host header with which browsers reach a server that listens on `host`."""
    names = {"127.0.0.1", "localhost", "[::1]"} | ({f"[{host}]" if ":" in host else host.lower()} - {"0.0.0.0", "[::]"})  # noqa: S104
    return frozenset(f"{name}:{port}" for name in names)


class Guard:
    """ASGI middleware that forwards only requests allowed by `access`, and limits the size of their bodies."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access
        self._wrong: deque[float] = deque(maxlen=_MOST_GUESSES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on to the application."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        origin = headers.get("origin", "")
        allowed = origin if origin in self._access.origins else None

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                if allowed is not None:
                    added += [(b"access-control-allow-origin", allowed.encode()), (b"vary", b"Origin")]
                present = {name.lower() for name, _ in message.get("headers", [])}
                message["headers"] = [*message.get("headers", []), *(each for each in added if each[0] not in present)]
            await send(message)

        if refusal is not None:
            await refusal(scope, receive, send_guarded)
        elif scope["method"] == "OPTIONS" and allowed is not None:
            await _preflight()(scope, receive, send_guarded)
        else:
            await self._app(scope, _bounded(receive), send_guarded)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        access = self._access
        hosts = access.hosts_for(scope)
        if len(headers.getlist("host")) != 1 or headers["host"].lower() not in hosts:
            return refused(
                403,
                "foreign-host",
                "this server does not accept requests for this host name; use its IP address instead",
            )
        origin = headers.get("origin")
        is_own = origin is not None and origin.partition("://")[2].lower() in hosts
        is_allowed = is_own or origin in access.origins
        if origin is not None and not is_allowed and scope["method"] not in ("GET", "HEAD"):
            return refused(403, "foreign-origin", "the request comes from a page of another site")
        if scope["method"] not in _SAFE:
            site = headers.get("sec-fetch-site")
            if site not in (None, "same-origin", "none") and not is_allowed:
                return refused(403, "foreign-origin", "the request comes from a page of another site")
            length = headers.get("content-length", "0")
            if not length.isdecimal() or int(length) > MOST_BODY_BYTES:
                return refused(413, "too-large", f"a body may have at most {MOST_BODY_BYTES} bytes")
            has_body = int(length) > 0 or "transfer-encoding" in headers
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            # a form with an Authorization header is safe: a page of another site can send forms, but not with this
            # header
            is_form = kind == "multipart/form-data" and scope["path"] in _FORM_PATHS and "authorization" in headers
            if has_body and kind not in _BODY_TYPES and not is_form:
                return refused(415, "content-type", "send the body as application/json")
        return self._refusal_by_token(scope, headers)

    def _refusal_by_token(self, scope: Scope, headers: Headers) -> Response | None:
        path = scope["path"].rstrip("/")
        is_handover = path == "/api/v1/commands"
        if not self._access.needs_token and not is_handover:
            return None
        now = time.monotonic()
        if len(self._wrong) == _MOST_GUESSES and now - self._wrong[0] < _GUESS_SECONDS:
            return refused(429, "too-many-guesses", "too many wrong tokens; wait a minute")
        given = _token(scope, headers, bearer_only=is_handover)
        if given is not None and hmac.compare_digest(given.encode(), self._access.token.encode()):
            return None
        if given:
            self._wrong.append(now)
        return refused(
            401, "no-token", "this server requires its access token", {"www-authenticate": 'Basic realm="civman"'}
        )


def _token(scope: Scope, headers: Headers, *, bearer_only: bool) -> str | None:
    """Return the token in a request: from a bearer token, a Basic password, a cookie, or `?token=` in the URL."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if bearer_only:
        return None
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        cookie = None
    if cookie is not None:
        return cookie.value
    return QueryParams(scope.get("query_string", b"")).get("token") if scope["path"] == "/" else None


def refused(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Build an error response with the message in the fields where clients of each supported API look for it."""
    body = {"code": code, "message": message, "detail": message, "error": {"message": message, "code": code}}
    return JSONResponse(body, status, headers=headers)


def _preflight() -> Response:
    allowed = {
        "access-control-allow-methods": "GET, POST, PATCH, DELETE",
        "access-control-allow-headers": "authorization, content-type",
    }  # fmt: skip
    return Response(status_code=204, headers=allowed)


class BodyTooLarge(Exception):
    """A request body that was sent without a Content-Length is too large."""


def _bounded(receive: Receive) -> Receive:
    got = 0

    async def receive_bounded() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b"")) if message["type"] == "http.request" else 0
        if got > MOST_BODY_BYTES:
            raise BodyTooLarge
        return message

    return receive_bounded
