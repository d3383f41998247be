"""One file's bytes over as many connections as pay, into one partial.

Workers claim the lowest missing span, so that the unbroken run from byte 0, which the digest follows, stays close to
the end. When nothing is left to claim, an idle worker takes half of the slowest one's span, or all of it where that
one is silent. A worker that fails while others get on retires; the last one backs off and tries again.
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from civman.civitai.answers import DownloadAddress
from civman.civitai.storage import Body, StorageConnection
from civman.domain.events import OnEvent, Received, Waiting
from civman.domain.patience import PATIENT, Patience
from civman.download.limits import RateLimit
from civman.errors import BadAnswer, CivmanError, IntegrityError, Interrupted, NetworkError, UnsafeRedirect
from civman.store.journal import Validator
from civman.store.partial import Partial

_BUFFER_BYTES = 1 << 20
_FLUSH_S = 0.1
_SMALLEST_SPAN = 4 << 20
_LARGEST_SPAN = 64 << 20
_SMALLEST_HALF = 1 << 20
_PROGRESS_BYTES = 1 << 16
"""A try that brought this much was worth it: the count of failures starts again."""
_FIRST_WORKERS = 4
_RAMP_S = 0.1
_RAMP_GAIN = 1.1
_AT_ONCE = frozenset({"link-expired", "range-ignored"})
"""Worth another try with a fresh address and without waiting."""
_FATAL = frozenset({"login-page"})
_MAY_PASS = frozenset({"storage-not-found"})
"""Not a network's failure, and yet a fresh address may cure it."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How hard to try."""

    max_connections: int | None = None
    """None: as many as pay, `most` at most."""
    most: int = 16
    limit: RateLimit | None = None
    patience: Patience = PATIENT


@dataclass(slots=True, eq=False)
class _Span:
    """What one worker is after: `[at, end)`; `end` may move down when another takes over."""

    at: int
    end: int
    connection: StorageConnection | None = None
    since: float = field(default_factory=time.monotonic)
    last: float = field(default_factory=time.monotonic)
    count: int = 0

    def eta_s(self, now: float) -> float:
        speed = self.count / max(now - self.since, 1e-3)
        return (self.end - self.at) / speed if speed else float("inf")


class _Crawl:
    """Notices a connection that is alive and useless."""

    def __init__(self, pace: Pace, host: str, now: float) -> None:
        slowest = 1024.0 if pace.limit is None else min(1024.0, pace.limit.bytes_per_s / 32)
        self._window_s, self._host = pace.patience.crawl_s, host
        self._least_bytes = slowest * pace.patience.crawl_s
        self._since, self._bytes = now, 0

    def count(self, count: int, now: float) -> None:
        """Take note of `count` bytes. Raises: NetworkError: too few came in the last window."""
        self._bytes += count
        if now - self._since >= self._window_s:
            if self._bytes < self._least_bytes:
                raise NetworkError(f"`{self._host}` sends next to nothing", code="stalled", host=self._host)
            self._since, self._bytes = now, 0


class Changed(Exception):  # a turn of events, not an error
    """The file behind the address is not the one that the first bytes came from: they are of no use any more."""


