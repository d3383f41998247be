"""Removed files that can still be restored: a folder for each removal in `trash/`, on the library's own file system.

Files are moved by renaming, so nothing is copied and a restored file is the original one. Next to the files,
`removal.json` contains everything that is needed to restore their rows in the index; it is written before any file is
moved.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from civman.domain.digests import Sha256
from civman.errors import Cause, StoreError
from civman.store.blobs import BlobStore, StoredBlob
from civman.store.partial import store_error
from civman.system.move_files import remove_file, rename_file, replace_file
from civman.system.process_lock import FileLock

_NOTE = "removal.json"
_FORMAT = 1
_POLL_S = 0.02
_EMPTIED = ".emptied"


@dataclass(frozen=True, slots=True)
class Removal:
    """One removal: its time and reason, and for each blob the data needed to restore it (`entries`)."""

    folder: Path
    removed_at: datetime
    reason: str
    entries: tuple[dict[str, Any], ...]

    @property
    def id(self) -> str:
        """The folder's name, which identifies the removal."""
        return self.folder.name

    @property
    def size_bytes(self) -> int:
        """The total size in bytes of the removed files."""
        return sum(path.stat().st_size for path in self.folder.iterdir()) if self.folder.is_dir() else 0

    @property
    def digests(self) -> tuple[Sha256, ...]:
        """The digests of the removed blobs."""
        return tuple(Sha256(str(entry["sha256"])) for entry in self.entries)


