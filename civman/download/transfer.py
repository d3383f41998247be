"""Downloads one file into a partial file, over as many connections as make it faster.

Each connection has its own thread. Threads claim the lowest missing span, so that the first gap in the file, up to
which the digest can already be computed, stays close to the last byte received. When no span is left to claim, an
idle thread takes over half of the slowest span, or all of it if that connection is silent. A connection that fails
without having received anything is closed for good as long as others are working; the last one waits and tries again.

The parts, each with its own lock: `Workers` (the threads and their number), `SpanQueue` (which thread downloads which
bytes), `CurrentUrl` (the download URL), `Retries` (whether and when to retry). `Ramp` decides how many connections to
use.
"""

import threading
import time
from collections.abc import Callable

from civman.civitai.response_body import Body
from civman.civitai.responses import DownloadAddress
from civman.civitai.storage_connection import StorageConnection
from civman.domain.events import OnEvent, Received, Waiting
from civman.download.current_url import CurrentUrl
from civman.download.ramp import Ramp
from civman.download.retry import Retries
from civman.download.same_file import Identity
from civman.download.segments import Span, Spans
from civman.download.span_queue import SpanQueue
from civman.download.transfer_options import StallDetector, TransferOptions
from civman.download.workers import Worker, Workers
from civman.errors import Cause, CivmanError, Interrupted, NetworkError
from civman.store.partial import Partial

_BUFFER_BYTES = 1 << 20
"""The size in bytes of a read buffer.

A buffer of this size stays in a CPU core's cache. A buffer twice as large would have to be fetched from main memory
again when it is written to the file.
"""
_FLUSH_S = 0.1
_LOOK_S = 0.015
_UNANSWERED_CRAWLS = 3
"""A response's headers may take this many times `crawl_s` to arrive."""


