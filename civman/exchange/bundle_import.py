"""Import a bundle: write each file to a temporary file, read it back, verify it, store it and index it."""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from civman.domain.access import Permits
from civman.domain.catalog import Asset
from civman.domain.digests import Sha256
from civman.domain.events import Finished, Notice, OnEvent, Started, Verifying
from civman.domain.file_suffixes import PICKLE_SUFFIXES, SAFETENSORS_SUFFIXES
from civman.errors import Cause, HashMismatch, IntegrityError, Refused, StoreError
from civman.exchange.bundle_archive import Packed, Reader, Small, bad_bundle, open_bundle
from civman.exchange.portable_sidecars import checked_facts
from civman.index import Index
from civman.manage.sidecar import file_facts, restore, write_sidecar
from civman.store.blobs import BlobStore, StoredBlob
from civman.store.digester import Digester
from civman.store.partial import Partial
from civman.store.read_header import read_header
from civman.store.read_pickle import require_readable
from civman.store.trash import blob_lock

_READ_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class ImportedFile:
    """A verified file of a bundle that is now in the library. `was_present`: it was already in the library before."""

    sha256: Sha256
    size_bytes: int
    assets: tuple[Asset, ...]
    was_present: bool


def import_bundle(
    path: Path,
    index: Index,
    store: BlobStore,
    *,
    permits: Permits,
    clock: Callable[[], datetime],
    on_event: OnEvent,
) -> list[ImportedFile]:
    """Import every file of the bundle at `path`. Needs no network and only a few megabytes of memory.

    Raises: IntegrityError: the bundle is damaged or was modified (`bad-bundle`), or a file has wrong contents. Refused:
        a pickle in it could run code. StoreError, DiskFull. Files that were verified before the error stay in the
        library.
    """
    with open_bundle(path) as file:
        reader = Reader(file, path.stat().st_size)
        taker = _Taker(index, store, permits, clock, on_event)
        brought = [taker.take(reader, packed) for packed in reader.packed]
        reader.end()
    return brought


class _Taker:
    def __init__(
        self, index: Index, store: BlobStore, permits: Permits, clock: Callable[[], datetime], on_event: OnEvent
    ) -> None:
        self._index, self._store, self._clock, self._on_event = index, store, clock, on_event
        self._permits = permits
        self._view = memoryview(bytearray(_READ_BYTES))

    def take(self, reader: Reader, packed: Packed) -> ImportedFile:
        names = [name for name, _ in packed.members()]
        try:
            facts = checked_facts(self._small(reader, names[0], packed.sidecar), self._clock())
        except IntegrityError as error:
            raise bad_bundle(error.message) from error
        preview = self._small(reader, names[1], packed.preview) if packed.preview is not None else None
        name = str(facts["assets"][0]["name"])
        stored, was_present = self._blob(reader, names[-1], packed, name)
        with blob_lock(self._store, packed.sha256):
            if self._store.find(packed.sha256) is None:
                raise StoreError(
                    f"`{name}` was removed by another program", code=Cause.REMOVED_MEANWHILE, hint="try again"
                )
            self._record(stored, facts)
            if preview is not None and packed.preview is not None and self._store.preview(packed.sha256) is None:
                self._store.write_preview(packed.sha256, preview, packed.preview.suffix)
        assets = tuple(self._index.referrers(packed.sha256))
        self._on_event(Finished(packed.sha256, name, packed.size_bytes, was_present))
        return ImportedFile(packed.sha256, packed.size_bytes, assets, was_present)

    def _record(self, stored: StoredBlob, facts: dict[str, Any]) -> None:
        tell = self._teller(stored.sha256)
        try:
            restore(facts, stored, self._index, file_facts(stored, facts, tell), now=self._clock(), on_notice=tell)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise bad_bundle(f"the metadata of the file {stored.sha256[:12]} cannot be read") from error
        write_sidecar(self._store, self._index, stored.sha256)

    def _small(self, reader: Reader, name: str, small: Small) -> bytes:
        data = reader.small(name, small.size_bytes)
        actual = Sha256(hashlib.sha256(data).hexdigest())
        if actual != small.sha256:
            raise HashMismatch(name=name, expected=small.sha256, actual=actual)
        return data

    def _blob(self, reader: Reader, member: str, packed: Packed, name: str) -> tuple[StoredBlob, bool]:
        present = self._store.find(packed.sha256)
        if present is not None:
            self._skip(reader, member, packed)
            return present, True
        partial = self._store.partial(packed.sha256)
        if not partial.acquire():
            raise StoreError(
                f"another civman process is downloading `{name}`",
                hint="wait until the other process has finished, then try again",
            )
        try:
            return self._receive(reader, member, packed, partial, name), False
        finally:
            partial.close()

    def _receive(self, reader: Reader, member: str, packed: Packed, partial: Partial, name: str) -> StoredBlob:
        if partial.held_bytes:
            partial.reset()
        self._on_event(Started(packed.sha256, name, packed.size_bytes))
        partial.reserve(packed.size_bytes)
        digester = Digester(partial, lambda done: self._on_event(Verifying(packed.sha256, done, packed.size_bytes)))
        try:
            offset = 0
            for piece in reader.blob(member, packed.size_bytes, self._view):
                partial.write(offset, piece)
                offset += len(piece)
            actual = digester.finish(threading.Event())
        except BaseException:
            digester.stop()
            partial.close(discard=True)
            raise
        if actual == packed.sha256:
            try:
                self._check_content(partial.path, packed, name)
            except (IntegrityError, Refused):
                partial.close(discard=True)
                raise
        return self._store.commit(partial, expected=packed.sha256, actual=actual, name=name, suffix=packed.suffix)

    def _check_content(self, path: Path, packed: Packed, name: str) -> None:
        if packed.suffix in SAFETENSORS_SUFFIXES:
            read_header(path)
        elif packed.suffix in PICKLE_SUFFIXES and not self._permits.pickle:
            require_readable(path, name)

    def _skip(self, reader: Reader, member: str, packed: Packed) -> None:
        """Skip a blob that the library already has, but check its SHA-256, so that a corrupt bundle is detected."""
        sha256 = hashlib.sha256()
        for piece in reader.blob(member, packed.size_bytes, self._view):
            sha256.update(piece)
        if sha256.hexdigest() != packed.sha256:
            raise HashMismatch(name=member, expected=packed.sha256, actual=sha256.hexdigest())

    def _teller(self, sha256: Sha256) -> Callable[[str], None]:
        return lambda text: self._on_event(Notice(sha256, text))