class Trash:
    """The library's trash."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self.folder = store.root / "trash"

    @contextmanager
    def begin(self, entries: list[dict[str, Any]], *, reason: str, now: datetime) -> Iterator[Removal]:
        """Create an empty removal on disk, and lock it while files are moved into it.

        Raises: StoreError.
        """
        name = f"{now:%Y%m%dT%H%M%S}-{now.microsecond:06d}-{os.getpid()}"
        folder = self.folder / name
        removal = Removal(folder, now, reason, tuple(entries))
        with self.held(removal):
            try:
                folder.mkdir(parents=True)
                note = {"format": _FORMAT, "removed_at": now.isoformat(), "reason": reason, "entries": entries}
                with (folder / _NOTE).open("w", encoding="utf-8") as file:
                    json.dump(note, file, ensure_ascii=False, indent=1, sort_keys=True)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise store_error(error, folder) from error
            yield removal

    @contextmanager
    def held(self, removal: Removal) -> Iterator[None]:
        """Lock a removal, so that only one process at a time fills, restores or empties it.

        Raises: StoreError: `removal-busy`.
        """
        with _locked(self._store.root / "locks" / f"{removal.id}.lock", f"removal {removal.id}", Cause.REMOVAL_BUSY):
            yield

    def take(self, removal: Removal, sha256: Sha256) -> int:
        """Move a blob, its sidecar and its preview into the removal. The blob is moved last.

        Returns the number of bytes moved.
        """
        return _move(self._store.place_of(sha256, "").parent, removal.folder, sha256)

    def give_back(self, removal: Removal, sha256: Sha256) -> StoredBlob | None:
        """Move a blob, its sidecar and its preview back to the store.

        Returns None if the blob's file is neither in the trash nor in the store.
        """
        if self._store.find(sha256) is None:
            _move(removal.folder, self._store.place_of(sha256, "").parent, sha256)
        return self._store.find(sha256)

    def lying(self, removal: Removal, sha256: Sha256) -> tuple[Removal, Path] | None:
        """Find the file of a removed blob, in this removal if possible, else in another one.

        Returns (the removal that contains the file, the file's path), or None.
        """
        for place in (removal, *self.removals()):
            path = _blob_in(place, sha256)
            if path is not None:
                return place, path
        return None

    def removals(self) -> list[Removal]:
        """All removals that can be undone, the most recent first."""
        try:
            folders = sorted(self.folder.iterdir(), reverse=True) if self.folder.is_dir() else []
        except OSError as error:
            raise store_error(error, self.folder) from error
        return [
            removal
            for folder in folders
            if not folder.name.endswith(_EMPTIED) and (removal := _read(folder)) is not None
        ]

    def find(self, sha256: Sha256) -> Removal | None:
        """The most recent removal that contains this blob's file."""
        return next((removal for removal in self.removals() if has_blob(removal, sha256)), None)

    def empty(self, removal: Removal) -> int:
        """Permanently delete a removal with its files. Returns the number of bytes freed.

        As soon as the deletion starts, the removal cannot be restored any more.
        """
        if removal.id.endswith(_EMPTIED):
            return _delete(removal.folder)
        doomed = removal.folder.with_name(removal.id + _EMPTIED)
        try:
            rename_file(removal.folder, doomed)
        except FileNotFoundError:
            return 0  # another process has already deleted the removal
        except OSError as error:
            raise store_error(error, removal.folder) from error
        return _delete(doomed)

    def leavings(self) -> list[Removal]:
        """List the folders left by a process that was killed while emptying the trash."""
        folders = sorted(self.folder.glob(f"*{_EMPTIED}"))
        return [Removal(folder, datetime.fromtimestamp(0, UTC), "emptied", ()) for folder in folders]


def take_back(store: BlobStore, sha256: Sha256) -> StoredBlob | None:
    """Restore the blob if another process has just moved it to the trash. Returns None if it no longer exists.

    The caller must hold the blob's lock.
    """
    found = store.find(sha256)
    trash = Trash(store)
    removal = trash.find(sha256) if found is None else None
    return found if removal is None else trash.give_back(removal, sha256)


def has_blob(removal: Removal, sha256: Sha256) -> bool:
    """Whether the removal contains the blob itself, not only its sidecar or preview."""
    return _blob_in(removal, sha256) is not None


@contextmanager
def blob_lock(store: BlobStore, sha256: Sha256, *, wait_s: float = 60.0) -> Iterator[None]:
    """Lock one blob, so that its file, its rows and its sidecar are changed by one process at a time.

    Raises: StoreError: `blob-busy`: another process holds the lock longer than `wait_s`; or the library is read-only.
    """
    with _locked(store.root / "locks" / f"{sha256}.lock", sha256[:10], Cause.BLOB_BUSY, wait_s, sha256=sha256):
        yield


@contextmanager
def _locked(path: Path, what: str, code: Cause, wait_s: float = 60.0, **facts: str) -> Iterator[None]:
    lock = FileLock(path)
    deadline = monotonic() + wait_s
    while not lock.acquire():
        if monotonic() >= deadline:
            raise StoreError(
                f"another civman process is working on {what}",
                code=code,
                hint="wait until the other process has finished, then try again",
                **facts,
            )
        sleep(_POLL_S)
    try:
        yield
    finally:
        lock.release()


def _blob_in(removal: Removal, sha256: Sha256) -> Path | None:
    return next((path for path in removal.folder.glob(f"{sha256}*") if _is_blob(path, sha256)), None)


def _delete(folder: Path) -> int:
    freed = 0
    try:
        for path in folder.iterdir():
            freed += path.stat().st_size
            remove_file(path)
        folder.rmdir()
    except FileNotFoundError:
        return freed  # another process is deleting the removal at the same time
    except OSError as error:
        raise store_error(error, folder) from error
    return freed


def _move(source: Path, target: Path, sha256: Sha256) -> int:
    moved = 0
    try:
        found = [path for path in source.iterdir() if path.name.startswith(sha256)] if source.is_dir() else []
        if found:
            target.mkdir(parents=True, exist_ok=True)
        # move the blob last: once it is in `target`, its sidecar and preview are there too
        for path in sorted(found, key=lambda path: _is_blob(path, sha256)):
            moved += path.stat().st_size
            replace_file(path, target / path.name)
    except OSError as error:
        raise store_error(error, source) from error
    return moved


def _is_blob(path: Path, sha256: Sha256) -> bool:
    return "." not in path.name[len(sha256) + 1 :]


def _read(folder: Path) -> Removal | None:
    try:
        note = json.loads((folder / _NOTE).read_bytes())
        return Removal(folder, datetime.fromisoformat(note["removed_at"]), str(note["reason"]), tuple(note["entries"]))
    # the folder is not a removal, or a crash left it without its `removal.json`
    except (OSError, ValueError, KeyError, TypeError):
        return None