class Transfer:
    """Brings the missing bytes of `partial` from wherever `address` leads."""

    def __init__(
        self,
        partial: Partial,
        *,
        address: Callable[[], DownloadAddress],
        connect: Callable[[], StorageConnection],
        size_bytes: int | None,
        name: str,
        pace: Pace,
        on_event: OnEvent,
        cancel: threading.Event,
    ) -> None:
        """`address` asks CivitAI for a fresh signed address; `size_bytes` is what CivitAI declares, if it does.

        `on_event` is called from several threads. Setting `cancel` ends the transfer.
        """
        self._cancel = cancel
        self._partial = partial
        self._ask = address
        self._connect = connect
        self._size_bytes = size_bytes
        self._name = name
        self._pace = pace
        self._on_event = on_event
        self._lock = threading.RLock()
        self._news = threading.Condition(self._lock)
        self._spans: list[_Span] = []
        self._workers: list[threading.Thread] = []
        self._address: DownloadAddress | None = None
        self._failures = 0
        self._progress_bytes = 0
        self._received_bytes = 0
        self._error: BaseException | None = None
        self._stopped = threading.Event()
        self._whole_bodies = False
        self._ignored_ranges = 0
        self._is_open = False

    def run(self) -> None:
        """Fetch until nothing is missing; call it once.

        Raises: Changed. Interrupted: `cancel` was set. Else what the last failure was; what has arrived stays in the
            partial.
        """
        if self._partial.size_bytes is not None and not self._partial.missing():
            return
        try:
            self._spawn()
            last_ramp, last_bytes, best_rate = time.monotonic(), 0, 0.0
            with self._news:
                while any(worker.is_alive() for worker in self._workers):
                    self._news.wait(_RAMP_S / 2)
                    if self._cancel.is_set():
                        raise Interrupted(f"`{self._name}` was stopped")
                    now = time.monotonic()
                    if self._error is None and self._is_open and now - last_ramp >= _RAMP_S:
                        rate = (self._received_bytes - last_bytes) / (now - last_ramp)
                        if rate > best_rate * _RAMP_GAIN:
                            self._grow()
                        best_rate = max(best_rate, rate)
                        last_ramp, last_bytes = now, self._received_bytes
        finally:
            self._stop()
        if self._error is not None:
            raise self._error
        if not self._partial.is_complete:
            raise NetworkError(f"`{self._name}` is incomplete and nothing more comes", code="connection-cut")

    def _grow(self) -> None:
        if self._whole_bodies:
            return
        alive = sum(worker.is_alive() for worker in self._workers)
        most = self._pace.max_connections or self._pace.most
        unclaimed = -(-self._unclaimed_bytes() // _SMALLEST_SPAN)
        more = min(most - alive, max(alive, _FIRST_WORKERS - 1), unclaimed)
        if self._pace.max_connections is not None:
            more = min(most - alive, unclaimed)
        for _ in range(more):
            self._spawn()

    def _spawn(self) -> None:
        worker = threading.Thread(target=self._work, name=f"fetch-{len(self._workers)}", daemon=True)
        self._workers.append(worker)
        worker.start()

    def _stop(self) -> None:
        self._stopped.set()
        with self._lock:
            for span in self._spans:
                if span.connection is not None:
                    span.connection.abort()
            self._news.notify_all()
        for worker in self._workers:
            worker.join()
        self._workers.clear()
        self._spans.clear()

    # -- one worker ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        connection = self._connect()
        view = memoryview(bytearray(_BUFFER_BYTES))
        try:
            while not self._stopped.is_set():
                span = self._claim(connection)
                if span is None:
                    return
                try:
                    self._fetch(connection, span, view)
                except CivmanError as error:
                    connection.close()
                    if not self._carry_on(span, error):
                        return
                finally:
                    self._release(span)
        except BaseException as error:  # noqa: BLE001  # a bug in a thread must reach the caller, not vanish with it
            self._fail(error)
        finally:
            connection.close()
            with self._news:
                self._news.notify_all()

    def _fetch(self, connection: StorageConnection, span: _Span, view: memoryview) -> None:
        with self._lock:
            address = self._current_address()
            validator = self._partial.validator
            start, end = (0, None) if self._whole_bodies else (span.at, span.end)
        opening = end is None or self._partial.size_bytes is None
        body = connection.open(
            address.url,
            start=start,
            end=None if opening and end is None else end,
            send_token=address.send_token,
            etag=validator.etag if validator else None,
        )
        self._examine(body, span)
        filled, flushed_at = 0, time.monotonic()
        crawl = _Crawl(self._pace, body.host, flushed_at)
        while span.at < span.end and not self._stopped.is_set():
            room = min(len(view) - filled, span.end - span.at - filled)
            if room <= 0:
                break
            limit = self._pace.limit
            count = body.read_into(view[filled : filled + (min(room, limit.burst_bytes) if limit else room)])
            if limit is not None:
                limit.spend(count)
            filled += count
            now = time.monotonic()
            span.last = now
            crawl.count(count, now)
            is_last = count == 0 or filled >= span.end - span.at
            if is_last or filled == len(view) or now - flushed_at >= _FLUSH_S:
                self._put(span, view[:filled])
                filled, flushed_at = 0, now
            if count == 0:
                break
        if filled:
            self._put(span, view[:filled])
        if body.left_bytes != 0:
            connection.close()  # the rest belongs to somebody else now

    def _examine(self, body: Body, span: _Span) -> None:
        """Hold an answer against what is known of the file. Raises: Changed, IntegrityError, StoreError."""
        with self._lock:
            declared = self._size_bytes
            if body.total_bytes is not None and declared is not None and body.total_bytes != declared:
                raise IntegrityError(
                    f"`{self._name}` should have {declared:,} bytes, `{body.host}` offers {body.total_bytes:,}",
                    code="size-mismatch",
                    expected_bytes=declared,
                    offered_bytes=body.total_bytes,
                    hint="the file behind this version has changed, or something answers in CivitAI's place; "
                    "look at `civman show` again later",
                )
            known = self._partial.validator
            if known and body.etag and known.host == body.host and known.etag != body.etag:
                raise Changed("the file behind the address was replaced")
            size = body.total_bytes or declared
            if size is None:
                raise BadAnswer(f"`{body.host}` does not say how long `{self._name}` is", code="no-length")
            if self._partial.size_bytes is None or not self._is_open:
                if self._partial.size_bytes not in (None, size):
                    raise Changed(f"it had {self._partial.size_bytes:,} bytes before and has {size:,} now")
                self._partial.reserve(size)
                span.end = min(span.end, size)
            if body.etag and (known is None or known.host != body.host):
                self._partial.validator = Validator(body.host, body.etag)
            if not body.is_partial:
                self._ignored_ranges += 1
                if self._ignored_ranges == 1 and span.at > 0:
                    raise NetworkError(f"`{body.host}` ignored the range", code="range-ignored", host=body.host)
                self._whole_bodies = True
                span.at, span.end = 0, size
            self._is_open = True
            self._news.notify_all()

    def _put(self, span: _Span, data: memoryview) -> None:
        data = data[: max(0, span.end - span.at)]
        if not len(data):
            return
        fresh = self._partial.write(span.at, data)
        with self._lock:
            span.at += len(data)
            span.count += len(data)
            self._received_bytes += fresh
            if self._received_bytes - self._progress_bytes >= _PROGRESS_BYTES:
                self._failures = 0
                self._progress_bytes = self._received_bytes
        if fresh:
            self._on_event(Received(self._partial.key, fresh))

    # -- who does what ---------------------------------------------------------------------------------------------

    def _claim(self, connection: StorageConnection) -> _Span | None:
        with self._news:
            while not self._stopped.is_set():
                span = self._next_span(connection)
                if span is not None:
                    self._spans.append(span)
                    return span
                if not self._spans:
                    return None
                self._news.wait(0.1)
        return None

    def _next_span(self, connection: StorageConnection) -> _Span | None:
        size = self._partial.size_bytes
        if size is None or not self._is_open:  # nobody has seen an answer yet: one worker goes ahead
            if self._spans:
                return None
            gaps = self._partial.missing() if size is not None else []
            start, end = gaps[0] if gaps else (0, size or self._size_bytes or _LARGEST_SPAN)
            return _Span(start, min(end, start + self._span_bytes(size or self._size_bytes)), connection)
        if self._whole_bodies:
            return _Span(0, size, connection) if not self._spans and self._partial.missing() else None
        for start, end in self._partial.missing():
            for low, high in self._outside_claims(start, end):
                return _Span(low, min(high, low + self._span_bytes(size)), connection)
        return self._relieve(connection)

    def _span_bytes(self, size: int | None) -> int:
        connections = self._pace.max_connections or self._pace.most
        return max(_SMALLEST_SPAN, min(_LARGEST_SPAN, (size or 0) // (4 * connections)))

    def _outside_claims(self, start: int, end: int) -> list[tuple[int, int]]:
        """Parts of `[start, end)` that no worker is after."""
        free = [(start, end)]
        for span in self._spans:
            cut = []
            for low, high in free:
                if span.end <= low or span.at >= high:
                    cut.append((low, high))
                    continue
                if low < span.at:
                    cut.append((low, span.at))
                if span.end < high:
                    cut.append((span.end, high))
            free = cut
        return free

    def _unclaimed_bytes(self) -> int:
        gaps = self._partial.missing()
        return sum(high - low for gap in gaps for low, high in self._outside_claims(*gap))

    def _relieve(self, connection: StorageConnection) -> _Span | None:
        now = time.monotonic()
        slowest = max(self._spans, key=lambda span: span.eta_s(now), default=None)
        if slowest is None or slowest.connection is None:
            return None
        left = slowest.end - slowest.at
        if now - slowest.last >= self._pace.patience.idle_s and left > 0:
            taken = _Span(slowest.at, slowest.end, connection)
            slowest.end = slowest.at
            slowest.connection.abort()
            return taken
        if left >= 2 * _SMALLEST_HALF and slowest.eta_s(now) > 0.5 and now - slowest.since > 0.2:
            middle = slowest.at + left // 2
            taken = _Span(middle, slowest.end, connection)
            slowest.end = middle
            return taken
        return None

    def _release(self, span: _Span) -> None:
        with self._news:
            if span in self._spans:
                self._spans.remove(span)
            self._news.notify_all()

    # -- when things go wrong --------------------------------------------------------------------------------------

    def _current_address(self) -> DownloadAddress:
        if self._address is None:
            self._address = self._ask()
        return self._address

    def _carry_on(self, span: _Span, error: CivmanError) -> bool:
        """Whether this worker tries again after `error`. Raises: the error, when it is final."""
        if self._stopped.is_set() or span.at >= span.end:
            return not self._stopped.is_set()  # relieved of its span: nothing went wrong
        may_pass = isinstance(error, NetworkError) or error.code in _MAY_PASS
        if not may_pass or isinstance(error, UnsafeRedirect) or error.code in _FATAL:
            raise error
        with self._lock:
            if error.code == "range-not-satisfiable":
                raise Changed("the server has fewer bytes than it had")
            if self._is_open and len(self._spans) > 1 and error.code not in _AT_ONCE:
                self._spans.remove(span)  # in the same breath, or two could leave for each other's sake
                return False  # others get on: one connection less
            self._address = None
            self._failures += 1
            if self._failures >= self._pace.patience.tries:
                raise error
            failures = self._failures
        wait_s = self._backoff(error, failures)
        if wait_s >= 1:
            self._on_event(Waiting(self._partial.key, error.message, wait_s))
        return not self._stopped.wait(wait_s)

    def _backoff(self, error: CivmanError, failures: int) -> float:
        asked = error.facts.get("retry_after_s")
        if isinstance(asked, int | float):
            return min(float(asked), self._pace.patience.longest_backoff_s)
        if error.code in _AT_ONCE and failures == 1:
            return 0.0
        spread = random.uniform(0.75, 1.25)  # noqa: S311  # keeps two clients apart, guards nothing
        return min(self._pace.patience.backoff_s * 2.0 ** (failures - 1), self._pace.patience.longest_backoff_s) * spread

    def _fail(self, error: BaseException) -> None:
        with self._news:
            if self._error is None and not self._stopped.is_set():
                self._error = error
            self._stopped.set()
            for span in self._spans:
                if span.connection is not None:
                    span.connection.abort()
            self._news.notify_all()
