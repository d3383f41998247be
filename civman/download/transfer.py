"""One file's bytes over as many connections as pay, into one partial.

Workers claim the lowest missing span, so that the unbroken run from byte 0, which the digest follows, stays close to
the end. When nothing is left to claim, an idle worker takes half of the slowest one's span, or all of it where that
one is silent. A worker that fails without having brought anything retires while others get on; the last one backs
off and tries again.
"""

import threading
import time
from collections.abc import Callable

from civman.civitai.response_body import Body
from civman.civitai.responses import DownloadAddress
from civman.civitai.storage_connection import StorageConnection
from civman.domain.events import OnEvent, Received, Waiting
from civman.download.retry import Retries
from civman.download.same_file import Identity
from civman.download.segments import SMALLEST_SPAN, Span, Spans
from civman.download.speed import Crawl, Pace
from civman.errors import Cause, CivmanError, Interrupted, NetworkError
from civman.store.partial import Partial

_BUFFER_BYTES = 1 << 20
"""What a core's own cache holds: twice as much and the bytes are fetched from memory again on their way to the file."""
_FLUSH_S = 0.1
_PROGRESS_BYTES = 1 << 16
"""A try that brought this much was worth it."""
_FIRST_WORKERS = 8
_LOOK_S = 0.015
_RAMP_S = 0.05
"""How long the first one is alone once it was answered."""
_RAMP_WAIT_S = 0.08
"""After more workers have joined, before what they bring is judged."""
_RAMP_ANSWERS = 4
"""Both last as long as so many answers wait at the least: connections to far away gather speed slowly."""
_UNANSWERED_CRAWLS = 3
"""Headers may trickle for so many times `crawl_s`."""


class _Worker:
    """A thread and its connection. `is_asking`: it waits for CivitAI's API, which nobody can end."""

    def __init__(self, work: "Callable[[_Worker], None]", connection: StorageConnection, number: int) -> None:
        self.connection = connection
        self.is_asking = False
        self.thread = threading.Thread(target=work, args=(self,), name=f"fetch-{number}", daemon=True)

    def join(self) -> None:
        """Wait for its end, unless it waits for a name, a connection or an address, after which it ends by itself.

        Nothing of it is used then: its connection is aborted, so no byte can come of it.
        """
        while self.thread.is_alive() and not self.is_asking and not self.connection.is_dialling:
            self.thread.join(0.02)


