"""How long a path may be: 259 characters on Windows unless its long paths are switched on."""

import errno
import os
import sys
from functools import cache
from pathlib import Path
from typing import Final

_WINDOWS: Final = 259
_MOST: Final = 1023
"""Below macOS' PATH_MAX; Linux allows four times as much."""
_SPARE: Final = 32
"""For what is written beside a file or before it has its name: `.preview.jpeg`, `.civman-new`, a number."""
LONG_PATHS_HINT = "choose a folder with a shorter path"


@cache
def longest_path() -> int:
    """The longest path, in characters, that this system opens for certain."""
    if sys.platform == "win32":
        import ctypes

        switch = getattr(ctypes.WinDLL("ntdll"), "RtlAreLongPathsEnabled", None)
        longest = _MOST if switch is not None and switch() & 1 else _WINDOWS
    else:
        longest = _MOST
    return longest


def name_room(folder: Path, most: int) -> int:
    """How long a name in `folder` may be so that its whole path can be opened, at most `most`; 0 where none can."""
    return max(0, min(most, longest_path() - len(os.path.abspath(folder)) - 1 - _SPARE))  # noqa: PTH100  # no links


def is_too_long(error: OSError, path: Path) -> bool:
    """Whether the system refused because the path is too long; Windows says that there is no such file."""
    if error.errno == errno.ENAMETOOLONG:
        return True
    return error.errno in (errno.ENOENT, errno.EINVAL) and len(os.path.abspath(path)) > longest_path()  # noqa: PTH100
