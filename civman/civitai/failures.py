"""Translates an error response (status, headers, body) into one error with its cause and a hint.

CivitAI distinguishes most causes only by a sentence in the body, which each endpoint puts in a different field, so this
module compares texts. The result is an error with a `Cause`, which determines whether a retry may help. Source:
CivitAI's handlers (civitai/civitai, August 2026) and published responses of the live site.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from urllib.parse import urljoin, urlsplit

from civman.civitai.responses import Json, safe_url
from civman.errors import BadAnswer, Cause, CivmanError, Gone, NetworkError, NotAllowed, NotFound, UsageError

_KEY_HINT = "create a key at https://civitai.com/user/account, then run `civman login` or set CIVITAI_API_TOKEN"
_LATER_HINT = "try again later; the bytes received so far are kept"
_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s\"'<>]+", re.IGNORECASE)
_EDGE_CODE = re.compile(r"error code: (\d{3,4})")


class Endpoint(StrEnum):
    """The kind of endpoint that was requested. The same status code means different things on different endpoints."""

    LOOKUP = "lookup"
    SEARCH = "search"
    DOWNLOAD = "download"
    ACCOUNT = "account"


@dataclass(frozen=True, slots=True)
class Asked:
    """What was requested, for error messages: `what` completes "CivitAI does not know <what>"."""

    what: str
    endpoint: Endpoint = Endpoint.LOOKUP
    has_key: bool = False


@dataclass(frozen=True, slots=True)
class _Said:
    """A parsed error response. `text`: the site's message; `all_text`: all texts of the response, in lower case."""

    status: int
    headers: Mapping[str, str]
    text: str
    all_text: str
    fields: Mapping[str, Json]
    is_web_page: bool


def cause(status: int, headers: Mapping[str, str], body: bytes, asked: Asked) -> CivmanError:
    """Translate an unexpected response into an error, which the caller raises."""
    said = _said(status, headers, body)
    if 300 <= status < 400:
        return _redirected(said, asked)
    edge = _edge(said)
    if edge is not None:
        return edge
    if said.is_web_page and status < 500 and status not in (401, 429):
        return _web_page(said, asked)
    by_status = {400: _bad_request, 401: _unauthorized, 403: _forbidden, 404: _unknown, 410: _gone, 429: _too_many}
    if status in by_status:
        return by_status[status](said, asked)
    if status == 451:
        return _region(said)
    if status >= 500:
        return _server(said)
    return BadAnswer(
        f"CivitAI responded to the request for {asked.what} with status {status}{_quoted(said.text)}",
        hint="check `civitai_url` in the settings: the server there may not be CivitAI",
        status=status,
    )


def storage_cause(status: int, headers: Mapping[str, str], body: bytes) -> CivmanError:
    """Translate an error response of the server that stores the file into an error, which the caller raises.

    Storage servers respond with S3's XML or B2's JSON (`code`, `message`). A mirror that stores the files itself may
    respond with CivitAI's JSON (`error`), which is also recognised.
    """
    said = _said(status, headers, body)
    if "error" in said.fields:
        return cause(status, headers, body, Asked("the file", Endpoint.DOWNLOAD, has_key=True))
    words = said.all_text
    reason = _xml_code(body) or _text(said.fields.get("code"))
    if status in (401, 403) or (status == 400 and ("expired" in words or "authorizationqueryparameters" in words)):
        return NetworkError(
            "the download URL has expired or was refused by the storage server" + _quoted(reason),
            code=Cause.LINK_EXPIRED,
            hint="civman requests a new URL; if this happens again, check the computer's clock",
            status=status,
        )
    if status == 400:
        return NetworkError(
            "the storage server refused the request" + _quoted(reason),
            code=Cause.STORAGE_REFUSED,
            hint="a proxy may be adding an Authorization header; try without the proxy",
            status=status,
        )
    if status in (404, 410):
        return NotFound(
            "the storage server does not have the file that CivitAI links to",
            code=Cause.STORAGE_NOT_FOUND, hint="try another file or version; the upload may be broken", status=status,
        )  # fmt: skip
    if status in (408, 425, 429) or status >= 500:
        return NetworkError(
            f"the storage server is busy or has an internal error: status {status}" + _quoted(reason),
            code=Cause.STORAGE_BUSY,
            hint=_LATER_HINT,
            status=status,
            retry_after=_header(headers, "retry-after"),
        )
    return BadAnswer(f"the storage server responded with status {status}", code=Cause.STORAGE_ERROR, status=status)


def is_login_address(url: str) -> bool:
    """Whether `url` is the URL of a login page."""
    try:
        path = urlsplit(url).path
    except ValueError:
        return False
    return path.rstrip("/").endswith("/login") or "/login/" in path or "/auth/signin" in path


def login_page(asked: Asked) -> CivmanError:
    """Build the error for a redirect to the login page."""
    hint = "check the key with `civman doctor`" if asked.has_key else _KEY_HINT
    return BadAnswer(
        f"CivitAI responded to the request for {asked.what} with its login page", code=Cause.LOGIN_PAGE, hint=hint
    )


