"""Bring files into the store by copying, linking or moving them, so that no byte can be lost.

An original is deleted only after its bytes are in the store, were read back from there, and have a row in the index.
Files of other users are copied and stay unchanged, with their permissions.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from civman.domain.digests import Sha256
from civman.errors import CivmanError, DiskFull
from civman.index import Index, SeenFile
from civman.manage.file_state import seen_now
from civman.manage.hash_files import Hashed
from civman.store.blobs import BlobStore, StoredBlob, digest_of
from civman.store.trash import blob_lock
from civman.system.move_files import remove_file

_SPARE_BYTES = 1 << 20
"""Disk space that must stay free for rows and sidecar files."""


class ImportMode(StrEnum):
    """Whether imported files stay where they are, or are copied, linked or moved into the store."""

    IN_PLACE = "in place"
    COPY = "copy"
    LINK = "link"
    MOVE = "move"


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that was not imported, and the reason."""

    path: str
    message: str


@dataclass(frozen=True, slots=True)
class Kept:
    """A file that was copied instead of moved. `is_fault`: the original should have been deleted, but could not be."""

    path: str
    message: str
    is_fault: bool


class Taking:
    """Brings the files of one import into the store."""

    def __init__(
        self, index: Index, store: BlobStore, mode: ImportMode, hashed: Hashed, links: Set[Path] = frozenset()
    ) -> None:
        """`hashed` has the files by path; `links` are the paths that are symbolic links."""
        self.kept: list[Kept] = []
        self._index, self._store, self._mode, self._links = index, store, mode, links
        self._paths: dict[Sha256, list[SeenFile]] = {}
        for path in sorted(hashed.seen):
            seen = hashed.seen[path]
            self._paths.setdefault(seen.sha256, []).append(seen)

    def require_space(self, digests: Iterable[Sha256]) -> None:
        """Check that the library's disk has room for the files that must be copied. Raises: DiskFull."""
        needed = sum(
            self._source(sha256).size_bytes
            for sha256 in digests
            if self._store.find(sha256) is None and not self._links_to_store(Path(self._source(sha256).path))
        )
        folder = self._store.root.absolute()
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if needed and needed + _SPARE_BYTES > free:
            raise DiskFull(
                f"not enough disk space for the files to import, which need {needed:,} bytes; "
                f"{free:,} bytes are free in `{folder}`",
                hint="leave the files in place (without --copy and --move), make room, or choose another library with "
                "--library; nothing was copied",
                needed_bytes=needed,
                free_bytes=free,
            )

    @contextmanager
    def into_store(self, sha256: Sha256) -> Iterator[Path]:
        """Bring a file into the store.

        The `with` block must write the file's index row; with mode MOVE, the original is deleted after the block.

        The blob is locked, so that garbage collection does not remove it before its row exists.
        """
        with blob_lock(self._store, sha256):
            stored, modes = self._stored(sha256)
            yield stored.path
            if self._mode is ImportMode.MOVE:
                for seen in self._paths[sha256]:
                    self._remove(seen, stored, modes.get(seen.path))

    def take_known(self, digests: Iterable[Sha256]) -> None:
        """Bring files that are already in the index into the store; with mode MOVE, delete the originals."""
        for sha256 in digests:
            old = next(iter(self._index.held_files([sha256])), None)
            with self.into_store(sha256) as path:
                if old is not None and Path(old.path) != path.absolute():
                    self._index.rehome([(sha256, old.path, str(path))])

    def _source(self, sha256: Sha256) -> SeenFile:
        """Choose the path to copy or link a file from, preferably one that may be hard-linked."""
        return min(self._paths[sha256], key=lambda seen: not self._links_to_store(Path(seen.path)))

    def _stored(self, sha256: Sha256) -> tuple[StoredBlob, dict[str, int]]:
        """Store and verify the file. Returns its blob, and a mapping from the source file's path to its permissions."""
        found = self._store.find(sha256)
        if found is not None and (self._mode is not ImportMode.MOVE or self._is_sound(found)):
            return found, {}
        source = Path(self._source(sha256).path)
        mode = source.stat().st_mode & 0o7777
        stored = self._store.take_in(source, sha256, source.suffix.lower(), by_link=self._links_to_store(source))
        now = seen_now(str(stored.path), sha256, kept_path=stored.path.relative_to(self._store.root).as_posix())
        if now is not None:
            self._index.save_seen([now])
        return stored, {str(source): mode}

    def _is_sound(self, stored: StoredBlob) -> bool:
        held = next(iter(self._index.held_files([stored.sha256])), None)
        is_held = held is not None and held.seen is not None and Path(held.path) == stored.path.absolute()
        if held is not None and is_held:
            now = seen_now(held.path, held.sha256, kept_path=held.kept_path)
            return now == held.seen or digest_of(stored.path) == stored.sha256
        return digest_of(stored.path) == stored.sha256

    def _links_to_store(self, path: Path) -> bool:
        """Whether a file may be hard-linked into the store, which makes it read-only.

        Symbolic links, files of other users and files on another disk must not be linked. With mode MOVE, files that
        have other hard links or cannot be deleted must not be linked either, because they would stay in place as
        read-only files.
        """
        if self._mode is ImportMode.COPY or path in self._links:
            return False
        try:
            found = path.stat()
        except OSError:
            return False
        if _is_foreign(found) or not _same_disk(path, self._store.root):
            return False
        return self._mode is ImportMode.LINK or (found.st_nlink == 1 and os.access(path.parent, os.W_OK))

    def _remove(self, seen: SeenFile, stored: StoredBlob, mode: int | None) -> None:
        """Delete a file whose bytes are in the store. If it cannot be deleted, restore its original permissions."""
        path = Path(seen.path)
        if path in self._links:
            self.kept.append(
                Kept(str(path), f"the file is a link to `{path.resolve()}`, which was copied", is_fault=False)
            )
            return
        try:
            found = path.stat()
            if _is_foreign(found):
                self.kept.append(Kept(str(path), "the file belongs to another user, so it was copied", is_fault=False))
                return
            if mode is None and os.path.samefile(path, stored.path):  # noqa: PTH121
                self.kept.append(Kept(str(path), "the file is a hard link to the file in the library", is_fault=False))
                return
            if seen_now(seen.path, seen.sha256) != seen:
                self.kept.append(Kept(str(path), "the file was changed while it was imported", is_fault=True))
                return
            remove_file(path, twin=stored.path)
        except FileNotFoundError:
            return
        except OSError as error:
            reason = "the folder is read-only" if not os.access(path.parent, os.W_OK) else error.strerror or str(error)
            self.kept.append(Kept(str(path), f"the file was copied, but could not be deleted: {reason}", is_fault=True))
            if mode is not None:
                with contextlib.suppress(OSError, CivmanError):
                    self._store.unshare(stored)
                    path.chmod(mode)
            return
        self._index.forget_seen([str(path)])


def _is_foreign(found: os.stat_result) -> bool:
    return hasattr(os, "geteuid") and found.st_uid != os.geteuid()


def _same_disk(path: Path, root: Path) -> bool:
    try:
        return path.stat().st_dev == root.stat().st_dev
    except OSError:
        return False
