"""The threads of one transfer, each with its own connection."""

import threading
from collections.abc import Callable

from civman.civitai.storage_connection import StorageConnection
from civman.download.ramp import Ramp, Reading


class Worker:
    """A thread and its connection.

    `is_requesting_url`: whether the thread is waiting for CivitAI's API, which cannot be interrupted.
    """

    def __init__(self, work: "Callable[[Worker], None]", connection: StorageConnection, number: int) -> None:
        self.connection = connection
        self.is_requesting_url = False
        self.thread = threading.Thread(target=work, args=(self,), name=f"fetch-{number}", daemon=True)

    def join(self) -> None:
        """Wait until the thread has ended.

        A thread that is resolving a host name, connecting or requesting a URL is not waited for: it ends by itself
        later, and receives no more bytes because its connection has been aborted.
        """
        while self.thread.is_alive() and not self.is_requesting_url and not self.connection.is_dialling:
            self.thread.join(0.02)


class Workers:
    """All workers of a transfer, and the first error that stopped them. Decides when to add workers. Thread-safe."""

    def __init__(self, work: Callable[[Worker], None], connect: Callable[[], StorageConnection], ramp: Ramp) -> None:
        """`work` is the function that each thread runs. It must return soon after `stopped` is set."""
        self._work = work
        self._connect = connect
        self._lock = threading.Lock()
        self._ramp = ramp
        self._workers: list[Worker] = []
        self._error: BaseException | None = None
        self.stopped = threading.Event()

    @property
    def error(self) -> BaseException | None:
        """The error that ended the transfer, or None."""
        return self._error

    def alive(self) -> int:
        """The number of running threads."""
        with self._lock:
            return sum(worker.thread.is_alive() for worker in self._workers)

    def add(self, count: int = 1) -> None:
        """Start `count` more threads."""
        for _ in range(count):
            connection = self._connect()
            with self._lock:
                worker = Worker(self._work, connection, len(self._workers))
                self._workers.append(worker)
            worker.thread.start()

    def grow(self, now: float, *, received_bytes: int, response_s: float, spare_spans: Callable[[], int]) -> None:
        """If a decision is due, add as many threads as are expected to make the download faster.

        Must be called repeatedly after the first response.
        """
        with self._lock:
            if self._ramp.began is None:
                self._ramp = self._ramp.begin(now, received_bytes)
            if self._error is not None or not self._ramp.is_due(now, response_s):
                return
        reading = Reading(now, received_bytes, self.alive(), spare_spans())
        with self._lock:
            self._ramp, more = self._ramp.decide(reading)
        self.add(more)

    def note_failure(self, *, most: int | None = None) -> None:
        """Record that a connection failed.

        `most`: the new maximum of connections, if the server reported that it is busy.
        """
        with self._lock:
            self._ramp = self._ramp.after_failure() if most is None else self._ramp.after_failure().limited_to(most)

    def fail(self, error: BaseException) -> None:
        """Stop all threads because of `error`, which is recorded if they were not stopped before."""
        with self._lock:
            if self._error is None and not self.stopped.is_set():
                self._error = error
            self.stopped.set()

    def join(self) -> None:
        """Wait until all threads have ended."""
        with self._lock:
            workers = tuple(self._workers)
        for worker in workers:
            worker.join()
