"""File I/O by descriptor and offset on every system: allocate, read, write, sync, and control the page cache."""

import errno
import mmap
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_RESERVE: int = getattr(
    mmap,
    "MAP_NORESERVE",
    0x4000 if sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64", "riscv64") else 0,
)
"""The mmap flag MAP_NORESERVE: map a file without reserving memory. Python has it since 3.13; 0 if it is unknown."""
_SEEK = threading.Lock()
"""Serialises reads and writes on Windows, which has no pread and pwrite."""


def open_for_update(path: Path) -> int:
    """Open the file at `path` for reading and writing bytes, creating it if necessary. Returns its descriptor.

    Raises: OSError.
    """
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
    """Read from `offset` into `view`. Returns the number of bytes read. Raises: OSError."""
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
    """Map the bytes `[start, end)` of a file into memory, read-only, instead of copying them.

    Use this only for bytes that have just been written: a disk error during access would kill the process.
    """
    before = start % mmap.ALLOCATIONGRANULARITY
    with (
        mmap.mmap(descriptor, end - start + before, access=mmap.ACCESS_READ, offset=start - before) as whole,
        memoryview(whole) as view,
        view[before:] as wanted,
    ):
        yield wanted


def allocate(descriptor: int, size_bytes: int) -> None:
    """Reserve disk space if the file system supports it. Otherwise, only writing shows whether the disk is full."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def sync_data(descriptor: int) -> None:
    """Flush the file's data to the disk. Raises: OSError."""
    os.fdatasync(descriptor) if hasattr(os, "fdatasync") else os.fsync(descriptor)


def sync_file(path: Path) -> None:
    """Flush the file at a path to the disk. On Windows, the file must be writable. Raises: OSError."""
    # Windows cannot sync a file that is opened read-only
    with path.open("r+b" if sys.platform == "win32" else "rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk. Does nothing on Windows, which cannot open folders. Raises: OSError."""
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def forget_pages(descriptor: int, start: int, end: int) -> None:
    """Let the system drop `[start, end)`, which is on disk already, from the page cache, if the system supports it."""
    if end > start and sys.platform == "linux" and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_DONTNEED)


def map_privately(descriptor: int) -> mmap.mmap:
    """Map a whole file into memory: private and writable, because torch warns about read-only buffers.

    No memory is reserved for changed pages, since nothing is changed, so the file may be larger than the memory.
    Raises: OSError.
    """
    if sys.platform != "win32" and _NO_RESERVE:
        flags = mmap.MAP_PRIVATE | _NO_RESERVE
        return mmap.mmap(descriptor, 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)


def forget_mapped(mapping: mmap.mmap, start: int, end: int) -> None:
    """Let the system drop the complete pages within `[start, end)` of a mapping from memory.

    They are read from the file again on the next access.
    """
    begin = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    length = end // mmap.PAGESIZE * mmap.PAGESIZE - begin
    if length > 0 and sys.platform != "win32" and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED, begin, length)


class Repeat:
    """Runs a job in a thread at regular intervals until stopped.

    If the job raises an OSError, the thread ends silently, because the final sync will report the error.
    """

    def __init__(self, job: Callable[[], None], interval_s: float) -> None:
        self._stop = threading.Event()
        self._job = job
        self._interval_s = interval_s
        self._thread = threading.Thread(target=self._run, name="syncer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, after waiting for a running job to finish."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                self._job()
            except OSError:
                return
