"""A partially downloaded file whose download can be resumed. Bytes once written are never overwritten."""

import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from civman.domain.byte_ranges import Ranges
from civman.errors import Cause, DiskFull, StoreError
from civman.store.resume_journal import Journal, Memory, Validator, allocated_bytes, promised_bytes
from civman.system.file_io import (
    Repeat,
    allocate,
    forget_pages,
    mapped,
    open_for_update,
    read_at,
    sync_data,
    write_at,
)
from civman.system.move_files import is_in_use, remove_file
from civman.system.path_rules import LONG_PATHS_HINT, is_too_long
from civman.system.process_lock import FileLock
from civman.system.system_facts import boot_id

_JOURNAL_EVERY_BYTES = 4 << 20
_JOURNAL_EVERY_S = 0.02
"""The journal is updated after this many seconds, or after `_JOURNAL_EVERY_BYTES` (fewer for small files).

If the process is killed, at most the data written since then is lost.
"""
_LOOK_EVERY_S = 0.05
_SYNC_EVERY_S = 0.2
_SYNC_EVERY_BYTES = 32 << 20
"""The data is synced after this many bytes, or after `_SYNC_EVERY_S`, so that little is left to sync at the end."""
_SYNC_FROM_BYTES = 8 << 20
"""Files smaller than this are synced only once, at the end."""
_RELEASED_FROM_BYTES = 256 << 20
"""Files larger than this are dropped from the page cache once they are on disk and hashed.

Otherwise they would displace the data of other programs. Reusing memory is also faster than allocating it: 1 GiB of new
memory costs a virtual machine 1 to 2 s.
"""
_RELEASED_AT_ONCE = 8 << 20