def _redirected(said: _Said, asked: Asked) -> CivmanError:
    location = _header(said.headers, "location") or ""
    try:
        path = urlsplit(urljoin("https://civitai.invalid/", location)).path
    except ValueError:
        path = ""
    if is_login_address(location):
        return login_page(asked)
    if asked.endpoint is Endpoint.DOWNLOAD and re.match(r"/(model-versions|models)/\d+", path):
        # CivitAI redirects browsers to the page that sells early access; it sends 403 to programs
        return _early_access(asked, None)
    if not location:
        return BadAnswer(
            f"CivitAI responded to the request for {asked.what} with a redirect that has no target", status=said.status
        )
    return BadAnswer(
        f"CivitAI responded to the request for {asked.what} with a redirect to {safe_url(location)}",
        code=Cause.REDIRECTED,
        hint="if the site has moved, set `civitai_url` in the settings to its new URL",
        status=said.status,
    )


def _edge(said: _Said) -> CivmanError | None:
    """Return an error if Cloudflare, not CivitAI, refused the request; None otherwise."""
    match = _EDGE_CODE.search(said.all_text) if not said.fields else None
    code = int(match[1]) if match else 0
    if code == 1009:
        return _region(said)
    if code == 1015:
        return _rate_limited(said)
    challenged = said.status in (403, 503) and said.is_web_page and (
        _header(said.headers, "cf-mitigated") is not None
        or any(word in said.all_text for word in ("just a moment", "attention required", "cf-challenge"))
    )  # fmt: skip
    if challenged or 1000 <= code < 1100:
        return NetworkError(
            "Cloudflare blocks the request before it reaches CivitAI" + (f": error {code}" if code else ""),
            code=Cause.BLOCKED_CLIENT,
            hint="a proxy may be changing the User-Agent, or your IP address is blocked; try another network",
            status=said.status,
        )
    return None


def _web_page(said: _Said, asked: Asked) -> CivmanError:
    if "login" in said.all_text or "sign in" in said.all_text:
        return login_page(asked)
    return BadAnswer(
        f"CivitAI responded to the request for {asked.what} with a web page, status {said.status}",
        hint="check `civitai_url` in the settings, and any proxy or captive portal",
        status=said.status,
    )


def _bad_request(said: _Said, asked: Asked) -> CivmanError:
    if "invalid cursor" in said.all_text:
        return NetworkError(
            "CivitAI no longer accepts the cursor of the next page",
            code=Cause.BAD_CURSOR,
            hint="start the search again",
            status=400,
        )
    return UsageError(
        f"CivitAI refuses the request for {asked.what}{_quoted(_issue(said.text))}",
        code=Cause.BAD_REQUEST,
        hint="change the value that the message mentions; if it should be valid, civman may be out of date",
        status=400,
    )


def _unauthorized(said: _Said, asked: Asked) -> CivmanError:
    if "disabled downloads" in said.all_text:
        return NotAllowed(
            f"the creator has disabled downloads: {asked.what}",
            code=Cause.DOWNLOADS_DISABLED,
            hint="your API key is valid, but this file can only be used on the site",
            status=401,
        )
    if asked.has_key:
        return NotAllowed(
            "CivitAI does not accept the API key: it is wrong or expired, or its account is banned",
            code=Cause.BAD_KEY, hint=_KEY_HINT.replace("a key", "a new key", 1), status=401,
        )  # fmt: skip
    return NotAllowed(f"CivitAI requires an API key for {asked.what}", code=Cause.NO_KEY, hint=_KEY_HINT, status=401)


def _forbidden(said: _Said, asked: Asked) -> CivmanError:
    words = said.all_text
    deadline = said.fields.get("deadline")
    if "early access" in words or deadline:
        return _early_access(asked, deadline if isinstance(deadline, str) else None)
    if "do not have access" in words:
        return NotAllowed(
            f"private, and this API key has no access: {asked.what}",
            code=Cause.PRIVATE, hint="ask the creator, or use the API key of an account that has access", status=403,
        )  # fmt: skip
    if said.text.strip().casefold() == "forbidden":
        return NotAllowed(
            "CivitAI has banned this account or IP address from downloading",
            code=Cause.BANNED, hint="contact support@civitai.com", status=403,
        )  # fmt: skip
    return NotAllowed(
        f"CivitAI does not provide {asked.what}{_quoted(said.text)}",
        hint="the page on CivitAI may give the reason", status=403,
    )  # fmt: skip


def _early_access(asked: Asked, deadline: str | None) -> CivmanError:
    if deadline:
        return NotAllowed(
            f"in early access until {_day(deadline)}: {asked.what}",
            code=Cause.EARLY_ACCESS, hint="wait until then, or buy access on the model's page",
            status=403, deadline=deadline,
        )  # fmt: skip
    return NotAllowed(
        f"only available to users who paid for access (no end date is known): {asked.what}",
        code=Cause.PAID_ACCESS, hint="buy access on the model's page", status=403,
    )  # fmt: skip


