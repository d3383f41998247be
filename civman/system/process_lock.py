"""Locks between processes: an advisory lock on a file, which the system releases when its owner dies."""

import contextlib
import errno
import os
import sys
from pathlib import Path

from civman.errors import StoreError

_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _try_lock(descriptor: int) -> bool:
    try:
        _lock(descriptor)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


class FileLock:
    """An exclusive lock, from a successful `acquire` until `release` or the end of the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object has the lock."""
        return self._descriptor is not None

    def acquire(self) -> bool:
        """Acquire the lock if it is free. False: another process, or another lock object in this process, has it.

        Raises: StoreError: the folder is not writable, or the file system does not support locks.
        """
        while self._descriptor is None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
                try:
                    locked = _try_lock(descriptor)
                except OSError:
                    os.close(descriptor)
                    raise
            except OSError as error:
                raise StoreError(
                    f"cannot lock `{self._path}`: {error.strerror}",
                    hint="choose a writable library folder with --library",
                    path=str(self._path),
                ) from error
            if not locked:
                os.close(descriptor)
                return False
            if self._is_current(descriptor):
                self._descriptor = descriptor
            else:  # try again: the previous owner removed the file between our opening and locking it
                os.close(descriptor)
        return True

    def release(self) -> None:
        """Release the lock and remove its file."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        # ignore this error: the folder has become read-only, and the unlocked empty file that remains does no harm
        with contextlib.suppress(OSError):
            if sys.platform != "win32":
                self._path.unlink(missing_ok=True)
        os.close(descriptor)
        if sys.platform == "win32":  # remove the file after closing it, because Windows cannot remove an open file
            with contextlib.suppress(OSError):
                os.unlink(self._path)  # noqa: PTH108

    def _is_current(self, descriptor: int) -> bool:
        ours = os.fstat(descriptor)
        try:
            named = self._path.stat()
        except FileNotFoundError:
            return False
        return (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino)