class Transfer:
    """Brings the missing bytes of `partial` from wherever `address` leads."""

    def __init__(
        self,
        partial: Partial,
        *,
        address: Callable[[], DownloadAddress],
        connect: Callable[[], StorageConnection],
        identity: Identity,
        name: str,
        pace: Pace,
        on_event: OnEvent,
        cancel: threading.Event,
    ) -> None:
        """`address` asks CivitAI for a fresh signed address; `identity` knows the file that is meant.

        `on_event` is called from several threads. Setting `cancel` ends the transfer.
        """
        self._cancel = cancel
        self._partial = partial
        self._ask = address
        self._connect = connect
        self._identity = identity
        self._name = name
        self._pace = pace
        self._on_event = on_event
        self._lock = threading.RLock()
        self._news = threading.Condition(self._lock)
        self._asking = threading.Lock()
        self._address: DownloadAddress | None = None
        self._spans = Spans(pace.patience, pace.connections)
        self._retries = Retries(pace.patience)
        self._workers: list[_Worker] = []
        self._most = pace.connections
        self._judged = 0, 0.0
        """How many workers there were before the last ones joined, and the bytes per second that they brought."""
        self._progress_bytes = 0
        self._received_bytes = 0
        self._error: BaseException | None = None
        self._stopped = threading.Event()
        self._whole_bodies = False
        self._has_ignored_range = False
        self._is_open = False

    def run(self) -> None:
        """Fetch until nothing is missing; call it once.

        Raises: Changed. Interrupted: `cancel` was set. Else what the last failure was; what has arrived stays in the
            partial.
        """
        if self._partial.is_complete:
            return
        try:
            self._spawn()
            last_ramp, last_bytes, wait_s = 0.0, 0, _RAMP_S
            with self._news:
                while any(worker.thread.is_alive() for worker in self._workers):
                    self._news.wait(_LOOK_S)
                    if self._cancel.is_set():
                        raise Interrupted(f"`{self._name}` was stopped")
                    self._spans.abort_unanswered(_UNANSWERED_CRAWLS * self._pace.patience.crawl_s)
                    now = time.monotonic()
                    if not self._is_open or not last_ramp:
                        last_ramp = now if self._is_open else 0.0
                    elif self._error is None and now - last_ramp >= max(wait_s, _RAMP_ANSWERS * self._spans.answer_s):
                        self._ramp((self._received_bytes - last_bytes) / (now - last_ramp))
                        last_ramp, last_bytes, wait_s = now, self._received_bytes, _RAMP_WAIT_S
        finally:
            self._stop()
        if self._error is not None:
            raise self._error
        if not self._partial.is_complete:
            raise NetworkError(f"`{self._name}` is incomplete and nothing more comes", code=Cause.CONNECTION_CUT)

    def _ramp(self, rate: float) -> None:
        """More workers while the last ones brought at least a third of their share.

        Where each connection is throttled, eight bring eight times as much as one, and thrice as many may follow. Where
        the wire or the machine is the limit, more of them get in each other's way.
        """
        alive = sum(worker.thread.is_alive() for worker in self._workers)
        had, brought = self._judged
        if self._whole_bodies or rate < brought * (1 + (alive / max(1, had) - 1) / 3):
            return
        unclaimed = -(-self._spans.unclaimed_bytes(self._partial.missing()) // SMALLEST_SPAN)
        more = unclaimed if self._pace.max_connections is not None else max(2 * alive, _FIRST_WORKERS - alive)
        more = min(self._most - alive, more, unclaimed)
        if more > 0:
            self._judged = alive, rate
        for _ in range(more):
            self._spawn()

    def _spawn(self) -> None:
        worker = _Worker(self._work, self._connect(), len(self._workers))
        self._workers.append(worker)
        worker.thread.start()

    def _stop(self) -> None:
        self._stopped.set()
        with self._lock:
            self._spans.abort()
            self._news.notify_all()
        for worker in self._workers:
            worker.join()

    # -- one worker ------------------------------------------------------------------------------------------------

    def _work(self, worker: _Worker) -> None:
        view = memoryview(bytearray(_BUFFER_BYTES))
        try:
            while not self._stopped.is_set():
                if worker.connection.is_aborted:
                    worker.connection.close()
                    worker.connection = self._connect()
                span = self._claim(worker.connection)
                if span is None:
                    return
                began = time.monotonic()
                address = None
                try:
                    address = self._current_address(worker)
                    self._fetch(address, span, view)
                except CivmanError as error:
                    worker.connection.close()
                    if not self._carry_on(span, error, address, began):
                        return
                finally:
                    self._release(span)
        except BaseException as error:  # noqa: BLE001  # a bug in a thread must reach the caller, not vanish with it
            self._fail(error)
        finally:
            worker.connection.close()
            with self._news:
                self._news.notify_all()

    def _current_address(self, worker: _Worker) -> DownloadAddress:
        """The address in use, asked for by one worker at a time and not under the lock: CivitAI may take minutes."""
        worker.is_asking = True
        try:
            with self._asking:
                address = self._address
                if address is None:
                    address = self._ask()
                    self._address = address
                return address
        finally:
            worker.is_asking = False

    def _fetch(self, address: DownloadAddress, span: Span, view: memoryview) -> None:
        with self._lock:
            etag = self._identity.etag
            start, end = (0, None) if span.is_whole else (span.at, span.end)
            span.last = span.asked_at = time.monotonic()
        if end is not None and end <= start:
            return  # relieved meanwhile
        try:
            body = span.connection.open(
                address.url,
                start=start,
                end=end,
                send_token=address.send_token,
                etag=etag,
            )
            with self._lock:
                self._spans.answered(span)
        finally:
            span.asked_at = 0.0
        self._examine(body, span)
        self._read(body, span, view)
        if body.left_bytes != 0:
            span.connection.close()  # the rest belongs to somebody else now

    def _read(self, body: Body, span: Span, view: memoryview) -> None:
        """The body into the partial, a buffer at a time. Raises: NetworkError: it ends early; what came of it is kept.

        After `_FLUSH_S` a buffer is written even half empty: a kill would lose what a slow connection keeps there.
        """
        limit = self._pace.limit
        most = len(view) if limit is None else min(len(view), limit.burst_bytes)
        crawl = Crawl(self._pace, body.host, time.monotonic())
        while not self._stopped.is_set() and span.left_bytes and not body.is_over:
            count = body.fill(view[: min(most, span.left_bytes)], _FLUSH_S)
            now = time.monotonic()
            wait_s = limit.spend(count) if limit is not None else 0.0
            if count:
                span.last = now + wait_s
                self._put(span, view[:count])
            crawl.count(count, now)
            if wait_s > 0:
                self._stopped.wait(wait_s)
        if body.left_bytes is None and span.left_bytes and not self._stopped.is_set():
            raise NetworkError(f"`{body.host}` ended before the file did", code=Cause.CONNECTION_CUT, host=body.host)

    def _put(self, span: Span, data: memoryview) -> None:
        data = data[: max(0, span.end - span.at)]
        if not len(data):
            return
        fresh = self._partial.write(span.at, data)
        with self._lock:
            span.at += len(data)
            span.count += len(data)
            self._received_bytes += fresh
            if self._received_bytes - self._progress_bytes >= _PROGRESS_BYTES:
                self._retries.reset()
                self._progress_bytes = self._received_bytes
        if fresh:
            self._on_event(Received(self._partial.key, fresh))

    def _examine(self, body: Body, span: Span) -> None:
        """Hold an answer against what is known of the file. Raises: Changed, IntegrityError, BadAnswer, StoreError."""
        with self._lock:
            size = self._identity.check(body, is_first=not self._is_open)
            if not self._is_open:
                self._partial.reserve(size)
                span.end = min(span.end, size)
            self._identity.keep(body)
            if not body.is_partial and not span.is_whole:
                if span.at > 0 and not self._has_ignored_range:
                    self._has_ignored_range = True
                    raise NetworkError(f"`{body.host}` ignored the range", code=Cause.RANGE_IGNORED, host=body.host)
                self._whole_bodies = span.is_whole = True
                span.at, span.end = 0, size
            self._is_open = True
            self._news.notify_all()

    # -- who does what ---------------------------------------------------------------------------------------------

    def _claim(self, connection: StorageConnection) -> Span | None:
        with self._news:
            while not self._stopped.is_set():
                span = self._next_span(connection)
                if span is not None:
                    return span
                if not len(self._spans):
                    return None
                self._news.wait(0.1)
        return None

    def _next_span(self, connection: StorageConnection) -> Span | None:
        size = self._partial.size_bytes
        if self._whole_bodies:
            is_free = not len(self._spans) and not self._partial.is_complete
            return self._spans.whole(size or self._identity.size_bytes or 0, connection) if is_free else None
        if size is None or not self._is_open:  # nobody has seen an answer yet: one worker goes ahead
            if len(self._spans) or self._partial.is_complete:
                return None
            gap = next(iter(self._partial.missing()), None)
            start, end = gap or (0, self._identity.size_bytes)
            return self._spans.first(start, end, connection)
        return self._spans.next(self._partial.missing(), size, connection)

    def _release(self, span: Span) -> None:
        with self._news:
            self._spans.release(span)
            self._news.notify_all()

    # -- when things go wrong --------------------------------------------------------------------------------------

    def _carry_on(self, span: Span, error: CivmanError, address: DownloadAddress | None, began: float) -> bool:
        """Whether this worker tries again after `error`. Raises: the error, when it is final."""
        if self._stopped.is_set() or not span.left_bytes:
            return not self._stopped.is_set()  # relieved of its span: nothing went wrong
        with self._lock:
            if error.code is Cause.RANGE_NOT_SATISFIABLE:
                self._identity.check_refusal(error)
                self._whole_bodies = self._whole_bodies or not span.is_whole  # or it knows no ranges
            if address is not self._address and error.code is Cause.LINK_EXPIRED:
                return True  # another worker has a fresh one already
            self._judged = 0, 0.0  # with fewer connections, or after a pause, more may pay again
            if (
                self._is_open
                and len(self._spans) > 1
                and span.count < _PROGRESS_BYTES
                and error.code.is_of_one_connection
            ):
                if error.code is Cause.STORAGE_BUSY:
                    self._most = max(1, len(self._spans) - 1)
                self._spans.release(span)  # in the same breath, or two could leave for each other's sake
                return False  # others get on: one connection less
        wait_s = self._retries.delay_s(error, began)
        with self._lock:
            if address is self._address and self._retries.needs_fresh_url(error):
                self._address = None
        if wait_s >= 1:
            self._on_event(Waiting(self._partial.key, error.message, wait_s))
        return not self._stopped.wait(wait_s)

    def _fail(self, error: BaseException) -> None:
        with self._news:
            if self._error is None and not self._stopped.is_set():
                self._error = error
            self._stopped.set()
            self._spans.abort()
            self._news.notify_all()
