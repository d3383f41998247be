"""Divides a file into spans for parallel download, and tracks which connection is downloading which span."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from civman.civitai.storage_connection import StorageConnection
from civman.domain.timeouts import Patience

SMALLEST_SPAN = 4 << 20
_LARGEST_SPAN = 64 << 20
_MOST_DOUBLINGS = 6
"""The maximum number of times that the wait before a takeover doubles.

It doubles after each takeover that brought no gain, so that connections to a slow server do not keep replacing each
other.
"""
_RESPONSES_LONG = 20
"""The desired ratio between the time to download a span and the time its request waits for a response.

With 20, waiting costs 5 %.
"""
_SMALLEST_HALF = 1 << 20
_WORTH_HALVING_S = 0.5
_JUDGED_AFTER_S = 0.2

Gaps = Iterable[tuple[int, int]]


@dataclass(slots=True, eq=False)
class Span:
    """The bytes `[at, end)` that one connection is downloading.

    `end` decreases if another connection takes over a part.
    """

    at: int
    end: int
    connection: StorageConnection
    is_whole: bool = False
    """Whether the span was requested without a Range header.

    The response then repeats bytes that are on disk already; they are skipped.
    """
    since: float = field(default_factory=time.monotonic)
    last: float = field(default_factory=time.monotonic)
    """When bytes last arrived. With a speed limit: the earliest time at which more may be read."""
    asked_at: float = 0.0
    """When the request was sent; 0 if no request is waiting for its response."""
    answered_at: float = 0.0
    count: int = 0
    relieved: int = 0
    """The number of consecutive takeovers of the span without a byte received; each makes the next takeover wait
    longer.
    """

    @property
    def left_bytes(self) -> int:
        """The number of bytes still to be downloaded."""
        return max(0, self.end - self.at)

    def eta_s(self, now: float) -> float:
        """Estimated seconds until the span is finished, at its average speed so far."""
        speed = self.count / max(now - self.since, 1e-3)
        return self.left_bytes / speed if speed else float("inf")


class Spans:
    """The spans of one transfer that are being downloaded. Not thread-safe: the owner must hold a lock."""

    def __init__(self, patience: Patience, connections: int) -> None:
        """`connections` is the maximum number of connections, which determines the size of the spans."""
        self._idle_s = patience.idle_s
        self._connections = connections
        self._spans: list[Span] = []
        self.answer_s = 0.0
        """The average time in seconds that a request waits for its response."""
        self._speed = 0.0
        """The average speed of one connection after its response has begun, in bytes per second."""

    def __len__(self) -> int:
        return len(self._spans)

    def __iter__(self) -> Iterator[Span]:
        return iter(tuple(self._spans))

    def first(self, start: int, size: int | None, connection: StorageConnection) -> Span:
        """Add the span of the first request. Nothing is known about the server yet, perhaps not even `size`."""
        return self._added(Span(start, min(size or _LARGEST_SPAN, start + self._span_bytes(size)), connection))

    def whole(self, size: int, connection: StorageConnection) -> Span:
        """Add the span of a request for the complete file."""
        return self._added(Span(0, size, connection, is_whole=True))

    def next(self, gaps: Gaps, size: int, connection: StorageConnection) -> Span | None:
        """Add a span for the first part of `gaps` that no connection is downloading.

        If every part is being downloaded, take over a part of the slowest span, provided that this saves time.
        """
        for start, end in self._unclaimed(gaps):
            return self._added(Span(start, min(end, start + self._span_bytes(size)), connection))
        return self._relieve(connection)

    def answered(self, span: Span) -> None:
        """Record that the request for `span` has received its response."""
        span.answered_at = time.monotonic()
        self.answer_s = _smoothed(self.answer_s, span.answered_at - span.asked_at)

    def release(self, span: Span) -> None:
        """Remove `span`, because its connection has finished or given up."""
        if span in self._spans:
            self._spans.remove(span)
            if span.answered_at and span.count:
                self._speed = _smoothed(self._speed, span.count / max(time.monotonic() - span.answered_at, 1e-3))

    def unclaimed_bytes(self, gaps: Gaps) -> int:
        """The number of bytes in `gaps` that are not being downloaded by any connection."""
        return sum(end - start for start, end in self._unclaimed(gaps))

    def abort(self) -> None:
        """Abort the connections of all spans."""
        for span in self._spans:
            span.connection.abort()

    def abort_unanswered(self, longest_s: float) -> None:
        """Abort every connection whose response headers are still incomplete after `longest_s` seconds."""
        now = time.monotonic()
        for span in self._spans:
            if span.asked_at and now - span.asked_at > longest_s:
                span.connection.abort()

    def _added(self, span: Span) -> Span:
        self._spans.append(span)
        return span

    def _span_bytes(self, size: int | None) -> int:
        """The size in bytes of a new span: just large enough that waiting for responses costs little.

        The digest can be computed only up to the first gap in the file. With small spans, few bytes after this gap
        remain to be hashed.
        """
        most = min(_LARGEST_SPAN, (size or 0) // (4 * self._connections))
        return max(SMALLEST_SPAN, min(most, int(_RESPONSES_LONG * self.answer_s * self._speed)))

    def _unclaimed(self, gaps: Gaps) -> Iterator[tuple[int, int]]:
        claims = sorted((span.at, span.end) for span in self._spans)
        for at, end in gaps:
            for low, high in claims:
                if at < min(low, end):
                    yield at, min(low, end)
                at = max(at, high)
            if at < end:
                yield at, end

    def _relieve(self, connection: StorageConnection) -> Span | None:
        now = time.monotonic()
        for span in self._spans:
            patience_s = self._idle_s * 2 ** min(span.relieved, _MOST_DOUBLINGS)
            if now - span.last >= patience_s and span.left_bytes:
                taken = Span(span.at, span.end, connection, relieved=0 if span.count else span.relieved + 1)
                span.end = span.at
                span.connection.abort()
                return self._added(taken)
        slowest = max(self._spans, key=lambda span: span.eta_s(now), default=None)
        if slowest is None or slowest.left_bytes < 2 * _SMALLEST_HALF:
            return None
        if slowest.eta_s(now) > _WORTH_HALVING_S and now - slowest.since > _JUDGED_AFTER_S:
            middle = slowest.at + slowest.left_bytes // 2
            taken = Span(middle, slowest.end, connection)
            slowest.end = middle
            return self._added(taken)
        return None


def _smoothed(before: float, now: float) -> float:
    return (before + now) / 2 if before else now
