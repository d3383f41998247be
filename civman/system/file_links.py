"""Create links to a file (shared blocks, hard links, symbolic links), and explain why the system refuses one."""

import errno
import os
import sys
from pathlib import Path
from typing import Final

_FICLONE: Final = 0x40049409
"""The Linux ioctl that makes a file share another file's blocks. Source: ioctl_ficlone(2)."""
_NO_PRIVILEGE: Final = 1314
"""The Windows error code ERROR_PRIVILEGE_NOT_HELD."""
_UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS)


def share_blocks(source: Path, target: Path) -> None:
    """Create `target` as a copy of `source` that shares its blocks.

    A shared block is copied only when one of the files changes it.

    Raises: OSError: the system or the file system does not support this; `target` may be left empty.
    """
    if sys.platform != "linux":
        raise OSError(errno.EOPNOTSUPP, "civman can share blocks only on Linux")
    else:  # noqa: RET506  # mypy checks this branch only for Linux
        import fcntl  # imported here, because the module exists only on Linux and macOS

        with source.open("rb") as old, target.open("xb") as new:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())


def hard_link(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`. Raises: OSError."""
    if not hasattr(os, "link"):
        raise OSError(errno.ENOSYS, "this system does not support hard links")
    os.link(source, target)


def symbolic_link(source: Path, target: Path) -> None:
    """Make `target` a symbolic link to `source`; relative if both are on the same drive. Raises: OSError."""
    if not hasattr(os, "symlink"):
        raise OSError(errno.ENOSYS, "this system does not support symbolic links")
    try:
        words = os.path.relpath(source.resolve(), target.parent.resolve())
    except ValueError:  # the two paths are on different drives (Windows), so use an absolute target
        words = str(source.resolve())
    os.symlink(words, target)  # noqa: PTH211  # this module wraps the functions of os


def link_refusal(what: str, error: OSError) -> str:
    """Explain why a link could not be created. `what` is the kind of link, such as "hard links"."""
    if getattr(error, "winerror", None) == _NO_PRIVILEGE:
        return f"Windows allows {what} only for administrators or in developer mode"
    if error.errno == errno.EXDEV:
        return f"{what} do not work across the file systems of the library and the view"
    if error.errno in _UNSUPPORTED:
        return f"this file system does not support {what}"
    return f"{what}: {error.strerror}"
