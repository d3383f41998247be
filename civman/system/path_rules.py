"""The rules for paths on each system: the maximum length, and names that Windows does not use for files."""

import errno
import os
import sys
from functools import cache
from pathlib import Path
from typing import Final

from civman.domain.file_names import safe_name
from civman.errors import Cause, StoreError, UsageError

_WINDOWS: Final = 259
_LONG: Final = 4095 if sys.platform == "linux" else 1023
"""The maximum length of a path in bytes: PATH_MAX of Linux or macOS; 1023 also serves for Windows with long paths."""
_NAMES_DEVICES: Final = sys.platform == "win32"
_SPARE: Final = 32
"""How many characters stay free for suffixes of related and temporary files (`.preview.jpeg`, a number …)."""
LONG_PATHS_HINT = "choose a folder with a shorter path"


@cache
def longest_path() -> int:
    """The length in characters of the longest path that this system is certain to open."""
    if sys.platform == "win32":
        import ctypes

        switch = getattr(ctypes.WinDLL("ntdll"), "RtlAreLongPathsEnabled", None)
        longest = _LONG if switch is not None and switch() & 1 else _WINDOWS
    else:
        longest = _LONG
    return longest


def name_room(folder: Path, most: int) -> int:
    """Return the maximum length of a file name in `folder` whose path can be opened, up to `most`; 0 if none can."""
    return max(0, min(most, longest_path() - len(os.path.abspath(folder)) - 1 - _SPARE))  # noqa: PTH100  # keeps links


def require_room(folder: Path, needed: int, most: int) -> int:
    """Return the maximum length of a file name, as `name_room` does. Raises: StoreError: it is below `needed`."""
    room = name_room(folder, most)
    if room < needed:
        raise StoreError(
            f"the path of `{folder}` is too long: this system supports paths of up to {longest_path()} characters",
            code=Cause.PATH_TOO_LONG,
            hint=LONG_PATHS_HINT,
            path=str(folder),
        )
    return room


def require_file_name(path: Path) -> None:
    """Reject file names that on Windows refer to a device or an alternate data stream. Raises: UsageError."""
    if _NAMES_DEVICES and safe_name(path.name) != path.name:
        raise UsageError(
            f"`{path.name}` is not a valid file name on Windows",
            hint=f"use another name, for example `{safe_name(path.name)}`",
            code=Cause.BAD_FILE_NAME,
        )


def is_too_long(error: OSError, path: Path) -> bool:
    """Whether an error was caused by an overlong path, which Windows reports as a missing file."""
    if error.errno == errno.ENAMETOOLONG:
        return True
    return error.errno in (errno.ENOENT, errno.EINVAL) and len(os.path.abspath(path)) > longest_path()  # noqa: PTH100
