"""Civman's demo server, misbehaving on request.

    with faulty_server(catalogue, Cut(after=100_000, times=1)) as server:
        ...
    assert server.struck

Each fault says what it does to an answer, where (`on`, `method`, `path`, a pattern searched in path and query) and
when (`skip` matching requests pass first, then it strikes `times` times; None: always).
"""

import gzip
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from civman.demo.demo_catalog import Catalogue
from civman.demo.http_messages import Answer, Request
from civman.demo.server import CivitaiServer, Wire
from civman.demo.storage_server import expired, storage_error

DOWNLOAD = r"^/api/download/models/"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong; `spoil` gives a changed answer, `transmit` puts it on the wire."""

    times: int | None = None
    skip: int = 0
    on: str = "storage"
    method: str = ""
    path: str = ""

    def matches(self, request: Request) -> bool:
        right_place = request.server == self.on and self.method in ("", request.method)
        return right_place and re.search(self.path, request.target) is not None

    def spoil(self, request: Request, answer: Answer, server: "FaultyServer") -> Answer:
        return answer

    def transmit(self, request: Request, answer: Answer, wire: Wire, server: "FaultyServer") -> None:
        wire.send(answer)


@dataclass(frozen=True, kw_only=True)
class Together(Fault):
    """Several faults in one answer: each spoils it in turn, the last one transmits it."""

    faults: tuple[Fault, ...]

    def matches(self, request: Request) -> bool:
        return super().matches(request) and all(fault.matches(request) for fault in self.faults)

    def spoil(self, request: Request, answer: Answer, server: "FaultyServer") -> Answer:
        for fault in self.faults:
            answer = fault.spoil(request, answer, server)
        return answer

    def transmit(self, request: Request, answer: Answer, wire: Wire, server: "FaultyServer") -> None:
        self.faults[-1].transmit(request, answer, wire, server)


# What the connection does ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cut(Fault):
    """The connection closes after so many bytes of the body."""

    after: int

    def transmit(self, request: Request, answer: Answer, wire: Wire, server: "FaultyServer") -> None:
        _begin(answer, wire)
        wire.data(answer.body[: self.after])
        wire.hang_up()


@dataclass(frozen=True, kw_only=True)
class Reset(Fault):
    """The connection is reset after so many bytes of the body."""

    after: int = 0

    def transmit(self, request: Request, answer: Answer, wire: Wire, server: "FaultyServer") -> None:
        _begin(answer, wire)
        wire.data(answer.body[: self.after])
        wire.wait(0.05)  # a reset drops what the other side has not read yet; let it have what was sent
        wire.reset()


@dataclass(frozen=True, kw_only=True)
class Silence(Fault):
    """Nothing at all for so long, then the answer."""

    seconds: float

    def transmit(self, request: Request, answer: Answer, wire: Wire, server: "FaultyServer") -> None:
        wire.wait(self.seconds)
        wire.send(answer)


@dataclass(frozen=True, kw_only=True)
class Stall(Fault):
    """Nothing moves for so long after so many bytes of the body, then the rest comes."""

    after: int
    seconds: float

    def transmit(self, request: Request, answer: Answer, wire: Wire, server: "FaultyServer") -> None:
        _begin(answer, wire)
        wire.data(answer.body[: self.after])
        wire.wait(self.seconds)
        wire.data(answer.body[self.after :])


@dataclass(frozen=True, kw_only=True)
class Hold(Fault):
    """Nothing moves after so many bytes of the body until `released` is set, then the rest comes."""

    after: int
    released: threading.Event

    def transmit(self, request: Request, answer: Answer, wire: Wire, server: "FaultyServer") -> None:
        _begin(answer, wire)
        wire.data(answer.body[: self.after])
        while not self.released.is_set() and not wire.is_stopping:
            wire.data(b"")
            self.released.wait(0.05)
        wire.data(answer.body[self.after :])


@dataclass(frozen=True, kw_only=True)
class Throttle(Fault):
    """The body comes at this rate, in pieces of this size, on each connection."""

    bytes_per_s: float
    piece_bytes: int = 16384

    def transmit(self, request: Request, answer: Answer, wire: Wire, server: "FaultyServer") -> None:
        _begin(answer, wire)
        started = time.monotonic()
        for start in range(0, len(answer.body), self.piece_bytes):
            wire.data(answer.body[start : start + self.piece_bytes])
            due = started + (start + self.piece_bytes) / self.bytes_per_s
            wire.wait(max(due - time.monotonic(), 0))
            if wire.is_stopping:
                wire.hang_up()
                return


@dataclass(frozen=True, kw_only=True)
class Drip(Throttle):
    """The body comes byte by byte."""

    piece_bytes: int = 1


# What the answer says of its body ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class WrongLength(Fault):
    """`Content-Length` is off by so many bytes; the connection ends after the true body."""

    off_by: int

    def transmit(self, request: Request, answer: Answer, wire: Wire, server: "FaultyServer") -> None:
        wire.head(answer.status, {"Content-Length": str(len(answer.body) + self.off_by), **answer.headers})
        wire.data(answer.body)
        wire.hang_up()


@dataclass(frozen=True, kw_only=True)
class NoLength(Fault):
    """No `Content-Length`; the end of the connection is the end of the body, or of `after` bytes of it."""

    after: int | None = None

    def transmit(self, request: Request, answer: Answer, wire: Wire, server: "FaultyServer") -> None:
        wire.head(answer.status, {**answer.headers, "Connection": "close"})
        wire.data(answer.body[: self.after])
        wire.hang_up()


@dataclass(frozen=True, kw_only=True)
class Gzip(Fault):
    """The body is compressed, whether that was asked for or not."""

    def spoil(self, request: Request, answer: Answer, server: "FaultyServer") -> Answer:
        body = gzip.compress(bytes(answer.body), compresslevel=1, mtime=0)
        return replace(answer, body=body).with_headers(Content_Encoding="gzip")


@dataclass(frozen=True, kw_only=True)
class ChangedEtag(Fault):
    """The entity tag is another one than before; `If-Range` therefore gets the whole file."""

    etag: str = '"another-file-now"'

    def spoil(self, request: Request, answer: Answer, server: "FaultyServer") -> Answer:
        if "if-range" in request.headers and request.headers["if-range"] != self.etag:
            answer = server.answer(_without(request, "range"))
        return answer.with_headers(ETag=self.etag)


# What it does with ranges ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class IgnoreRange(Fault):
    """A range is answered with 200 and the whole file."""

    def spoil(self, request: Request, answer: Answer, server: "FaultyServer") -> Answer:
        return server.answer(_without(request, "range"))


@dataclass(frozen=True, kw_only=True)
class RefuseRange(Fault):
    """A range is answered with 416, whatever it is; requests without one pass."""

    def matches(self, request: Request) -> bool:
        return super().matches(request) and "range" in request.headers

    def spoil(self, request: Request, answer: Answer, server: "FaultyServer") -> Answer:
        total = len(server.answer(_without(request, "range")).body)
        return storage_error(416, "InvalidRange", "not satisfiable").with_headers(Content_Range=f"bytes */{total}")


@dataclass(frozen=True, kw_only=True)
class WrongContentRange(Fault):
    """A 206 says it begins `shift` bytes later than asked, or says `value`; the body is what was asked for."""

    shift: int = 1
    value: str | None = None

    def matches(self, request: Request) -> bool:
        return super().matches(request) and "range" in request.headers

    def spoil(self, request: Request, answer: Answer, server: "FaultyServer") -> Answer:
        value = self.value
        if value is None:
            start, end, total = (int(part) for part in re.findall(r"\d+", answer.headers["Content-Range"]))
            value = f"bytes {start + self.shift}-{end + self.shift}/{total + self.shift}"
        return answer.with_headers(Content_Range=value)


# What the bytes are ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FlipByte(Fault):
    """One byte of the file is wrong: the one at this offset of the whole file."""

    at: int

    def spoil(self, request: Request, answer: Answer, server: "FaultyServer") -> Answer:
        place = self.at - _first_byte(answer)
        if not 0 <= place < len(answer.body):
            return answer
        body = bytearray(answer.body)
        body[place] ^= 0xFF
        return replace(answer, body=bytes(body))


@dataclass(frozen=True, kw_only=True)
class Truncate(Fault):
    """The file is only so long, and every header agrees with that."""

    keep: int

    def spoil(self, request: Request, answer: Answer, server: "FaultyServer") -> Answer:
        if answer.status == 200:
            return replace(answer, body=answer.body[: self.keep])
        start = _first_byte(answer)
        if answer.status != 206 or start >= self.keep:
            refusal = storage_error(416, "InvalidRange", "not satisfiable")
            return refusal.with_headers(Content_Range=f"bytes */{self.keep}")
        body = answer.body[: self.keep - start]
        value = f"bytes {start}-{start + len(body) - 1}/{self.keep}"
        return replace(answer, body=body).with_headers(Content_Range=value)


# What is answered instead ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Expire(Fault):
    """The signed address has expired: at once, or in the middle of the body and from then on."""

    after: int | None = None

    def transmit(self, request: Request, answer: Answer, wire: Wire, server: "FaultyServer") -> None:
        server.storage.revoke(request.target)
        if self.after is None:
            wire.send(expired())
            return
        _begin(answer, wire)
        wire.data(answer.body[: self.after])
        wire.hang_up()


@dataclass(frozen=True, kw_only=True)
class Status(Fault):
    """This answer and no other."""

    status: int
    body: str | bytes = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    on: str = "api"

    def spoil(self, request: Request, answer: Answer, server: "FaultyServer") -> Answer:
        body = self.body.encode() if isinstance(self.body, str) else self.body
        return Answer(self.status, body, self.headers)


def too_many_requests(retry_after: str | None = None, **where: Any) -> Status:
    """429, with or without `Retry-After`."""
    headers = {"Content-Type": "application/json"} | ({"Retry-After": retry_after} if retry_after else {})
    return Status(status=429, body='{"error":"Too many requests"}', headers=headers, **where)


def region_blocked(**where: Any) -> Status:
    """451 as some countries get it."""
    text = "Access to this service is not available in your region due to legal restrictions."
    body = f'{{"error":"{text}","code":"REGION_BLOCKED"}}'
    return Status(status=451, body=body, headers={"Content-Type": "application/json"}, **where)


def web_page(status: int = 200, text: str = "Log in", **where: Any) -> Status:
    """An HTML page where data should be: a login page with 200, an edge error with 5xx."""
    body = f"<!DOCTYPE html><html><title>{text}</title></html>"
    return Status(status=status, body=body, headers={"Content-Type": "text/html; charset=utf-8"}, **where)


@dataclass(frozen=True, kw_only=True)
class Redirect(Fault):
    """A redirect to any place; without `to`, to the very same address."""

    to: str | None = None
    status: int = 307
    on: str = "api"
    path: str = DOWNLOAD

    def spoil(self, request: Request, answer: Answer, server: "FaultyServer") -> Answer:
        origin = server.url if request.server == "api" else server.storage_url
        return Answer.redirect(self.to if self.to is not None else origin + request.target, self.status)


@dataclass(frozen=True, kw_only=True)
class HugeHeader(Fault):
    """One header of this size."""

    size_bytes: int = 1_000_000
    on: str = "api"

    def spoil(self, request: Request, answer: Answer, server: "FaultyServer") -> Answer:
        return answer.with_headers(X_Huge="x" * self.size_bytes)


@dataclass(frozen=True, kw_only=True)
class EndlessHeaders(Fault):
    """Headers that never end, until the other side leaves or `most_bytes` are sent."""

    most_bytes: int = 50_000_000
    on: str = "api"

    def transmit(self, request: Request, answer: Answer, wire: Wire, server: "FaultyServer") -> None:
        wire.raw(b"HTTP/1.1 200 OK\r\n")
        block = b"".join(b"X-Endless-%03d: %s\r\n" % (number, b"x" * 80) for number in range(200))
        for _ in range(self.most_bytes // len(block)):
            if wire.is_stopping:
                break
            wire.raw(block)
        wire.hang_up()


@dataclass(frozen=True, kw_only=True)
class TrickledHeaders(Fault):
    """Headers that come a few bytes at a time and never end."""

    def transmit(self, request: Request, answer: Answer, wire: Wire, server: "FaultyServer") -> None:
        wire.raw(b"HTTP/1.1 206 Partial Content\r\nX-Slow: ")
        while not wire.is_stopping:
            wire.raw(b"x")
            wire.wait(0.05)
        wire.hang_up()


# The server --------------------------------------------------------------------------------------------------------


class _Metered(Wire):
    """The same connection; counts the bytes of bodies that were handed to it."""

    def __init__(self, wire: Wire, server: "FaultyServer") -> None:
        self.__dict__ = wire.__dict__  # one state under two views: `must_close` is read from the other
        self._server = server

    def data(self, data: bytes | memoryview) -> None:
        super().data(data)
        self._server.count_sent(len(data))


class FaultyServer(CivitaiServer):
    """The embedded CivitAI with faults; `struck` lists each fault each time it struck.

    `sent_bytes` is how much of bodies the storage has sent, and may have been lost on the way.
    """

    def __init__(self, catalogue: Catalogue | None = None, *faults: Fault, **options: Any) -> None:
        super().__init__(catalogue, **options)
        self.struck: list[Fault] = []
        self._faults = list(faults)
        self._seen: Counter[int] = Counter()
        self._lock = threading.Lock()
        self.sent_bytes = 0

    def count_sent(self, count: int) -> None:
        with self._lock:
            self.sent_bytes += count

    def inject(self, *faults: Fault) -> None:
        """From now on these too."""
        with self._lock:
            self._faults.extend(faults)

    def heal(self) -> None:
        """From now on none."""
        with self._lock:
            self._faults.clear()
            self._seen.clear()

    def respond(self, request: Request, answer: Answer, wire: Wire) -> None:
        fault = self._due(request)
        if request.server == "storage":
            wire = _Metered(wire, self)
        if fault is None:
            super().respond(request, answer, wire)
        else:
            fault.transmit(request, fault.spoil(request, answer, self), wire, self)

    def _due(self, request: Request) -> Fault | None:
        with self._lock:
            for place, fault in enumerate(self._faults):
                if not fault.matches(request):
                    continue
                self._seen[place] += 1
                number = self._seen[place] - fault.skip
                if number > 0 and (fault.times is None or number <= fault.times):
                    self.struck.append(fault)
                    return fault
        return None


def faulty_server(catalogue: Catalogue | None = None, *faults: Fault, **options: Any) -> FaultyServer:
    """A server with these faults, to be entered with `with`; `options` are those of `CivitaiServer`."""
    return FaultyServer(catalogue, *faults, **options)


def _begin(answer: Answer, wire: Wire) -> None:
    wire.head(answer.status, {"Content-Length": str(len(answer.body)), **answer.headers})


def _without(request: Request, header: str) -> Request:
    return replace(request, headers={key: value for key, value in request.headers.items() if key != header})


def _first_byte(answer: Answer) -> int:
    match = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(match[1]) if match else 0
