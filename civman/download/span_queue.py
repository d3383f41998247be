"""The state shared by the connections of a transfer: which of them downloads which bytes, and the file's identity."""

import threading
import time

from civman.civitai.response_body import Body
from civman.civitai.storage_connection import StorageConnection
from civman.download.same_file import Identity
from civman.download.segments import SMALLEST_SPAN, Span, Spans
from civman.errors import Cause, CivmanError, NetworkError
from civman.store.partial import Partial

_PROGRESS_BYTES = 1 << 16
"""A request that received at least this many bytes counts as progress."""


class SpanQueue:
    """Hands out spans of the file to connections and records their progress.

    Thread-safe: one lock guards everything.
    """

    def __init__(self, partial: Partial, spans: Spans, identity: Identity, stopped: threading.Event) -> None:
        """After `stopped` is set, no more spans are handed out; `abort` ends the requests that are running."""
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

    # -- methods for the supervising thread -------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether a response has been accepted as belonging to this file."""
        return self._is_open

    @property
    def received_bytes(self) -> int:
        """The number of bytes received that were not on disk before."""
        return self._received_bytes

    @property
    def response_s(self) -> float:
        """The average time in seconds that a request waits for its response."""
        return self._spans.answer_s

    def spare_spans(self) -> int:
        """The number of additional connections that could be given a span."""
        with self._changed:
            if self._needs_whole_bodies:
                return 0
            return -(-self._spans.unclaimed_bytes(self._partial.missing()) // SMALLEST_SPAN)

    def wait(self, timeout_s: float) -> None:
        """Return after `timeout_s`, or earlier if something changes."""
        with self._changed:
            self._changed.wait(timeout_s)

    def wake(self) -> None:
        """Wake up all waiting threads."""
        with self._changed:
            self._changed.notify_all()

    def abort(self) -> None:
        """Abort every connection that has a span, and wake up all waiting threads."""
        with self._changed:
            self._spans.abort()
            self._changed.notify_all()

    def abort_unanswered(self, longest_s: float) -> None:
        """Abort connections that have waited more than `longest_s` seconds for the headers of their response."""
        with self._changed:
            self._spans.abort_unanswered(longest_s)

    # -- methods for the threads that download ----------------------------------------------------------------------

    def claim(self, connection: StorageConnection) -> Span | None:
        """Return the next span to download over `connection`, waiting for one if necessary.

        Returns None if there is nothing left to do.
        """
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
        """Record that the request for `span` begins now.

        Returns its start, its end (None: end of file) and the expected ETag.
        """
        with self._changed:
            start, end = (0, None) if span.is_whole else (span.at, span.end)
            span.last = span.asked_at = time.monotonic()
            return start, end, self._identity.etag

    def answered(self, span: Span) -> None:
        """Record that the request for `span` has received its response."""
        with self._changed:
            self._spans.answered(span)

    def accept(self, body: Body, span: Span) -> None:
        """Check that a response belongs to this file.

        Raises: Changed, IntegrityError: the response belongs to another file. BadAnswer: the file's size is unknown.
        StoreError: the disk is full. NetworkError: the server ignored the range, for the first time in this transfer.
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
                    raise NetworkError(
                        f"`{body.host}` ignored the requested byte range", code=Cause.RANGE_IGNORED, host=body.host
                    )
                self._needs_whole_bodies = span.is_whole = True
                span.at, span.end = 0, size
            self._is_open = True
            self._changed.notify_all()

    def without_ranges(self) -> None:
        """Request the whole file from now on, because the server compresses responses.

        A part of a compressed file cannot be decompressed.
        """
        with self._changed:
            self._needs_whole_bodies = True

    def refused(self, span: Span, error: CivmanError) -> None:
        """Handle a response with status 416 (range not satisfiable): the server might not support ranges at all.

        Raises: Changed, IntegrityError: the size that the server states belongs to another file.
        """
        with self._changed:
            self._identity.check_refusal(error)
            self._needs_whole_bodies = self._needs_whole_bodies or not span.is_whole

    def advance(self, span: Span, count: int, fresh: int) -> bool:
        """Record that `count` bytes of `span` were written, `fresh` of them for the first time.

        Returns whether the transfer has made real progress since this method last returned True.
        """
        with self._changed:
            span.at += count
            span.count += count
            self._received_bytes += fresh
            is_progress = self._received_bytes - self._progress_bytes >= _PROGRESS_BYTES
            if is_progress:
                self._progress_bytes = self._received_bytes
            return is_progress

    def release(self, span: Span) -> None:
        """Release `span`: no connection is working on it any more."""
        with self._changed:
            self._spans.release(span)
            self._changed.notify_all()

    def leave_to_others(self, span: Span) -> int:
        """Release `span` if it received almost nothing while other spans are being downloaded.

        Returns the number of other spans if `span` was released, else 0.

        Checking and releasing happen under one lock. Otherwise two connections could each give up because of the other.
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
        # before the first response, only one connection sends a request, and the others wait
        if size is None or not self._is_open:
            if len(self._spans) or self._partial.is_complete:
                return None
            gap = next(iter(self._partial.missing()), None)
            start, end = gap or (0, self._identity.size_bytes)
            return self._spans.first(start, end, connection)
        return self._spans.next(self._partial.missing(), size, connection)
