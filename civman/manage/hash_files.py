"""Find the SHA-256 of many files. A file is read only if it is new or has changed, not if it was only renamed."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from threading import Lock

from civman.domain.digests import Sha256
from civman.domain.events import OnEvent, Started, Verifying
from civman.errors import CivmanError, InvalidModelFile, NotFound
from civman.index import Index, SeenFile
from civman.store.blobs import digest_of

_SAVE_EVERY = 64
_HASHERS = 2
_SECOND_NS = 1_000_000_000
State = tuple[int, int, int, int]


@dataclass(slots=True)
class Hashed:
    """The result of hashing files.

    `seen`: the state and digest of each file by its path; `read`: the paths of the files that had to be read.
    """

    seen: dict[str, SeenFile] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    read_bytes: int = 0
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    """The files that could not be read, each with the reason."""


def hash_files(index: Index, files: Sequence[Path], on_event: OnEvent) -> Hashed:
    """Find the SHA-256 of each file. Each digest is saved at once, so that an interruption loses little work.

    A file is not read again if its device, inode, size and modification time are those of a file that was read before,
    at the same path or another one. A modification time in whole seconds is trusted only at the same path, because
    unpacking and copying restore such times. Several links to one file are read once.
    """
    remembered = index.seen_files()
    by_state = {_state(seen): seen for seen in remembered.values()}
    hashed = Hashed()
    renamed: list[SeenFile] = []
    fresh: dict[State, list[SeenFile]] = {}
    for path in files:
        try:
            now = _unknown(path, path.stat())
        except OSError as error:
            hashed.unreadable.append((path, error.strerror or str(error)))
            continue
        known = remembered.get(now.path)
        if known is not None and _state(known) == _state(now):
            hashed.seen[now.path] = known
            continue
        elsewhere = by_state.get(_state(now))
        if elsewhere is not None and now.mtime_ns % _SECOND_NS:
            hashed.seen[now.path] = replace(now, sha256=elsewhere.sha256)
            renamed.append(hashed.seen[now.path])
        else:
            fresh.setdefault(_state(now), []).append(now)
    if renamed:
        index.save_seen(renamed)
    _read(index, fresh, hashed, on_event)
    return hashed


class _Progress:
    """Reports how many bytes of all files have been hashed, and which file is being read. Several threads use it."""

    def __init__(self, count: int, total_bytes: int, on_event: OnEvent) -> None:
        self._count, self._total_bytes, self._on_event = count, total_bytes, on_event
        self._read: dict[str, int] = {}
        self._done_bytes = 0
        self._lock = Lock()

    def tell(self, file: SeenFile, done: int) -> None:
        """Report that `done` bytes of a file have been hashed."""
        with self._lock:
            self._done_bytes += done - self._read.get(file.path, 0)
            self._read[file.path] = done
            name = f"{Path(file.path).name} ({len(self._read)} of {self._count})"
            self._on_event(Verifying("import", self._done_bytes, self._total_bytes, name))


def _read(index: Index, fresh: dict[State, list[SeenFile]], hashed: Hashed, on_event: OnEvent) -> None:
    if not fresh:
        return
    total_bytes = sum(group[0].size_bytes for group in fresh.values())
    on_event(Started("import", f"{len(fresh)} files", total_bytes))
    progress = _Progress(len(fresh), total_bytes, on_event)
    unsaved: list[SeenFile] = []
    try:
        for group, result in _results(list(fresh.values()), progress):
            if isinstance(result, CivmanError):
                hashed.unreadable += [(Path(file.path), result.message) for file in group]
                continue
            hashed.read_bytes += group[0].size_bytes
            for file in group:
                hashed.seen[file.path] = replace(file, sha256=result)
                hashed.read.add(file.path)
                unsaved.append(hashed.seen[file.path])
            if len(unsaved) >= _SAVE_EVERY:
                index.save_seen(unsaved)
                unsaved = []
    finally:  # save the digests even after an interruption, so that files need not be read twice
        if unsaved:
            index.save_seen(unsaved)


def _results(
    groups: Sequence[list[SeenFile]], progress: "_Progress"
) -> Iterator[tuple[list[SeenFile], Sha256 | CivmanError]]:
    """Hash a few files at a time and yield each result when it is ready.

    A file that changes while it is read yields an error as its result.
    """
    waiting = iter(groups)
    with ThreadPoolExecutor(_HASHERS, thread_name_prefix="hash") as pool:
        running: dict[Future[Sha256 | CivmanError], list[SeenFile]] = {}
        while True:
            for group in islice(waiting, 2 * _HASHERS - len(running)):
                running[pool.submit(_digest, group[0], progress)] = group
            if not running:
                return
            done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()


def _digest(before: SeenFile, progress: "_Progress") -> Sha256 | CivmanError:
    path = Path(before.path)
    try:
        digest = digest_of(path, lambda done: progress.tell(before, done))
        progress.tell(before, before.size_bytes)
        after = path.stat()
    except CivmanError as error:
        return error
    except OSError as error:
        return NotFound(error.strerror or str(error))
    if (after.st_size, after.st_mtime_ns) != (before.size_bytes, before.mtime_ns):
        return InvalidModelFile("the file changed while it was read; another program may still be writing it")
    return digest


def _unknown(path: Path, stats: os.stat_result) -> SeenFile:
    return SeenFile(str(path), stats.st_dev, stats.st_ino, stats.st_size, stats.st_mtime_ns, Sha256(""))


def _state(seen: SeenFile) -> State:
    return seen.device, seen.inode, seen.size_bytes, seen.mtime_ns
