"""What paths a system allows: their length, and names that are no files on Windows."""

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
"""Linux' and macOS' PATH_MAX; 1023 also for Windows with long paths."""
_NAMES_DEVICES: Final = sys.platform == "win32"
_SPARE: Final = 32
"""For what is written beside a file or before it has its name: `.preview.jpeg`, `.civman-new`, a number."""
LONG_PATHS_HINT = "choose a folder with a shorter path"


@cache
def longest_path() -> int:
    """The longest path, in characters, that this system opens for certain."""
    if sys.platform == "win32":
        import ctypes

        switch = getattr(ctypes.WinDLL("ntdll"), "RtlAreLongPathsEnabled", None)
        longest = _LONG if switch is not None and switch() & 1 else _WINDOWS
    else:
        longest = _LONG
    return longest


def name_room(folder: Path, most: int) -> int:
    """How long a name in `folder` may be so that its whole path can be opened, at most `most`; 0 where none can."""
    return max(0, min(most, longest_path() - len(os.path.abspath(folder)) - 1 - _SPARE))  # noqa: PTH100  # no links


def require_room(folder: Path, needed: int, most: int) -> int:
    """As `name_room`. Raises: StoreError: there is room for less than `needed`."""
    room = name_room(folder, most)
    if room < needed:
        raise StoreError(
            f"the path of `{folder}` is too long: this system opens paths of {longest_path()} characters",
            code=Cause.PATH_TOO_LONG,
            hint=LONG_PATHS_HINT,
            path=str(folder),
        )
    return room


def require_file_name(path: Path) -> None:
    """Refuse a name under which Windows would write to a device or a hidden stream. Raises: UsageError."""
    if _NAMES_DEVICES and safe_name(path.name) != path.name:
        raise UsageError(
            f"`{path.name}` cannot be the name of a file on Windows",
            hint=f"for example `{safe_name(path.name)}` can",
            code=Cause.BAD_FILE_NAME,
        )


def is_too_long(error: OSError, path: Path) -> bool:
    """Whether the system refused because the path is too long; Windows says that there is no such file."""
    if error.errno == errno.ENAMETOOLONG:
        return True
    return error.errno in (errno.ENOENT, errno.EINVAL) and len(os.path.abspath(path)) > longest_path()  # noqa: PTH100
