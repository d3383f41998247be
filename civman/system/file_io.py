"""Files by descriptor and offset on every system: allocation, reads, writes, syncs, and the system's page cache."""

import errno
import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_SEEK = threading.Lock()
"""For systems without positioned reads and writes (Windows): one access at a time."""


def open_for_update(path: Path) -> int:
    """A descriptor of the file at `path`, made if it is missing, for reads and writes of bytes. Raises: OSError."""
    return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)


def write_at(descriptor: int, data: memoryview | bytes, offset: int) -> None:
    """Write all of `data` at `offset`. Raises: OSError."""
    view = memoryview(data)
    if sys.platform != "win32" and hasattr(os, "pwrite"):
        while view:
            count = os.pwrite(descriptor, view, offset)
            view, offset = view[count:], offset + count
        return
    with _SEEK:
        os.lseek(descriptor, offset, os.SEEK_SET)
        while view:
            view = view[os.write(descriptor, view) :]


def read_at(descriptor: int, view: memoryview, offset: int) -> int:
    """Fill `view` from `offset`; the number of bytes read. Raises: OSError."""
    if sys.platform != "win32" and hasattr(os, "preadv"):
        return os.preadv(descriptor, [view], offset)
    if sys.platform != "win32" and hasattr(os, "pread"):
        data = os.pread(descriptor, len(view), offset)
    else:
        with _SEEK:
            os.lseek(descriptor, offset, os.SEEK_SET)
            data = os.read(descriptor, len(view))
    view[: len(data)] = data
    return len(data)


@contextmanager
def mapped(descriptor: int, start: int, end: int) -> Iterator[memoryview]:
    """The bytes `[start, end)` of a file, mapped into memory read-only instead of copied.

    Use it only for bytes that were written a moment ago: a read error of the disk ends the process.
    """
    before = start % mmap.ALLOCATIONGRANULARITY
    with (
        mmap.mmap(descriptor, end - start + before, access=mmap.ACCESS_READ, offset=start - before) as whole,
        memoryview(whole) as view,
        view[before:] as wanted,
    ):
        yield wanted


def allocate(descriptor: int, size_bytes: int) -> None:
    """Reserve disk space where the file system can; elsewhere a full disk is found out when it is written to."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def sync_data(descriptor: int) -> None:
    """Bring what was written to the disk itself. Raises: OSError."""
    os.fdatasync(descriptor) if hasattr(os, "fdatasync") else os.fsync(descriptor)


def sync_file(path: Path) -> None:
    """Bring a writable file that somebody else wrote to the disk itself. Raises: OSError."""
    with path.open("r+b" if sys.platform == "win32" else "rb") as file:  # Windows syncs no file opened for reading
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk itself, where the system opens folders (not Windows). Raises: OSError."""
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def forget_pages(descriptor: int, start: int, end: int) -> None:
    """Let the system drop `[start, end)`, which is on the disk, from memory; some systems take no such advice."""
    if end > start and sys.platform == "linux" and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_DONTNEED)


def forget_mapped(mapping: mmap.mmap, start: int, end: int) -> None:
    """Let the system drop the whole pages within `[start, end)` of a mapping; they are read again when next used."""
    begin = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    length = end // mmap.PAGESIZE * mmap.PAGESIZE - begin
    if length > 0 and sys.platform != "win32" and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED, begin, length)


class Repeat:
    """Runs a job in a thread at an interval until stopped. An OSError of the job ends it; the final sync reports it."""

    def __init__(self, job: Callable[[], None], interval_s: float) -> None:
        self._stop = threading.Event()
        self._job = job
        self._interval_s = interval_s
        self._thread = threading.Thread(target=self._run, name="syncer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a job that is running is finished first."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                self._job()
            except OSError:
                return
