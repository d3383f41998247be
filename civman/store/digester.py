"""Computes the digest of a partial file while it is being downloaded, from the bytes on disk.

A thread reads back the contiguous bytes from the start of the file, so the digest is ready moments after the last byte.
"""

import hashlib
import threading
from collections.abc import Callable

from civman.domain.digests import Sha256
from civman.errors import Interrupted
from civman.store.partial import Partial

_READ_BYTES = 1 << 20
_MAPPED_BYTES = 8 << 20
"""The number of bytes to map into memory and hash at once. Copying them into a buffer first would take a fifth longer.
"""
_POLL_S = 0.1


class Digester:
    """Computes the SHA-256 of a partial file in a thread: it hashes the contiguous bytes from the start."""

    def __init__(self, partial: Partial, on_progress: Callable[[int], None]) -> None:
        """`on_progress` is called from the thread with the number of bytes hashed so far."""
        self._partial = partial
        self._on_progress = on_progress
        self._sha256 = hashlib.sha256()
        self._stopped = False
        self._error: BaseException | None = None
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._can_map = True
        self.done_bytes = 0
        self._thread = threading.Thread(target=self._follow, name="digester", daemon=True)
        self._thread.start()

    def finish(self, cancel: threading.Event) -> Sha256:
        """Wait until the whole file is hashed and return its SHA-256.

        Raises: StoreError: the disk cannot be read. Interrupted: `cancel` was set. Also raises an error that
        `on_progress` raised.
        """
        while self._thread.is_alive():
            self._thread.join(_POLL_S)
            if cancel.is_set():
                self.stop()
                raise Interrupted("stopped while the file was being verified")
        if self._error is not None:
            raise self._error
        if self.done_bytes != self._partial.size_bytes:
            raise AssertionError("the digester stopped before the end of the file")
        return Sha256(self._sha256.hexdigest())

    def stop(self) -> None:
        """Stop hashing and discard the incomplete digest."""
        with self._partial.changed:
            self._stopped = True
            self._partial.changed.notify_all()
        self._thread.join()

    def _follow(self) -> None:
        partial = self._partial
        try:
            while (frontier := self._wait()) is not None:
                while self.done_bytes < frontier and not self._stopped:
                    # do not map a file with bytes from an earlier attempt: they may have to be read from disk, and a
                    # memory mapping cannot report read errors
                    if self._can_map and frontier - self.done_bytes >= _READ_BYTES and not partial.held_bytes:
                        self._take_mapped(min(frontier, self.done_bytes + _MAPPED_BYTES))
                    else:
                        self._take_read(frontier)
                    partial.digested_bytes = self.done_bytes
                    self._on_progress(self.done_bytes)
        except BaseException as error:  # noqa: BLE001  # a thread's error is `finish`'s to tell, whatever it is
            self._error = error

    def _take_mapped(self, end: int) -> None:
        try:
            with self._partial.mapped(self.done_bytes, end) as view:
                self._sha256.update(view)
        except OSError:
            self._can_map = False
            return
        self.done_bytes = end

    def _take_read(self, end: int) -> None:
        view = self._buffer[: end - self.done_bytes]
        count = self._partial.read_into(view, self.done_bytes)
        self._sha256.update(view[:count])
        self.done_bytes += count

    def _wait(self) -> int | None:
        partial = self._partial
        with partial.changed:
            while not self._stopped:
                if partial.size_bytes is not None and self.done_bytes >= partial.size_bytes:
                    return None
                if partial.ranges.frontier > self.done_bytes:
                    return partial.ranges.frontier
                partial.changed.wait()
        return None
