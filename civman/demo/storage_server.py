"""The storage server: signed URLs that expire, and files in ranges, like the object storage behind CivitAI.

It responds with 400 to any request with an `Authorization` header, so that tests notice a client that forwards its API
key to storage.
"""

import hashlib
import hmac
import itertools
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from urllib.parse import quote, urlencode

from civman.demo.demo_catalog import Catalogue, DemoFile
from civman.demo.http_messages import Answer, Request

_BUCKET = "civitai-delivery-worker-prod"
_STAMP = "%Y%m%dT%H%M%SZ"


class Storage:
    """Signs URLs and responds to requests for them."""

    def __init__(self, catalogue: Catalogue, clock: Callable[[], datetime], url_lifetime_s: int) -> None:
        self._catalogue = catalogue
        self._clock = clock
        self._lifetime_s = url_lifetime_s
        self._serial = itertools.count(1)
        self._revoked: set[str] = set()

    def signed_target(self, file: DemoFile, name: str) -> str:
        """Build a signed path and query that give access to the file for a limited time; they differ on every call."""
        path = f"/{_BUCKET}/{file.id}/{quote(file.name, safe='')}"
        parameters = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"demo{next(self._serial)}/auto/s3/aws4_request",
            "X-Amz-Date": self._clock().strftime(_STAMP),
            "X-Amz-Expires": str(self._lifetime_s),
            "X-Amz-SignedHeaders": "host",
            "response-content-disposition": disposition(name),
        }
        parameters["X-Amz-Signature"] = _signature(path, parameters)
        return f"{path}?{urlencode(parameters, quote_via=quote)}"

    def revoke(self, target: str) -> None:
        """Make the URL with this path and query expire now."""
        self._revoked.add(target)

    def answer(self, request: Request) -> Answer:
        """Build the response: the file, a part of it, or the storage's XML error."""
        if "authorization" in request.headers:
            return storage_error(400, "InvalidRequest", "Missing x-amz-content-sha256")
        if request.headers.get("user-agent", "").lower().startswith("aria2"):
            return Answer.of_text("error code: 1010", 403)
        query = request.first
        match = re.fullmatch(rf"/{_BUCKET}/(\d+)/[^/]+", request.path)
        signature = query.pop("X-Amz-Signature", "")
        if not match or request.method != "GET" or signature != _signature(request.path, query):
            return storage_error(403, "SignatureDoesNotMatch", "The request signature we calculated does not match")
        issued = datetime.strptime(query["X-Amz-Date"], _STAMP).replace(tzinfo=UTC)
        if request.target in self._revoked or self._clock() > issued + timedelta(seconds=int(query["X-Amz-Expires"])):
            return expired()
        file = self._catalogue.file(int(match[1]))
        if file is None:
            return storage_error(404, "NoSuchKey", "The specified key does not exist.")
        return _ranged(file, request, query["response-content-disposition"])


def storage_error(status: int, code: str, message: str) -> Answer:
    """Build an error response in object storage's XML format."""
    text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return Answer.of_text(text, status, "application/xml")


def expired() -> Answer:
    """Build the response to a URL that has expired."""
    return storage_error(403, "AccessDenied", "Request has expired")


def etag(data: bytes | memoryview) -> str:
    """Compute a strong entity tag of the bytes."""
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def disposition(name: str) -> str:
    """Build `Content-Disposition` for a file name; characters beyond ASCII go into the extended form (RFC 6266)."""
    plain = re.sub(r"[\x00-\x1f\x7f]", "_", name.encode("ascii", "replace").decode()).replace('"', "'")
    extended = "" if name.isascii() else f"; filename*=UTF-8''{quote(name)}"
    return f'attachment; filename="{plain}"{extended}'


def _signature(path: str, parameters: dict[str, str]) -> str:
    text = "\n".join([path, *(f"{key}={value}" for key, value in sorted(parameters.items()))])
    return hmac.new(b"embedded civitai", text.encode(), "sha256").hexdigest()


def _ranged(file: DemoFile, request: Request, content_disposition: str) -> Answer:
    """Return the whole file, or the part that the request's `Range` header specifies (RFC 9110, section 14).

    If the request has several ranges or an invalid one, the whole file is returned.
    """
    data = memoryview(file.content.data)
    tag = etag(data)
    changed = format_datetime(file.scanned_at or datetime(2025, 1, 1, tzinfo=UTC), usegmt=True)
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Disposition": content_disposition,
        "Accept-Ranges": "bytes",
        "ETag": tag,
        "Last-Modified": changed,
    }
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", "").replace(" ", ""))
    if not match or match[0] == "bytes=-" or request.headers.get("if-range", tag) not in (tag, changed):
        return Answer(200, data, headers)
    if match[1]:
        start, end = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
    else:
        start, end = max(len(data) - int(match[2]), 0), len(data) - 1
    if match[1] and match[2] and int(match[2]) < start:
        return Answer(200, data, headers)
    if start > end:
        complaint = storage_error(416, "InvalidRange", "The requested range is not satisfiable")
        return complaint.with_headers(Content_Range=f"bytes */{len(data)}")
    return Answer(206, data[start : end + 1], headers | {"Content-Range": f"bytes {start}-{end}/{len(data)}"})