class Transfer:
    """Downloads the missing bytes of `partial`."""

    def __init__(
        self,
        partial: Partial,
        *,
        request_url: Callable[[], DownloadAddress],
        connect: Callable[[], StorageConnection],
        identity: Identity,
        name: str,
        options: TransferOptions,
        on_event: OnEvent,
        cancel: threading.Event,
    ) -> None:
        """`request_url` asks CivitAI for a fresh signed URL; `identity` checks that responses belong to the file.

        `on_event` is called from several threads. Setting `cancel` ends the transfer.
        """
        self._partial = partial
        self._connect = connect
        self._name = name
        self._options = options
        self._on_event = on_event
        self._cancel = cancel
        most = options.connections
        self._url = CurrentUrl(request_url)
        self._retries = Retries(options.patience)
        self._workers = Workers(self._work, connect, Ramp(most, is_fixed=options.max_connections is not None))
        self._queue = SpanQueue(partial, Spans(options.patience, most), identity, self._workers.stopped)

    def run(self) -> None:
        """Download until no bytes are missing. Call this only once.

        Raises: Changed. Interrupted: `cancel` was set. Otherwise the last failure. The bytes received so far stay in
            the partial file.
        """
        if self._partial.is_complete:
            return
        try:
            self._workers.add()
            while self._workers.alive():
                self._queue.wait(_LOOK_S)
                self._watch()
        finally:
            self._stop()
        if self._workers.error is not None:
            raise self._workers.error
        if not self._partial.is_complete:
            raise NetworkError(
                f"the download of `{self._name}` ended before the file was complete", code=Cause.CONNECTION_CUT
            )

    def _watch(self) -> None:
        if self._cancel.is_set():
            raise Interrupted(f"the download of `{self._name}` was stopped")
        queue = self._queue
        queue.abort_unanswered(_UNANSWERED_CRAWLS * self._options.patience.crawl_s)
        if queue.is_open:
            self._workers.grow(
                time.monotonic(),
                received_bytes=queue.received_bytes,
                response_s=queue.response_s,
                spare_spans=queue.spare_spans,
            )

    def _stop(self) -> None:
        self._workers.stopped.set()
        self._queue.abort()
        self._workers.join()

    # -- one worker ------------------------------------------------------------------------------------------------

    def _work(self, worker: Worker) -> None:
        view = memoryview(bytearray(_BUFFER_BYTES))
        try:
            while not self._workers.stopped.is_set():
                if worker.connection.is_aborted:
                    worker.connection.close()
                    worker.connection = self._connect()
                span = self._queue.claim(worker.connection)
                if span is None:
                    return
                began = time.monotonic()
                address = None
                try:
                    address = self._current_url(worker)
                    self._fetch(address, span, view)
                except CivmanError as error:
                    worker.connection.close()
                    if not self._may_continue(span, error, address, began):
                        return
                finally:
                    self._queue.release(span)
        except BaseException as error:  # noqa: BLE001  # an error in a thread must reach the caller
            self._workers.fail(error)
            self._queue.abort()
        finally:
            worker.connection.close()
            self._queue.wake()

    def _current_url(self, worker: Worker) -> DownloadAddress:
        worker.is_requesting_url = True
        try:
            return self._url.get()
        finally:
            worker.is_requesting_url = False

    def _fetch(self, address: DownloadAddress, span: Span, view: memoryview) -> None:
        start, end, etag = self._queue.request(span)
        if end is not None and end <= start:
            return  # stop here: another worker has taken over the whole span in the meantime
        try:
            body = span.connection.open(address.url, start=start, end=end, send_token=address.send_token, etag=etag)
            self._queue.answered(span)
        finally:
            span.asked_at = 0.0
        self._queue.accept(body, span)
        self._read(body, span, view)
        if body.left_bytes != 0:
            # close the connection, because another worker has taken over the rest of the requested range
            span.connection.close()

    def _read(self, body: Body, span: Span, view: memoryview) -> None:
        """Write the response body to the partial file, one buffer at a time.

        A buffer that is not full is written after `_FLUSH_S` seconds at the latest, so that little is lost if the
        process is killed.

        Raises: NetworkError: the connection was closed early. The bytes received so far are kept.
        """
        limit, stopped = self._options.limit, self._workers.stopped
        most = len(view) if limit is None else min(len(view), limit.burst_bytes)
        stall = StallDetector(self._options, body.host, time.monotonic())
        while not stopped.is_set() and span.left_bytes and not body.is_over:
            count = body.fill(view[: min(most, span.left_bytes)], _FLUSH_S)
            now = time.monotonic()
            wait_s = limit.spend(count) if limit is not None else 0.0
            if count:
                span.last = now + wait_s
                self._write(span, view[:count])
            stall.count(count, now)
            if wait_s > 0:
                stopped.wait(wait_s)
        if body.left_bytes is None and span.left_bytes and not stopped.is_set():
            raise NetworkError(
                f"`{body.host}` closed the connection before the download was complete",
                code=Cause.CONNECTION_CUT,
                host=body.host,
            )

    def _write(self, span: Span, data: memoryview) -> None:
        # drop the bytes after the end of the span, because another worker may have taken over that part
        data = data[: max(0, span.end - span.at)]
        if not len(data):
            return
        fresh = self._partial.write(span.at, data)
        if self._queue.advance(span, len(data), fresh):
            self._retries.reset()
        if fresh:
            self._on_event(Received(self._partial.key, fresh))

    # -- when a request fails --------------------------------------------------------------------------------------

    def _may_continue(self, span: Span, error: CivmanError, address: DownloadAddress | None, began: float) -> bool:
        """Whether this worker should continue after `error`; waits first if necessary.

        Raises: `error`: retrying is pointless.
        """
        stopped = self._workers.stopped
        if stopped.is_set() or not span.left_bytes:
            return not stopped.is_set()  # end this worker: another one is downloading the span, so nothing is lost
        if error.code is Cause.RANGE_NOT_SATISFIABLE:
            self._queue.refused(span, error)
        if error.code is Cause.COMPRESSED_RANGE:
            self._queue.without_ranges()
        if error.code is Cause.LINK_EXPIRED and not self._url.is_current(address):
            return True  # try again at once: another worker has already requested a fresh URL
        others = self._queue.leave_to_others(span) if error.code.is_of_one_connection else 0
        self._workers.note_failure(most=others if others and error.code is Cause.STORAGE_BUSY else None)
        if others:
            return False
        wait_s = self._retries.delay_s(error, began)
        if self._retries.needs_fresh_url(error):
            self._url.discard(address)
        if wait_s >= 1:
            self._on_event(Waiting(self._partial.key, error.message, wait_s))
        return not stopped.wait(wait_s)
