"""Safetensors copies of pickles: made once from a file that was read without running it, and kept next to its blob.

Weights are always loaded from the copy. The copy is a cache: recipes and the index refer to the original, `civman gc`
may delete the copy, and the next use creates it again with the same bytes. The file `<sha256>.safe.json` next to it
records the copy's digest, the original's digest and the version of the reader; a copy that does not match this file is
never used.

Layout: `blobs/sha256/ab/<sha256 of the original>.safe.safetensors`, read-only.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from civman.domain.digests import Sha256
from civman.errors import HashMismatch, IntegrityError
from civman.store.blobs import BlobStore, digest_of
from civman.store.partial import store_error
from civman.store.read_header import read_header
from civman.store.read_pickle import read_pickle, write_safetensors
from civman.system.file_io import sync_folder
from civman.system.move_files import remove_file, replace_file

READER: Final = 1
"""The version of the code that reads pickles. Copies that another version created are replaced."""
_COPY = ".safe.safetensors"
_NOTE = ".safe.json"


@dataclass(frozen=True, slots=True)
class SafeCopy:
    """A safetensors copy of a pickle. `sha256`: the copy's own digest; `source`: the pickle's digest."""

    path: Path
    source: Sha256
    sha256: Sha256
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Note:
    """The contents of the JSON file next to a copy.

    `inode` and `mtime_ns` show whether the copy was changed after it was verified.
    """

    source_sha256: str
    reader: int
    sha256: str
    size_bytes: int
    inode: int
    mtime_ns: int


def copy_place(store: BlobStore, source: Sha256) -> Path:
    """The path that the safetensors copy of a pickle has or would have."""
    return store.place_of(source, "").parent / f"{source}{_COPY}"


def find_copy(place: Path) -> SafeCopy | None:
    """Find the safetensors copy at `place`; None if it is missing, out of date or changed since it was verified."""
    source = _source_of(place)
    note = _read_note(place)
    try:
        stats = place.stat()
    except OSError:
        return None
    if note is None or (note.source_sha256, note.reader) != (source, READER):
        return None
    if (note.size_bytes, note.inode, note.mtime_ns) != (stats.st_size, stats.st_ino, stats.st_mtime_ns):
        return None
    return SafeCopy(place, source, Sha256(note.sha256), note.size_bytes)


def make_copy(original: Path, place: Path) -> SafeCopy:
    """Return the safetensors copy of the pickle `original`, creating it if it is missing, changed or out of date.

    The original is hashed, its tensors are written, and the copy is read back from disk before it gets its final name.

    Raises: Refused: the original could run code. HashMismatch: the original does not have the digest in `place`'s name.
    InvalidModelFile: the original is damaged. StoreError, DiskFull.
    """
    if (present := find_copy(place)) is not None:
        return present
    source = _source_of(place)
    temporary = place.with_name(f"{place.name}.{os.getpid()}.new")
    try:
        before = original.stat()
        actual = digest_of(original)
        if actual != source:
            raise HashMismatch(name=original.name, expected=source, actual=actual)
        pickle = read_pickle(original)
        place.parent.mkdir(parents=True, exist_ok=True)
        origin = {"civman.source_sha256": source, "civman.reader": str(READER)}
        with temporary.open("wb") as file:
            write_safetensors(original, pickle, file, origin)
            file.flush()
            os.fsync(file.fileno())
        after = original.stat()
        if (before.st_size, before.st_mtime_ns, before.st_ino) != (after.st_size, after.st_mtime_ns, after.st_ino):
            raise IntegrityError(f"`{original.name}` changed while it was read", hint="try again")
        if read_header(temporary).tensors != pickle.header.tensors:
            raise IntegrityError(
                f"the safetensors copy of `{original.name}` does not contain what was written to it", hint="try again"
            )
        sha256 = digest_of(temporary)
        temporary.chmod(0o444)
        replace_file(temporary, place)
        _write_note(place, sha256)
        sync_folder(place.parent)
    except OSError as error:
        raise store_error(error, place) from error
    finally:
        remove_file(temporary, missing_ok=True)
    return SafeCopy(place, source, sha256, place.stat().st_size)


def verify_copy(place: Path) -> str:
    """Read the copy at `place` and compare its digest with the recorded one. Returns the problem; empty if intact.

    A corrupt copy is deleted; the next use creates it again. Raises: StoreError: the copy cannot be read.
    """
    note = _read_note(place)
    if note is None or (note.source_sha256, note.reader) != (_source_of(place), READER):
        problem = "another version of civman made it, or its record is missing"
    elif digest_of(place) != note.sha256:
        problem = "its bytes have changed"
    else:
        _write_note(place, Sha256(note.sha256))
        return ""
    drop_copy(place)
    return problem


def drop_copy(place: Path) -> int:
    """Delete a copy and the JSON file next to it. Returns the number of bytes freed."""
    freed = 0
    try:
        for path in (_note_of(place), place):
            freed += path.stat().st_size if path.exists() else 0
            remove_file(path, missing_ok=True)
    except OSError as error:
        raise store_error(error, place) from error
    return freed


def copies(store: BlobStore) -> Iterator[Path]:
    """The paths of all safetensors copies in the store, ordered by the digests of their originals."""
    yield from sorted((store.root / "blobs" / "sha256").glob(f"*/*{_COPY}"))


def _source_of(place: Path) -> Sha256:
    return Sha256(place.name.removesuffix(_COPY))


def _note_of(place: Path) -> Path:
    return place.with_name(place.name.removesuffix(_COPY) + _NOTE)


def _read_note(place: Path) -> _Note | None:
    try:
        raw = json.loads(_note_of(place).read_bytes())
        note = _Note(**raw)
    except (OSError, ValueError, TypeError):
        return None
    return note if all(isinstance(value, str | int) for value in raw.values()) else None


def _write_note(place: Path, sha256: Sha256) -> None:
    stats = place.stat()
    note = _Note(_source_of(place), READER, sha256, stats.st_size, stats.st_ino, stats.st_mtime_ns)
    path = _note_of(place)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        temporary.write_text(json.dumps(asdict(note), indent=1), encoding="utf-8")
        replace_file(temporary, path)
    except OSError as error:
        raise store_error(error, path) from error
