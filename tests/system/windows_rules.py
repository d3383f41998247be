"""Windows' rules for files, kept below one folder of a Linux machine; errors carry Windows' own numbers."""

import contextlib
import errno
import ntpath
import os
import stat
import sys
from collections.abc import Callable
from pathlib import PureWindowsPath
from typing import Any, NoReturn

LONGEST_PATH = 259
NOT_FOUND, DENIED, SHARED, WRONG_NAME, EXISTS, NO_PRIVILEGE = 3, 5, 32, 123, 183, 1314


class WindowsRules:
    """Takes the place of `os.unlink`, `os.rename` and others; what it allows goes to the true functions."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.unlink, self.fsync, self.open = os.unlink, os.fsync, os.open

    def keep(self) -> None:
        """Keep the rules until the process ends."""
        os.rename = self._moving(os.rename, may_replace=False)  # type: ignore[assignment]
        os.replace = self._moving(os.replace, may_replace=True)  # type: ignore[assignment]
        os.unlink = os.remove = self._unlink  # type: ignore[assignment]
        os.fsync, os.open, os.symlink = self._fsync, self._open, self._symlink  # type: ignore[assignment]
        sys.addaudithook(self._watch)

    def _is_below(self, path: object) -> bool:
        return isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(self.root + os.sep)

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        if dir_fd is None and self._is_below(path) and os.path.lexists(path):
            check_writable(path)
            check_closed(path)
        self.unlink(path, dir_fd=dir_fd)

    def _moving(self, change: Callable[..., None], *, may_replace: bool) -> Callable[..., None]:
        def move(source: Any, target: Any, **named: Any) -> None:
            if self._is_below(target):
                self._check_name(target)
                if os.path.lexists(target) and not may_replace:
                    refuse(FileExistsError, errno.EEXIST, EXISTS, target)
                if os.path.lexists(target):
                    check_writable(target)
                    check_closed(target)
                check_closed(source)
                for folder, _, names in os.walk(source):
                    for name in names:
                        check_closed(os.path.join(folder, name))
            change(source, target, **named)

        return move

    def _fsync(self, file: Any) -> None:
        number = file if isinstance(file, int) else file.fileno()
        with open(f"/proc/self/fdinfo/{number}", encoding="ascii") as facts:
            flags = next(int(line.split()[1], 8) for line in facts if line.startswith("flags:"))
        if flags & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        self.fsync(number)

    def _open(self, path: Any, flags: int, *more: Any, **named: Any) -> int:
        if self._is_below(path) and os.path.isdir(path):
            refuse(PermissionError, errno.EACCES, DENIED, path)
        return self.open(path, flags, *more, **named)

    @staticmethod
    def _symlink(source: Any, target: Any, *_: Any, **__: Any) -> None:
        refuse(OSError, errno.EINVAL, NO_PRIVILEGE, target)

    def _watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and self._is_below(arguments[0]):
            mode, flags = arguments[1], arguments[2]
            if flags & os.O_CREAT or (isinstance(mode, str) and set(mode) & set("wxa")):
                self._check_name(arguments[0])
        elif event in ("os.mkdir", "os.link") and self._is_below(arguments[event == "os.link"]):
            self._check_name(arguments[event == "os.link"])

    def _check_name(self, path: object) -> None:
        whole = os.path.abspath(str(path))
        if len(whole) > LONGEST_PATH:
            refuse(FileNotFoundError, errno.ENOENT, NOT_FOUND, path)
        if any(is_impossible(part) for part in whole[len(self.root) + 1 :].split(os.sep)):
            refuse(OSError, errno.EINVAL, WRONG_NAME, path)
        folder, name = os.path.split(whole)
        if os.path.isdir(folder):
            for other in os.listdir(folder):
                if other != name and other.casefold() == name.casefold():
                    refuse(FileExistsError, errno.EEXIST, EXISTS, path)


def is_impossible(name: str) -> bool:
    """Whether Windows cannot make a file of this name."""
    return (
        bool(set(name) & set('<>:"|?*\\'))
        or any(ord(char) < 32 for char in name)
        or name != name.rstrip(" .")
        or is_reserved(name)
    )


def is_reserved(name: str) -> bool:
    """Whether Windows takes the name for a device."""
    if sys.version_info >= (3, 13):
        return ntpath.isreserved(name)
    return PureWindowsPath(name).is_reserved()


def check_closed(path: object) -> None:
    """Raise where this process has the file open or mapped."""
    real = os.path.realpath(str(path))
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/fd/{descriptor}") == real:
                refuse(PermissionError, errno.EACCES, SHARED, path)
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        if any(line.rstrip("\n").endswith(real) for line in maps):
            refuse(PermissionError, errno.EACCES, DENIED, path)


def check_writable(path: object) -> None:
    """Raise where the file is read-only."""
    mode = os.lstat(str(path)).st_mode
    if stat.S_ISREG(mode) and not mode & stat.S_IWUSR:
        refuse(PermissionError, errno.EACCES, DENIED, path)


def refuse(kind: type[OSError], number: int, winerror: int, path: object) -> NoReturn:
    """Raise as Windows does."""
    error = kind(number, os.strerror(number), str(path))
    error.winerror = winerror  # type: ignore[attr-defined]
    raise error
