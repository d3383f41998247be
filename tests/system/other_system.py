"""Run civman as another system would have it: `python other_system.py KIND ROOT COMMANDS`.

Not a test. It shapes this process before civman is imported, then runs each command of COMMANDS (a JSON list of
argument lists) and prints a JSON list of `[exit code, stdout, stderr]`. Kinds:

* `bare`: a POSIX system without what POSIX leaves open: positioned reads and writes, advice, allocation, polling,
  links, counted memory, a boot id.
* `windows`: besides, `civman.system` is imported as on Windows, locks are msvcrt's, and below ROOT the file system
  keeps Windows' rules: nobody renames, replaces or removes a file that is open or mapped, nobody removes a read-only
  one, folders are not opened, only what is open for writing is synced, names are Windows' and differ by more than
  case, paths have 259 characters at most, links by name need a privilege.
"""

import asyncio  # noqa: F401  # its import needs fcntl, which goes
import contextlib
import errno
import importlib
import io
import json
import mmap
import os
import pkgutil
import select
import signal
import socket
import sys
import types
from pathlib import Path
from typing import Any

from windows_rules import WindowsRules

MISSING = {
    os: (
        "pread", "preadv", "pwrite", "pwritev", "posix_fadvise", "posix_fallocate", "fdatasync", "link",
        "symlink", "major",
    ),
    select: ("poll",),
    socket: ("MSG_WAITALL",),
    mmap: ("MADV_DONTNEED",),
}  # fmt: skip
NOT_SAID = ("/proc/meminfo", "/proc/sys/kernel/random/boot_id")
FREE_BYTES = 64 << 30


def take_away(*, but: tuple[str, ...] = ()) -> None:
    """Remove the functions, and the files in which Linux says more than others."""
    for module, names in MISSING.items():
        for name in names:
            if name not in but and hasattr(module, name):
                delattr(module, name)

    sysconf = os.sysconf

    def counted(name: str) -> int:
        if name == "SC_AVPHYS_PAGES":
            raise ValueError("unrecognized configuration name")
        return sysconf(name)

    os.sysconf = counted  # type: ignore[assignment]  # psutil on Linux asks it for the length of a tick

    def hide(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and arguments[0] in NOT_SAID:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), arguments[0])

    sys.addaudithook(hide)


def be_windows(root: Path) -> None:
    """Import `civman.system` as on Windows, and keep its file system's rules below `root`."""
    take_away(but=("link",))
    stand_in_for_msvcrt()
    sys.modules["fcntl"] = None  # type: ignore[assignment]
    import ctypes

    ctypes.WinDLL = lambda _: types.SimpleNamespace(  # type: ignore[attr-defined]
        GlobalMemoryStatusEx=fill_memory_status, RtlAreLongPathsEnabled=lambda: 0
    )
    true_platform, sys.platform = sys.platform, "win32"
    import civman.system

    there = types.ModuleType("sys")
    vars(there).update(vars(sys))
    for found in pkgutil.iter_modules(civman.system.__path__):
        module = importlib.import_module(f"civman.system.{found.name}")
        if hasattr(module, "sys"):
            module.sys = there
    sys.platform = true_platform
    WindowsRules(os.path.realpath(root)).keep()


def fill_memory_status(pointer: Any) -> int:
    status = pointer._obj
    assert status.length == 64
    status.available_bytes = FREE_BYTES
    return 1


def stand_in_for_msvcrt() -> None:
    import fcntl

    msvcrt = types.ModuleType("msvcrt")

    def locking(descriptor: int, mode: int, count: int) -> None:
        assert (mode, count) == (2, 1)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None

    msvcrt.LK_NBLCK, msvcrt.locking = 2, locking  # type: ignore[attr-defined]
    sys.modules["msvcrt"] = msvcrt


def run(commands: list[list[str]]) -> list[tuple[int, str, str]]:
    from civman.cli.app import main

    done = []
    for command in commands:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = int(main(command))
        done.append((code, out.getvalue(), err.getvalue()))
    return done


if __name__ == "__main__":
    kind, root, commands = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    be_windows(root) if kind == "windows" else take_away()
    json.dump(run(commands), sys.stdout)
