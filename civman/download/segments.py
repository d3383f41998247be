"""Which worker is after which bytes of a file."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from civman.civitai.storage_connection import StorageConnection
from civman.domain.timeouts import Patience

SMALLEST_SPAN = 4 << 20
_LARGEST_SPAN = 64 << 20
_ANSWERS_LONG = 20
"""A span should take so many times as long as its request waits for an answer: 5 % of waiting."""
_SMALLEST_HALF = 1 << 20
_WORTH_HALVING_S = 0.5
_JUDGED_AFTER_S = 0.2

Gaps = Iterable[tuple[int, int]]


@dataclass(slots=True, eq=False)
class Span:
    """What one worker is after: `[at, end)`; `end` may move down when another takes over."""

    at: int
    end: int
    connection: StorageConnection
    is_whole: bool = False
    """Asked for without a range: what is there already comes again and is passed over."""
    since: float = field(default_factory=time.monotonic)
    last: float = field(default_factory=time.monotonic)
    """When bytes last came, or will at the earliest where a speed limit holds them back."""
    asked_at: float = 0.0
    """When the request was sent; 0 while there is none that has not been answered."""
    answered_at: float = 0.0
    count: int = 0

    @property
    def left_bytes(self) -> int:
        """How much is still to come."""
        return max(0, self.end - self.at)

    def eta_s(self, now: float) -> float:
        """Seconds until its end at the speed so far."""
        speed = self.count / max(now - self.since, 1e-3)
        return self.left_bytes / speed if speed else float("inf")


class Spans:
    """The spans of one transfer. Not thread-safe: the owner holds a lock."""

    def __init__(self, patience: Patience, connections: int) -> None:
        """`connections` is how many there may be, by which a file is divided."""
        self._idle_s = patience.idle_s
        self._connections = connections
        self._spans: list[Span] = []
        self.answer_s = 0.0
        """How long a request waits for its answer."""
        self._speed = 0.0
        """Bytes per second of one connection, once answered."""

    def __len__(self) -> int:
        return len(self._spans)

    def __iter__(self) -> Iterator[Span]:
        return iter(tuple(self._spans))

    def first(self, start: int, size: int | None, connection: StorageConnection) -> Span:
        """The span of the request that goes ahead: nobody knows yet how the server answers, maybe not even `size`."""
        return self._taken(Span(start, min(size or _LARGEST_SPAN, start + self._span_bytes(size)), connection))

    def whole(self, size: int, connection: StorageConnection) -> Span:
        """The span of a request for all bytes."""
        return self._taken(Span(0, size, connection, is_whole=True))

    def next(self, gaps: Gaps, size: int, connection: StorageConnection) -> Span | None:
        """The lowest piece of `gaps` that nobody is after, else what the slowest should give up, if it pays."""
        for start, end in self._unclaimed(gaps):
            return self._taken(Span(start, min(end, start + self._span_bytes(size)), connection))
        return self._relieve(connection)

    def answered(self, span: Span) -> None:
        """The request for `span` has its answer."""
        span.answered_at = time.monotonic()
        self.answer_s = _smoothed(self.answer_s, span.answered_at - span.asked_at)

    def release(self, span: Span) -> None:
        """`span` is over."""
        if span in self._spans:
            self._spans.remove(span)
            if span.answered_at and span.count:
                self._speed = _smoothed(self._speed, span.count / max(time.monotonic() - span.answered_at, 1e-3))

    def unclaimed_bytes(self, gaps: Gaps) -> int:
        """How much of `gaps` nobody is after."""
        return sum(end - start for start, end in self._unclaimed(gaps))

    def abort(self) -> None:
        """End every connection."""
        for span in self._spans:
            span.connection.abort()

    def abort_unanswered(self, longest_s: float) -> None:
        """End connections whose answer has not begun after so long, however slowly its headers trickle."""
        now = time.monotonic()
        for span in self._spans:
            if span.asked_at and now - span.asked_at > longest_s:
                span.connection.abort()

    def _taken(self, span: Span) -> Span:
        self._spans.append(span)
        return span

    def _span_bytes(self, size: int | None) -> int:
        """Small, so that the unbroken run from byte 0 is never far behind; as large as waiting for answers asks for."""
        most = min(_LARGEST_SPAN, (size or 0) // (4 * self._connections))
        return max(SMALLEST_SPAN, min(most, int(_ANSWERS_LONG * self.answer_s * self._speed)))

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
            if now - span.last >= self._idle_s and span.left_bytes:
                taken = Span(span.at, span.end, connection)
                span.end = span.at
                span.connection.abort()
                return self._taken(taken)
        slowest = max(self._spans, key=lambda span: span.eta_s(now), default=None)
        if slowest is None or slowest.left_bytes < 2 * _SMALLEST_HALF:
            return None
        if slowest.eta_s(now) > _WORTH_HALVING_S and now - slowest.since > _JUDGED_AFTER_S:
            middle = slowest.at + slowest.left_bytes // 2
            taken = Span(middle, slowest.end, connection)
            slowest.end = middle
            return self._taken(taken)
        return None


def _smoothed(before: float, now: float) -> float:
    return (before + now) / 2 if before else now