class Partial:
    """The bytes and the journal of one download. A lock makes sure that only one process owns it at a time.

    In the owning process, several threads may call `write` at the same time.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.key = key
        self.path = folder / f"{key}.part"
        self.size_bytes: int | None = None
        self.validator: Validator | None = None
        self.ranges = Ranges()
        self.held_bytes = 0
        """The number of usable bytes from an earlier attempt."""
        self.discarded = ""
        """Why the bytes of an earlier attempt cannot be used; empty if they can be used, or if there are none."""
        self.digested_bytes = 0
        """How many bytes from the start the digester has read; they are no longer needed in memory."""
        self.changed = threading.Condition()
        """Guards `ranges` and is notified when they change."""
        self._folder = folder
        self._journal = Journal(folder, key)
        self._lock = FileLock(folder / f"{key}.lock")
        self._descriptor = -1
        self._claimed = Ranges()
        """The byte ranges that are written or being written.

        Bytes on disk are never replaced, because they may already be part of the digest.
        """
        self._unjournaled_bytes, self._journaled_at = 0, 0.0
        self._syncer: Repeat | None = None
        self._synced_at, self._synced_bytes, self._released_bytes = 0.0, 0, 0

    def acquire(self) -> bool:
        """Take ownership and read what an earlier attempt left. Returns False if another process owns the file.

        Raises: StoreError: the folder cannot be written.
        """
        if not self._lock.acquire():
            return False
        try:
            if self.path.exists() and not os.access(self.path, os.W_OK):
                # make the file writable again: a process was killed after making it read-only and before renaming it
                self.path.chmod(0o644)
            self._descriptor = open_for_update(self.path)
            self._resume()
        except OSError as error:
            self._let_go()
            raise store_error(error, self.path) from error
        return True

    def journaled_bytes(self) -> int:
        """The number of bytes that the owning process has received, for processes that wait for the file."""
        memory = self._journal.recall()
        return memory.ranges.total_bytes if memory else 0

    def reserve(self, size_bytes: int) -> None:
        """Set the full size and reserve the disk space for it, before the first byte is written.

        Raises: DiskFull: there is not enough free space, not counting what other downloads have reserved. StoreError.
        """
        if self.size_bytes is not None and self.size_bytes != size_bytes:
            self.reset()
        needed = max(0, size_bytes - allocated_bytes(os.fstat(self._descriptor)))
        promised = promised_bytes(self._folder, but_not=self.key)
        free = shutil.disk_usage(self._folder).free
        if needed + promised > free:
            raise DiskFull(
                f"not enough disk space in `{self._folder}`: {_mib(needed)} needed, {_mib(free)} free"
                + (f" ({_mib(promised)} of it reserved for other downloads)" if promised else ""),
                hint=_DISK_HINT,
                needed_bytes=needed,
                promised_bytes=promised,
                free_bytes=free,
            )
        self._stop_syncing()
        try:
            if needed:
                allocate(self._descriptor, size_bytes)
            os.ftruncate(self._descriptor, size_bytes)
            self.size_bytes = size_bytes
            with self.changed:
                self._journal.note(self._memory())
        except OSError as error:
            raise store_error(error, self.path) from error
        if size_bytes >= _SYNC_FROM_BYTES:
            self._syncer = Repeat(self._sync, _LOOK_EVERY_S)

    def write(self, offset: int, data: memoryview | bytes) -> int:
        """Write `data` at `offset` and return how many of its bytes are new. Existing bytes are not changed.

        Raises: DiskFull, StoreError.
        """
        view = memoryview(data)
        with self.changed:
            gaps = self._claimed.missing(offset + len(view), start=offset)
            self._claimed.add(offset, offset + len(view))
        fresh = sum(end - start for start, end in gaps)
        try:
            for start, end in gaps:
                write_at(self._descriptor, view[start - offset : end - offset], start)
            with self.changed:
                for start, end in gaps:
                    self.ranges.add(start, end)
                self._unjournaled_bytes += fresh
                if self._unjournaled_bytes >= min(_JOURNAL_EVERY_BYTES, (self.size_bytes or 0) // 200):
                    now = time.monotonic()
                    if now - self._journaled_at >= _JOURNAL_EVERY_S:
                        self._journal.note(self._memory())
                        self._unjournaled_bytes, self._journaled_at = 0, now
                self.changed.notify_all()
        except OSError as error:
            raise store_error(error, self.path) from error
        return fresh

    def missing(self) -> list[tuple[int, int]]:
        """The byte ranges that are still missing, in order."""
        with self.changed:
            return self.ranges.missing(self.size_bytes or 0)

    @property
    def is_complete(self) -> bool:
        """Whether every byte has been written."""
        return self.size_bytes is not None and self.ranges.frontier >= self.size_bytes

    def reset(self) -> None:
        """Discard all bytes; `reserve` then starts from zero. Raises: StoreError."""
        self._stop_syncing()
        try:
            with self.changed:
                self.ranges, self._claimed = Ranges(), Ranges()
                self.validator, self.size_bytes, self.held_bytes, self._unjournaled_bytes = None, None, 0, 0
                self.digested_bytes = self._synced_bytes = self._released_bytes = 0
                self._journal.forget()
                os.ftruncate(self._descriptor, 0)
                self.changed.notify_all()
        except OSError as error:
            raise store_error(error, self.path) from error

    def seal(self) -> None:
        """Sync every byte to disk and close the file, but keep ownership. Raises: StoreError."""
        self._stop_syncing()
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise store_error(error, self.path) from error
        self._close_file()  # close the file, because Windows cannot rename an open file

    def close(self, *, discard: bool = False) -> None:
        """Release ownership. Without `discard`, the received bytes and an up-to-date journal stay for the next attempt.

        If the journal cannot be written (the disk is full), the old one stays, and fewer bytes are resumed.
        """
        if not self._lock.is_held:
            return
        self._stop_syncing()
        try:
            if discard or not self.ranges.total_bytes:
                self._close_file()
                remove_file(self.path, missing_ok=True)
                self._journal.forget()
            elif self.size_bytes is not None and self.path.exists():
                self._remember()
        except OSError:
            pass  # ignore this error and report the original one; at most an unused file is left behind
        finally:
            self._let_go()

    def read_into(self, view: memoryview, offset: int) -> int:
        """Read from `offset` of the file into `view`. Returns the number of bytes read. Raises: StoreError."""
        try:
            count = read_at(self._descriptor, view, offset)
        except OSError as error:
            raise store_error(error, self.path) from error
        if not count:
            raise StoreError(f"`{self.path}` became shorter while it was read", path=str(self.path))
        return count

    @contextmanager
    def mapped(self, start: int, end: int) -> Iterator[memoryview]:
        """Map the bytes `[start, end)`, which were just written, into memory.

        Raises: OSError: the file system cannot map files; use `read_into` instead. StoreError.
        """
        try:
            with mapped(self._descriptor, start, end) as view:
                yield view
        except ValueError as error:
            raise StoreError(f"`{self.path}` became shorter while it was read", path=str(self.path)) from error

    def _resume(self) -> None:
        memory = self._journal.recall()
        actual = os.fstat(self._descriptor).st_size
        if memory is not None and memory.size_bytes == actual:
            self.size_bytes, self.ranges, self.validator = memory.size_bytes, memory.ranges, memory.validator
            self.held_bytes = self.ranges.total_bytes
            self._claimed = self.ranges.copy()
        elif actual:
            self.discarded = "the journal of the earlier attempt is missing or does not match its data"
            os.ftruncate(self._descriptor, 0)

    def _memory(self) -> Memory:
        return Memory(self.size_bytes or 0, self.ranges, self.validator)

    def _remember(self) -> None:
        memory = self._memory()
        self._journal.note(memory)
        # this system provides no boot id, so a restart cannot be detected: trust only synced bytes
        if not boot_id() and self._descriptor >= 0:
            os.fsync(self._descriptor)
            self._journal.note_synced(memory)

    def _close_file(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _let_go(self) -> None:
        try:
            self._close_file()
        finally:
            self._lock.release()

    def _sync(self) -> None:
        now = time.monotonic()
        with self.changed:
            written = self.ranges.total_bytes
            if written - self._synced_bytes < _SYNC_EVERY_BYTES and now - self._synced_at < _SYNC_EVERY_S:
                return
            memory = Memory(self.size_bytes or 0, self.ranges.copy(), self.validator)
        sync_data(self._descriptor)
        self._journal.note_synced(memory)
        self._synced_at, self._synced_bytes = now, written
        if memory.size_bytes >= _RELEASED_FROM_BYTES:
            start, end = self._released_bytes, min(self.digested_bytes, memory.ranges.frontier)
            end -= end % _RELEASED_AT_ONCE
            forget_pages(self._descriptor, start, end)
            self._released_bytes = end

    def _stop_syncing(self) -> None:
        if self._syncer is not None:
            self._syncer.stop()
            self._syncer = None


_DISK_HINT = (
    "free some space (`civman remove`, then `civman gc`) or choose another library with --library; the "
    "bytes received so far are kept"
)


def store_error(error: OSError, path: Path) -> StoreError:
    """Convert an operating system error at `path` to a StoreError with a hint."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"the disk is full: `{path.parent}`", hint=_DISK_HINT, path=str(path))
    if is_too_long(error, path):
        return StoreError(f"the path `{path}` is too long for this system", hint=LONG_PATHS_HINT, path=str(path))
    if is_in_use(error):
        hint = "close the program that has it open, then run the same command again"
        return StoreError(f"`{path}` is open in another program", code=Cause.FILE_IN_USE, hint=hint, path=str(path))
    hint = ""
    if error.errno == errno.EFBIG:
        hint = (
            "the file system or a limit of your account does not allow such a large file; choose another "
            "library with --library"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = "the library's folder must be writable; choose another library with --library"
    return StoreError(f"`{path}`: {error.strerror or error}", hint=hint, path=str(path))


def _mib(count_bytes: int) -> str:
    return f"{count_bytes / (1 << 20):,.1f} MiB"
