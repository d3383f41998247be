"""What the connections of one transfer share: which bytes are whose, and what is known of the file."""

import threading
import time

from civman.civitai.response_body import Body
from civman.civitai.storage_connection import StorageConnection
from civman.download.same_file import Identity
from civman.download.segments import SMALLEST_SPAN, Span, Spans
from civman.errors import Cause, CivmanError, NetworkError
from civman.store.partial import Partial

_PROGRESS_BYTES = 1 << 16
"""A request that brought this much was worth it."""


class SpanQueue:
    """Hands out spans of the file and takes in what becomes of them. Thread-safe: one lock guards all of it."""

    def __init__(self, partial: Partial, spans: Spans, identity: Identity, stopped: threading.Event) -> None:
        """After `stopped` is set nothing more is handed out; `abort` ends what is under way."""
        self._partial = partial
        self._spans = spans
        self._identity = identity
        self._stopped = stopped
        self._changed = threading.Condition(threading.Lock())
        self._is_open = False
        self._needs_whole_bodies = False
        self._has_ignored_range = False
        self._received_bytes = 0
        self._progress_bytes = 0

    # -- for the thread that watches -------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether a response has been accepted as the right file."""
        return self._is_open

    @property
    def received_bytes(self) -> int:
        """How many bytes have arrived that were missing."""
        return self._received_bytes

    @property
    def response_s(self) -> float:
        """How long a request waits for its response."""
        return self._spans.answer_s

    def spare_spans(self) -> int:
        """How many more connections would find something to do."""
        with self._changed:
            if self._needs_whole_bodies:
                return 0
            return -(-self._spans.unclaimed_bytes(self._partial.missing()) // SMALLEST_SPAN)

    def wait(self, timeout_s: float) -> None:
        """Return after `timeout_s`, or as soon as something changes."""
        with self._changed:
            self._changed.wait(timeout_s)

    def wake(self) -> None:
        """End all waiting."""
        with self._changed:
            self._changed.notify_all()

    def abort(self) -> None:
        """Abort every connection that has a span, and end all waiting."""
        with self._changed:
            self._spans.abort()
            self._changed.notify_all()

    def abort_unanswered(self, longest_s: float) -> None:
        """Abort connections whose response has not begun after `longest_s`, however slowly headers trickle in."""
        with self._changed:
            self._spans.abort_unanswered(longest_s)

    # -- for the threads that fetch --------------------------------------------------------------------------------

    def claim(self, connection: StorageConnection) -> Span | None:
        """The next span to fetch over `connection`, waiting for one if necessary; None: nothing is left to do."""
        with self._changed:
            while not self._stopped.is_set():
                span = self._next(connection)
                if span is not None:
                    return span
                if not len(self._spans):
                    return None
                self._changed.wait(0.1)
        return None

    def request(self, span: Span) -> tuple[int, int | None, str | None]:
        """Start, end (None: to the end of the file) and expected ETag of the request for `span`, which begins now."""
        with self._changed:
            start, end = (0, None) if span.is_whole else (span.at, span.end)
            span.last = span.asked_at = time.monotonic()
            return start, end, self._identity.etag

    def answered(self, span: Span) -> None:
        """The request for `span` has its response."""
        with self._changed:
            self._spans.answered(span)

    def accept(self, body: Body, span: Span) -> None:
        """Compare a response with what is known of the file.

        Raises: Changed, IntegrityError: it is another file. BadAnswer: its length is unknown. StoreError: no room.
            NetworkError: the server ignored the range for the first time.
        """
        with self._changed:
            size = self._identity.check(body, is_first=not self._is_open)
            if not self._is_open:
                self._partial.reserve(size)
                span.end = min(span.end, size)
            self._identity.keep(body)
            if not body.is_partial and not span.is_whole:
                if span.at > 0 and not self._has_ignored_range:
                    self._has_ignored_range = True
                    raise NetworkError(f"`{body.host}` ignored the range", code=Cause.RANGE_IGNORED, host=body.host)
                self._needs_whole_bodies = span.is_whole = True
                span.at, span.end = 0, size
            self._is_open = True
            self._changed.notify_all()

    def refused(self, span: Span, error: CivmanError) -> None:
        """The server has no such range (status 416): it may know no ranges at all.

        Raises: Changed, IntegrityError: the length that it states belongs to another file.
        """
        with self._changed:
            self._identity.check_refusal(error)
            self._needs_whole_bodies = self._needs_whole_bodies or not span.is_whole

    def advance(self, span: Span, count: int, fresh: int) -> bool:
        """`count` bytes of `span` are written, `fresh` of them for the first time; whether that is real progress."""
        with self._changed:
            span.at += count
            span.count += count
            self._received_bytes += fresh
            is_progress = self._received_bytes - self._progress_bytes >= _PROGRESS_BYTES
            if is_progress:
                self._progress_bytes = self._received_bytes
            return is_progress

    def release(self, span: Span) -> None:
        """No connection works on `span` any more."""
        with self._changed:
            self._spans.release(span)
            self._changed.notify_all()

    def leave_to_others(self, span: Span) -> int:
        """Release `span` if it has brought nothing and other spans are under way: how many those are, else 0.

        Deciding and releasing are one step, or two connections could each leave because of the other.
        """
        with self._changed:
            others = len(self._spans) - 1
            if not self._is_open or others < 1 or span.count >= _PROGRESS_BYTES:
                return 0
            self._spans.release(span)
            return others

    def _next(self, connection: StorageConnection) -> Span | None:
        size = self._partial.size_bytes
        if self._needs_whole_bodies:
            is_free = not len(self._spans) and not self._partial.is_complete
            return self._spans.whole(size or self._identity.size_bytes or 0, connection) if is_free else None
        if size is None or not self._is_open:  # no response has been seen yet: one connection goes ahead
            if len(self._spans) or self._partial.is_complete:
                return None
            gap = next(iter(self._partial.missing()), None)
            start, end = gap or (0, self._identity.size_bytes)
            return self._spans.first(start, end, connection)
        return self._spans.next(self._partial.missing(), size, connection)
