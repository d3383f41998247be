"""Write a bundle. Every blob is verified while it is copied, and the bundle gets its final name only at the end."""

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from civman.domain.catalog import Asset
from civman.domain.digests import Sha256
from civman.domain.events import OnEvent, Started, Verifying
from civman.errors import HashMismatch, UsageError
from civman.exchange.bundle_archive import (
    BLOCK,
    MANIFEST,
    Packed,
    Small,
    header,
    manifest_bytes,
    padding,
    total_bytes,
)
from civman.exchange.portable_sidecars import Portable
from civman.index import Index
from civman.store.blobs import BlobStore
from civman.store.partial import store_error
from civman.system.move_files import remove_file, replace_file
from civman.system.path_rules import require_file_name

_READ_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Exported:
    """The bundle that was written. `sha256` is the digest of the whole file."""

    path: Path
    size_bytes: int
    sha256: Sha256
    packed: tuple[Packed, ...]


def export_bundle(
    target: Path,
    assets: Iterable[Asset],
    index: Index,
    store: BlobStore,
    *,
    with_notes: bool = False,
    replace: bool = False,
    on_event: OnEvent,
) -> Exported:
    """Write `assets` with their metadata to `target`. The same content always gives the same bytes.

    Raises: UsageError: there is nothing to write, or `target` exists. HashMismatch: a stored file is corrupt.
        StoreError.
    """
    require_file_name(target)
    if target.exists() and not replace:
        raise UsageError(f"`{target}` exists", hint="choose another name, or pass --force to overwrite the file")
    paths = {asset.blob.sha256: Path(asset.path) for asset in assets}
    if not paths:
        raise UsageError("there is nothing to export", hint="pass one or more REFs, --lock or --all")
    beside = Portable(index, store, with_notes=with_notes)
    packed = [_packed(index, beside, sha256, paths[sha256]) for sha256 in sorted(paths)]
    temporary = target.with_name(target.name + ".new")
    try:
        with temporary.open("wb") as file:
            out = _Hashing(file)
            _write_small(out, MANIFEST, manifest_bytes(packed))
            for each in packed:
                _write_blob(out, each, paths[each.sha256], beside, on_event)
            out.write(bytes(2 * BLOCK))
            file.flush()
            os.fsync(file.fileno())
        replace_file(temporary, target)
    except OSError as error:
        raise store_error(error, target) from error
    finally:
        remove_file(temporary, missing_ok=True)
    size = total_bytes(len(manifest_bytes(packed)), packed)
    return Exported(target, size, Sha256(out.sha256.hexdigest()), tuple(packed))


class _Hashing:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self.sha256.update(data)


def _packed(index: Index, beside: Portable, sha256: Sha256, path: Path) -> Packed:
    asset = index.referrers(sha256)[0]
    sidecar, preview = beside.sidecar(sha256), beside.preview(sha256)
    return Packed(
        sha256,
        asset.blob.size_bytes,
        asset.blob.suffix or path.suffix.lower(),
        Small(_digest(sidecar), len(sidecar)),
        Small(_digest(preview[1]), len(preview[1]), preview[0]) if preview is not None else None,
    )


def _write_blob(out: _Hashing, each: Packed, path: Path, beside: Portable, on_event: OnEvent) -> None:
    names = [name for name, _ in each.members()]
    _write_small(out, names[0], beside.sidecar(each.sha256))
    preview = beside.preview(each.sha256) if each.preview is not None else None
    if preview is not None:
        _write_small(out, names[1], preview[1])
    out.write(header(names[-1], each.size_bytes))
    on_event(Started(each.sha256, path.name, each.size_bytes))
    actual = _copy(path, out.write, lambda done: on_event(Verifying(each.sha256, done, each.size_bytes)))
    if actual != (each.sha256, each.size_bytes):
        raise HashMismatch(name=path.name, expected=each.sha256, actual=actual[0])
    out.write(padding(each.size_bytes))


def _copy(path: Path, write: Callable[[memoryview], None], tell: Callable[[int], None]) -> tuple[Sha256, int]:
    sha256, done = hashlib.sha256(), 0
    view = memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(view):
            sha256.update(view[:count])
            write(view[:count])
            done += count
            tell(done)
    return Sha256(sha256.hexdigest()), done


def _write_small(out: _Hashing, name: str, data: bytes) -> None:
    out.write(header(name, len(data)))
    out.write(data)
    out.write(padding(len(data)))


def _digest(data: bytes) -> Sha256:
    return Sha256(hashlib.sha256(data).hexdigest())
