"""Rename, replace and remove files that another program may have open.

Windows refuses all three while another program has the file open without sharing it, as virus scanners briefly do. It
also refuses to remove read-only files. POSIX systems allow all of this.
"""

import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

_PATIENCE_S: Final = 2.0
_POLL_S: Final = 0.02
_ACCESS_DENIED: Final = 5
_IN_USE: Final = (32, 33)
"""The Windows error codes ERROR_SHARING_VIOLATION and ERROR_LOCK_VIOLATION."""
_KEEPS_READ_ONLY: Final = sys.platform == "win32"


def replace_file(source: Path, target: Path) -> None:
    """Rename `source` to `target`, replacing an existing file. Raises: OSError."""
    _patiently(lambda: os.replace(source, target))  # noqa: PTH105  # this module wraps the functions of os


def rename_file(source: Path, target: Path) -> None:
    """Rename a file or folder. An existing `target` is an error on Windows only. Raises: OSError."""
    _patiently(lambda: os.rename(source, target))  # noqa: PTH104


def remove_file(path: Path, *, missing_ok: bool = False, twin: Path | None = None) -> None:
    """Remove a file, even if it is read-only.

    `twin` is another hard link to the same file, which is made read-only again afterwards. Raises: OSError.
    """
    try:
        if _KEEPS_READ_ONLY and not path.is_symlink() and not path.stat().st_mode & stat.S_IWUSR:
            path.chmod(stat.S_IWUSR | stat.S_IRUSR)
            try:
                _patiently(lambda: os.unlink(path))  # noqa: PTH108
            finally:
                if twin is not None and twin.exists():
                    twin.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
        else:
            _patiently(lambda: os.unlink(path))  # noqa: PTH108
    except FileNotFoundError:
        if not missing_ok:
            raise


def is_in_use(error: OSError) -> bool:
    """Whether Windows refused a change because another program has the file open."""
    return getattr(error, "winerror", None) in _IN_USE


def _patiently(change: Callable[[], None]) -> None:
    """Call `change`; repeat it for a limited time if Windows refuses it because another program uses the file."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return change()
        except OSError as error:
            # retry for a limited time only: Windows reports "access denied" both for replacing an open file and for
            # changes that are never allowed
            busy = is_in_use(error) or getattr(error, "winerror", None) == _ACCESS_DENIED
            if not busy or time.monotonic() >= deadline:
                raise
        time.sleep(_POLL_S)
