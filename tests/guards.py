"""What the tests leave behind: no process, no listening port, no file in the repository.

A test that leaves a process fails, and the process is ended, so that the next test does not find it. Ports and files
are looked at once, at the end. Where the system has no `/proc`, processes and ports are not looked at.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
NOT_OURS = {"__pycache__", "build", "dist", "cache", "htmlcov"}
"""Folders that builds and other programs fill; so are all whose names start with a dot."""
HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
"""Processes that Python starts once and keeps until its end."""


def let_children_be_interrupted() -> None:
    """Give this process a handler for SIGINT, so that processes which it starts begin with the default one.

    A shell starts background jobs with SIGINT ignored, programs inherit that, and Python leaves it so: whatever a test
    sends Ctrl-C to would then go on. A handler, unlike an ignored signal, is not inherited.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def children() -> dict[int, str]:
    """This process's children and their command lines; without those that Python keeps for itself."""
    found: dict[int, str] = {}
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            for number in path.read_text().split():
                found[int(number)] = Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return {number: words for number, words in found.items() if not any(helper in words for helper in HELPERS)}


def listening() -> list[str]:
    """The addresses that this process listens on, as the kernel writes them."""
    sockets = set()
    for entry in Path("/proc/self/fd").iterdir() if Path("/proc/self/fd").is_dir() else ():
        with contextlib.suppress(OSError):
            sockets.add(str(entry.readlink()))
    found = []
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/net", table).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == "0A" and f"socket:[{words[9]}]" in sockets:
                    found.append(words[1])
    return found


def files() -> set[Path]:
    """The repository's files, but for those of builds and tools."""
    found = set()
    for folder, folders, names in os.walk(REPOSITORY):
        folders[:] = [name for name in folders if name not in NOT_OURS and not name.startswith(".")
                      and not name.endswith(".egg-info")]  # fmt: skip
        found |= {Path(folder, name) for name in names if not name.startswith(".")}
    return found


@pytest.fixture(autouse=True)
def no_process_stays() -> Iterator[None]:
    """Fails the test after which a process of its runs on, and ends that process."""
    before = children()
    yield
    left = {number: words for number, words in children().items() if number not in before}
    for number in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(number, 0)
    assert not left, f"the test left processes behind: {left}"


@pytest.fixture(autouse=True, scope="session")
def no_port_and_no_file_stays() -> Iterator[None]:
    """Fails at the end where a test has left a listening socket, or a file in the repository."""
    sockets, before = set(listening()), files()
    yield
    assert set(listening()) <= sockets, "a test left a server listening"
    assert files() <= before, f"files appeared in the repository: {sorted(files() - before)}"