def _unknown(said: _Said, asked: Asked) -> CivmanError:
    hint = "check the id or hash; something published minutes ago may not be visible yet (up to 90 minutes for hashes)"
    if asked.endpoint is Endpoint.DOWNLOAD:
        hint = "it may be unpublished, deleted or of a real person, or no file has the requested format and size"
    elif asked.endpoint is Endpoint.SEARCH:
        hint = "check the spelling of the creator's name"
    detail = {"missing model file": ": the version has no files"}.get(said.text.strip().casefold(), "")
    return NotFound(f"CivitAI does not know {asked.what}{detail}", hint=hint, status=404)


def _gone(said: _Said, asked: Asked) -> CivmanError:
    return Gone(
        f"archived by its creator and no longer available for download: {asked.what}",
        code=Cause.ARCHIVED, hint="look for another version, or for the same file by its hash", status=said.status,
    )  # fmt: skip


def _too_many(said: _Said, _asked: Asked) -> CivmanError:
    if "unusual amount" in said.all_text:
        return NetworkError(
            "CivitAI's download quota for this account is used up",
            code=Cause.QUOTA,
            hint="the quota covers the last 24 hours: continue tomorrow; the bytes received so far are kept",
            status=429,
        )
    if "too many pages" in said.all_text:
        return NetworkError(
            "CivitAI returns no further pages of this search",
            code=Cause.PAGE_CAP,
            hint="narrow the search with more filters",
            status=429,
        )
    return _rate_limited(said)


def _rate_limited(said: _Said) -> CivmanError:
    return NetworkError(
        "CivitAI is limiting the request rate", code=Cause.RATE_LIMITED, hint="wait a few minutes and try again",
        status=said.status, retry_after=_header(said.headers, "retry-after"),
    )  # fmt: skip


def _region(said: _Said) -> CivmanError:
    return NotAllowed(
        "CivitAI does not serve your region for legal reasons",
        code=Cause.REGION_BLOCKED, hint="files already in the library can be used without CivitAI", status=said.status,
    )  # fmt: skip


def _server(said: _Said) -> CivmanError:
    text = "" if said.is_web_page else said.text
    return NetworkError(
        f"CivitAI is busy or has an internal error: status {said.status}{_quoted(text)}",
        code=Cause.SERVER_ERROR,
        hint=_LATER_HINT,
        status=said.status,
        retry_after=_header(said.headers, "retry-after"),
    )


def _said(status: int, headers: Mapping[str, str], body: bytes) -> _Said:
    raw = body[:65536].decode("utf-8", "replace").lstrip("\ufeff")
    fields: dict[str, Json] = {}
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError):
        parsed = None
    if isinstance(parsed, dict):
        fields = parsed
    elif isinstance(parsed, list):
        fields = {"error": raw}
    texts = [text for text in (_text(fields.get("error")), _text(fields.get("message"))) if text]
    error = fields.get("error")
    if not texts and isinstance(error, dict):
        texts = [_text(error.get("message"))]
    page = "html" in _content_type(headers) or raw.lstrip()[:200].lower().startswith(("<!doctype html", "<html"))
    text = texts[0] if texts else raw
    return _Said(status, headers, text, " ".join(texts or [raw]).casefold(), fields, page and not fields)


def _text(value: Json) -> str:
    return value if isinstance(value, str) else ""


def _issue(text: str) -> str:
    """Return the first message of a validation error, which CivitAI sends as a JSON string inside the JSON response."""
    start = text.find("[")
    try:
        issues = json.loads(text[start:]) if start >= 0 else None
    except (ValueError, RecursionError):
        issues = None
    if not (isinstance(issues, list) and issues and isinstance(issues[0], dict)):
        return text
    path = ".".join(str(part) for part in issues[0].get("path") or ())
    return f"{path}: {issues[0].get('message', '')}" if path else str(issues[0].get("message", ""))


def _quoted(text: str) -> str:
    shown = _quotable(text)
    return f": {shown}" if shown else ""


def _day(moment: str) -> str:
    """Return the UTC date of an ISO 8601 time, such as "2026-03-01"; return any other text unchanged."""
    try:
        found = datetime.fromisoformat(moment)
    except ValueError:
        return _quotable(moment)
    return f"{found.astimezone(UTC) if found.tzinfo else found:%Y-%m-%d}"


def _quotable(text: str) -> str:
    """Put the server's text on one line, without control characters and without the secrets that URLs contain."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    line = _URL.sub(lambda match: safe_url(match[0]), line)
    return line if len(line) <= 200 else line[:199] + "…"


def _xml_code(body: bytes) -> str:
    match = re.search(rb"<Code>([A-Za-z0-9]{1,60})</Code>", body[:65536])
    return match[1].decode() if match else ""


def _header(headers: Mapping[str, str], name: str) -> str | None:
    return next((value for key, value in headers.items() if key.lower() == name), None)


def _content_type(headers: Mapping[str, str]) -> str:
    return (_header(headers, "content-type") or "").partition(";")[0].strip().lower()
