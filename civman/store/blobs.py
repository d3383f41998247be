"""The content-addressed store: a file named after a digest always has that digest.

Layout: the read-only file `blobs/sha256/ab/<sha256><suffix>`, and next to it `<sha256>.civman.json` (a copy of the
index's data, enough to rebuild it) and `<sha256>.preview.<ext>`. Downloads in progress are in `partial/`. No other code
writes to these folders.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from civman.domain.digests import Sha256
from civman.errors import HashMismatch, StoreError
from civman.store.partial import Partial, store_error
from civman.system.file_io import sync_file, sync_folder
from civman.system.file_links import hard_link, share_blocks
from civman.system.move_files import remove_file, rename_file, replace_file
from civman.system.path_rules import require_room

_SUFFIX = re.compile(r"\.[a-z0-9]{1,12}")
_BLOB = re.compile(r"([0-9a-f]{64})(\.[a-z0-9]{1,12})?")
_READ_BYTES = 4 << 20
_SIDECAR = ".civman.json"
INCOMING = ".incoming"
"""The suffix of a file in `partial/` that is being copied or linked into the store."""
_LONGEST_PLACE = len("blobs/sha256/ab/") + 64
"""The number of characters in the path of a blob below the library's folder, without suffixes."""


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A file in the store, identified by its name. Only `digest` checks that its contents are still intact."""

    sha256: Sha256
    suffix: str
    path: Path
    size_bytes: int


class BlobStore:
    """The verified files by digest, and the partially downloaded files."""

    def __init__(self, root: Path) -> None:
        """`root` is the library's folder; nothing is created until a file is stored."""
        self.root = root
        self._blobs = root / "blobs" / "sha256"
        self._partials = root / "partial"

    def find(self, sha256: Sha256) -> StoredBlob | None:
        """The blob with this digest, or None."""
        try:
            entries = [entry for entry in (self._blobs / sha256[:2]).iterdir() if entry.name.startswith(sha256)]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise store_error(error, self._blobs) from error
        return next((blob for entry in entries if (blob := _as_blob(entry)) is not None), None)

    def place_of(self, sha256: Sha256, suffix: str) -> Path:
        """The path that a blob with this digest has or would have."""
        return self._blobs / sha256[:2] / (sha256 + (suffix if _SUFFIX.fullmatch(suffix) else ""))

    def blobs(self) -> Iterator[StoredBlob]:
        """All blobs, ordered by digest."""
        try:
            for folder in sorted(self._blobs.iterdir()) if self._blobs.is_dir() else []:
                for entry in sorted(folder.iterdir()):
                    blob = _as_blob(entry)
                    if blob is not None:
                        yield blob
        except OSError as error:
            raise store_error(error, self._blobs) from error

    def partial(self, key: str) -> Partial:
        """Return the partial file for `key`, not yet acquired.

        The same key must always be used for the same expected bytes.
        """
        return Partial(self._partials, key)

    def commit(
        self, partial: Partial, *, expected: Sha256 | None, actual: Sha256, name: str, suffix: str
    ) -> StoredBlob:
        """Rename a finished partial file to its final name, if its digest is the expected one.

        `actual` is the digest read back from disk.

        Raises: HashMismatch: the digests differ; the partial file is deleted. StoreError.
        """
        if expected is not None and expected != actual:
            partial.close(discard=True)
            raise HashMismatch(name=name, expected=expected, actual=actual)
        size_bytes = partial.size_bytes or 0
        partial.seal()
        target = self.place_of(actual, suffix)
        present = self.find(actual)
        if present is not None:
            partial.close(discard=True)
            return present
        try:
            made = _make_folders(target.parent)
            partial.path.chmod(0o444)
            rename_file(partial.path, target)
            # sync the new folder entries: otherwise a power failure could lose the file but keep its row in the index
            for folder in (target.parent, *made):
                sync_folder(folder)
        except OSError as error:
            raise store_error(error, target) from error
        partial.close(discard=True)
        return StoredBlob(actual, target.suffix, target, size_bytes)

    def take_in(self, path: Path, sha256: Sha256, suffix: str, *, by_link: bool) -> StoredBlob:
        """Add the file at `path`, whose SHA-256 is known, to the store; the file itself stays where it is.

        `by_link`: use a hard link if the file system supports it (the file becomes read-only under both names), else a
        copy. A symbolic link is never linked; its target is copied. The stored file is always read and its digest
        verified; an incomplete copy is deleted at once.

        The caller must hold the blob's lock. Raises: HashMismatch: the file has changed. StoreError.
        """
        target = self.place_of(sha256, suffix)
        temporary = self._partials / f"{sha256}{INCOMING}"
        try:
            self._partials.mkdir(parents=True, exist_ok=True)
            remove_file(temporary, missing_ok=True)
            try:
                if not (by_link and _linked(path, temporary)):
                    _copied(path, temporary)
                _require_digest(temporary, sha256, path.name)
                sync_file(temporary)
                made = _make_folders(target.parent)
                temporary.chmod(0o444)
                rename_file(temporary, target)
            except BaseException:
                with contextlib.suppress(OSError):
                    remove_file(temporary, missing_ok=True)
                raise
            for folder in (target.parent, *made):
                sync_folder(folder)
        except OSError as error:
            raise store_error(error, target) from error
        return StoredBlob(sha256, target.suffix, target, target.stat().st_size)

    def unshare(self, blob: StoredBlob) -> None:
        """Make the blob a separate file if it is a hard link to a file outside the store.

        The caller must hold the blob's lock. Raises: StoreError.
        """
        temporary = self._partials / f"{blob.sha256}{INCOMING}"
        try:
            if blob.path.stat().st_nlink > 1:
                remove_file(temporary, missing_ok=True)
                _copied(blob.path, temporary)
                sync_file(temporary)
                temporary.chmod(0o444)
                replace_file(temporary, blob.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                remove_file(temporary, missing_ok=True)
            raise store_error(error, blob.path) from error

    def remove(self, sha256: Sha256) -> int:
        """Delete the blob with its sidecar and preview. Returns the number of bytes freed."""
        freed = 0
        folder = self._blobs / sha256[:2]
        try:
            for entry in folder.iterdir() if folder.is_dir() else []:
                if entry.name.startswith(sha256):
                    freed += entry.stat().st_size
                    remove_file(entry)
        except OSError as error:
            raise store_error(error, folder) from error
        return freed

    def write_sidecar(self, sha256: Sha256, facts: dict[str, Any]) -> Path:
        """Write `facts` (plain JSON values) to the blob's sidecar file, replacing an earlier one."""
        path = self._beside(sha256, _SIDECAR)
        self._write(path, json.dumps(facts, ensure_ascii=False, indent=1, sort_keys=True).encode())
        return path

    def read_sidecar(self, sha256: Sha256) -> dict[str, Any] | None:
        """Read the blob's sidecar file; None if it is missing or damaged."""
        try:
            facts = json.loads(self._beside(sha256, _SIDECAR).read_bytes())
        except (OSError, ValueError):
            return None
        return facts if isinstance(facts, dict) else None

    def write_preview(self, sha256: Sha256, data: bytes, suffix: str) -> Path:
        """Store a preview image next to the blob."""
        path = self._beside(sha256, f".preview{suffix if _SUFFIX.fullmatch(suffix) else '.bin'}")
        try:
            # create the folder: a file outside the store has no blob folder yet
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise store_error(error, path.parent) from error
        self._write(path, data)
        return path

    def companion(self, sha256: Sha256, ending: str) -> Path:
        """The path of another program's file next to the blob, such as `.civitai.info`."""
        return self._beside(sha256, f".beside{ending}")

    def write_companion(self, sha256: Sha256, ending: str, data: bytes) -> Path:
        """Store another program's file next to the blob. It is removed together with the blob."""
        path = self.companion(sha256, ending)
        self._write(path, data)
        return path

    def preview(self, sha256: Sha256) -> Path | None:
        """The path of the blob's preview image, or None."""
        folder, start = self._blobs / sha256[:2], f"{sha256}.preview."
        try:
            names = [name for name in os.listdir(folder) if name.startswith(start)]  # noqa: PTH208  # ten times faster
        except FileNotFoundError:
            return None
        return folder / min(names) if names else None

    def _beside(self, sha256: Sha256, ending: str) -> Path:
        return self._blobs / sha256[:2] / f"{sha256}{ending}"

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        temporary = path.with_name(path.name + ".new")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            replace_file(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                remove_file(temporary)
            raise store_error(error, path) from error


def digest_of(path: Path, on_progress: Callable[[int], None] | None = None) -> Sha256:
    """Compute the SHA-256 of the whole file at `path`; `on_progress` receives the number of bytes read so far.

    Raises: StoreError: the file cannot be read.
    """
    sha256 = hashlib.sha256()
    view = memoryview(bytearray(_READ_BYTES))
    done = 0
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(view):
                sha256.update(view[:count])
                done += count
                if on_progress is not None:
                    on_progress(done)
    except OSError as error:
        raise store_error(error, path) from error
    return Sha256(sha256.hexdigest())


def require_folder(root: Path) -> None:
    """Create the library's folder. Raises: StoreError: the path is not a folder, or the folder cannot be created."""
    try:
        require_room(root, _LONGEST_PLACE, _LONGEST_PLACE)
        root.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise StoreError(f"`{root}` is not a folder", hint="choose another library with --library") from error
    except OSError as error:
        raise store_error(error, root) from error


def _as_blob(entry: Path) -> StoredBlob | None:
    match = _BLOB.fullmatch(entry.name)
    if match is None:
        return None
    return StoredBlob(Sha256(match[1]), match[2] or "", entry, entry.stat().st_size)


def _require_digest(path: Path, sha256: Sha256, name: str) -> None:
    actual = digest_of(path)
    if actual != sha256:
        raise HashMismatch(name=name, expected=sha256, actual=actual)


def _copied(path: Path, target: Path) -> None:
    """Copy a file, sharing its blocks if the file system supports that. Raises: OSError."""
    try:
        share_blocks(path, target)
    except OSError:
        shutil.copyfile(path, target)


def _linked(path: Path, target: Path) -> bool:
    if path.is_symlink():
        return False
    try:
        hard_link(path, target)
    # sharing blocks failed: the paths are on different file systems, or the file system cannot share blocks
    except OSError:
        return False
    return True


def _make_folders(folder: Path) -> list[Path]:
    """Create `folder` with its parents. Returns the folders in which a new entry was created."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return [place.parent for place in missing]
