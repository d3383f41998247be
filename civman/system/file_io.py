"""Files by descriptor and offset, on all systems: room, reads, writes, and what the system keeps of them in memory."""

import errno
import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

if sys.platform == "win32":  # pragma: no cover
    _SEEK = threading.Lock()  # no positioned reads and writes there: one at a time

    def write_at(descriptor: int, data: memoryview | bytes, offset: int) -> None:
        """Write all of `data` at `offset`."""
        view = memoryview(data)
        with _SEEK:
            os.lseek(descriptor, offset, os.SEEK_SET)
            while view:
                view = view[os.write(descriptor, view) :]

    def read_at(descriptor: int, view: memoryview, offset: int) -> int:
        """Fill `view` from `offset`; the number of bytes read."""
        with _SEEK:
            os.lseek(descriptor, offset, os.SEEK_SET)
            data = os.read(descriptor, len(view))
        view[: len(data)] = data
        return len(data)
else:

    def write_at(descriptor: int, data: memoryview | bytes, offset: int) -> None:
        """Write all of `data` at `offset`."""
        view = memoryview(data)
        while view:
            count = os.pwrite(descriptor, view, offset)
            view, offset = view[count:], offset + count

    def read_at(descriptor: int, view: memoryview, offset: int) -> int:
        """Fill `view` from `offset`; the number of bytes read."""
        if hasattr(os, "preadv"):
            return os.preadv(descriptor, [view], offset)
        data = os.pread(descriptor, len(view), offset)
        view[: len(data)] = data
        return len(data)


@contextmanager
def mapped(descriptor: int, start: int, end: int) -> Iterator[memoryview]:
    """The bytes `[start, end)` where the system keeps them, read-only and not copied.

    For what was written a moment ago only: bytes that the disk cannot give back end the process instead of an error.
    """
    before = start % mmap.ALLOCATIONGRANULARITY
    with (
        mmap.mmap(descriptor, end - start + before, access=mmap.ACCESS_READ, offset=start - before) as whole,
        memoryview(whole) as view,
        view[before:] as wanted,
    ):
        yield wanted


def allocate(descriptor: int, size_bytes: int) -> None:
    """Take the disk space where the file system can; elsewhere a full disk shows when it is written to."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def sync_data(descriptor: int) -> None:
    """Bring what was written to the disk itself."""
    os.fdatasync(descriptor) if hasattr(os, "fdatasync") else os.fsync(descriptor)


def forget_pages(descriptor: int, start: int, end: int) -> None:
    """Have the system give back the memory of `[start, end)`, which is on the disk; some systems take no advice."""
    if end > start and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_DONTNEED)


class Repeat:
    """Runs a job in a thread at an interval until stopped. The job's OSError ends it: the final sync will tell."""

    def __init__(self, job: Callable[[], None], interval_s: float) -> None:
        self._stop = threading.Event()
        self._job = job
        self._interval_s = interval_s
        self._thread = threading.Thread(target=self._run, name="syncer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it, after the job where that is running."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                self._job()
            except OSError:
                return
