"""Push files to an object store and pull files from it; each is identified by its SHA-256 and verified on arrival.

The store contains each blob once, with a sidecar, so that several libraries can share it. Neither pushing nor pulling
deletes anything. Like a download from CivitAI, an interrupted download from the store can be resumed.
"""

import hashlib
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from civman.civitai.responses import DownloadAddress
from civman.civitai.storage_connection import Network, StorageConnection, tls_context
from civman.domain.access import Permits
from civman.domain.catalog import Asset, FileFacts, ModelFile
from civman.domain.digests import Hashes, Sha256
from civman.domain.events import Failed, Finished, Notice, OnEvent, Received, Started, ignore
from civman.domain.refs import parse_ref
from civman.domain.timeouts import Patience
from civman.download.fetch import Fetcher, Wanted
from civman.download.transfer_options import TransferOptions
from civman.errors import Cause, CivmanError, HashMismatch, IntegrityError, NotFound, StoreError
from civman.exchange.object_store import ObjectStore
from civman.exchange.portable_sidecars import Portable, bad_sidecar, checked_facts
from civman.index import Index
from civman.manage.find_assets import find_assets
from civman.manage.sidecar import file_facts, restore, write_sidecar
from civman.store.blobs import BlobStore, StoredBlob
from civman.store.trash import blob_lock, take_back

_SIDECAR = ".civman.json"
_READ_BYTES = 4 << 20
_AT_ONCE = 16
_FEW = 20
"""Up to this number of files are looked up with one request each; for more files, the whole store is listed."""


@dataclass(frozen=True, slots=True)
class Moved:
    """The result of transferring a file. `was_present`: the target already had it, so nothing was transferred."""

    sha256: Sha256
    name: str
    size_bytes: int
    was_present: bool = False
    error: CivmanError | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """A file in an object store: its digest, its size and the contents of its sidecar."""

    sha256: Sha256
    size_bytes: int
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        """The file's name, for example `dreamshaper_8.safetensors`."""
        return str(self.facts["assets"][0]["name"])

    @property
    def suffix(self) -> str:
        """The file's extension with the dot, in lower case."""
        return str(self.facts.get("suffix") or Path(self.name).suffix).lower()


def push(
    remote: ObjectStore,
    assets: Iterable[Asset],
    index: Index,
    store: BlobStore,
    *,
    with_notes: bool = False,
    on_event: OnEvent = ignore,
) -> Iterator[Moved]:
    """Upload the files of `assets` that `remote` does not have, with their metadata.

    Yields a result for each file. Each file is hashed while it is read; a corrupt file is not uploaded.

    Raises: NetworkError, NotAllowed, NotFound: the store cannot be used.
    """
    paths = {asset.blob.sha256: asset for asset in assets}
    present = _sizes(remote, paths)
    portable = Portable(index, store, with_notes=with_notes)
    for sha256, asset in paths.items():
        size = asset.blob.size_bytes
        if present.get(sha256) == size:
            yield Moved(sha256, asset.name, size, was_present=True)
            continue
        on_event(Started(sha256, asset.name, size))
        try:
            _upload(remote, asset, portable, on_event)
        except (IntegrityError, StoreError) as error:
            on_event(Failed(sha256, asset.name, error.code, error.message))
            yield Moved(sha256, asset.name, size, error=error)
            continue
        on_event(Finished(sha256, asset.name, size))
        yield Moved(sha256, asset.name, size)


def _upload(remote: ObjectStore, asset: Asset, portable: Portable, on_event: OnEvent) -> None:
    """Upload a file's sidecar and preview, then the file. Raises: IntegrityError, StoreError, errors of `remote`."""
    sha256 = asset.blob.sha256
    remote.write_companion(sha256, _SIDECAR, portable.sidecar(sha256))
    if (preview := portable.preview(sha256)) is not None:
        remote.write_companion(sha256, f".preview{preview[0]}", preview[1])
    remote.upload(sha256, _hashed(Path(asset.path), sha256, asset.name, on_event))
    if remote.size_of(sha256) != asset.blob.size_bytes:
        raise IntegrityError(f"after its upload, `{asset.name}` has a different size in the object store")


def offers(remote: ObjectStore, digests: Iterable[Sha256] | None = None, *, now: datetime) -> list[Offer]:
    """List the files in the store that have these digests (None: all files) and their metadata, ordered by name.

    Files without a readable sidecar are left out, as are digests that the store does not have.
    """
    sizes = _sizes(remote, list(digests)) if digests is not None else remote.blobs()

    def offer(sha256: Sha256) -> Offer | None:
        data = remote.read_companion(sha256, _SIDECAR)
        try:
            return None if data is None else Offer(sha256, sizes[sha256], checked_facts(data, now))
        except IntegrityError:
            return None

    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="sidecar") as pool:
        found = [each for each in pool.map(offer, sizes) if each is not None]
    return sorted(found, key=lambda each: (each.name.casefold(), each.sha256))


def choose(offered: Sequence[Offer], refs: Sequence[str], *, file: str | None, now: datetime) -> list[Offer]:
    """Return the offers that `refs` refer to, by the same rules as for files in the library.

    Raises: NotFound, AmbiguousRef, InvalidRef.
    """
    by_digest = {offer.sha256: offer for offer in offered}
    with tempfile.TemporaryDirectory(prefix="civman-") as folder:
        index = Index.open(Path(folder) / "library.db")
        try:
            for offer in offered:
                place = Path(folder) / (offer.sha256 + offer.suffix)
                blob = StoredBlob(offer.sha256, offer.suffix, place, offer.size_bytes)
                restore(offer.facts, blob, index, FileFacts(), now=now, on_notice=lambda _: None)
            found = [asset.blob.sha256 for ref in refs for asset in find_assets(index, parse_ref(ref), file)]
        finally:
            index.close()
    return [by_digest[sha256] for sha256 in dict.fromkeys(found)]


@dataclass(frozen=True, slots=True)
class Puller:
    """Downloads files from an object store into a library and adds them to the library's index."""

    remote: ObjectStore
    index: Index
    store: BlobStore
    network: Network
    patience: Patience
    clock: Callable[[], datetime]

    def pull(self, wanted: Iterable[Offer], *, permits: Permits, on_event: OnEvent = ignore) -> Iterator[Moved]:
        """Download, verify and index the `wanted` files. Yields a result for each file.

        Raises: KeyboardInterrupt: the bytes received so far are kept for the next attempt.
        """
        tls = tls_context()
        fetcher = Fetcher(
            self.store, lambda: StorageConnection(self.network, lambda: tls),
            TransferOptions(patience=self.patience), permits.pickle,
        )  # fmt: skip
        for offer in wanted:
            try:
                yield self._pull(fetcher, offer, on_event)
            except CivmanError as error:
                on_event(Failed(offer.sha256, offer.name, error.code, error.message))
                yield Moved(offer.sha256, offer.name, offer.size_bytes, error=error)

    def _pull(self, fetcher: Fetcher, offer: Offer, on_event: OnEvent) -> Moved:
        sha256, name = offer.sha256, offer.name
        file = ModelFile(None, name, "Model", offer.size_bytes, Hashes(sha256=sha256))
        wanted = Wanted(sha256, file, lambda: DownloadAddress(self.remote.signed_url(sha256)))
        fetched = fetcher.fetch(wanted, on_event=on_event, cancel=threading.Event())
        was_known = fetched.was_present and bool(self.index.referrers(sha256))
        if not was_known:
            self._record(fetched.blob, offer, on_event)
        return Moved(sha256, name, offer.size_bytes, was_present=was_known)

    def _record(self, stored: StoredBlob, offer: Offer, on_event: OnEvent) -> None:
        def tell(text: str) -> None:
            on_event(Notice(offer.sha256, text))

        with blob_lock(self.store, offer.sha256):
            if not take_back(self.store, offer.sha256):
                raise StoreError(
                    f"`{offer.name}` was removed by another program before it could be added to the index",
                    code=Cause.REMOVED_MEANWHILE, hint="pull the file again",
                )  # fmt: skip
            try:
                facts = file_facts(stored, offer.facts, tell)
                restore(offer.facts, stored, self.index, facts, now=self.clock(), on_notice=tell)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise bad_sidecar("one of its entries cannot be read") from error
            write_sidecar(self.store, self.index, offer.sha256)
        ending = self.remote.preview_ending(offer.sha256)
        if ending is not None and self.store.preview(offer.sha256) is None:
            data = self.remote.read_companion(offer.sha256, ending)
            if data is not None:
                self.store.write_preview(offer.sha256, data, Path(ending).suffix)


def verify_remote(remote: ObjectStore, digests: Sequence[Sha256], *, on_event: OnEvent = ignore) -> Iterator[Moved]:
    """Read files in the store and compare their SHA-256; delete nothing. Yields a result for each file.

    Raises: NetworkError, NotAllowed: the store cannot be used.
    """
    sizes = _sizes(remote, digests)
    for sha256 in digests:
        if sha256 not in sizes:
            missing = NotFound(f"`{remote.address}` does not have {sha256[:12]}…", code=Cause.MISSING)
            yield Moved(sha256, sha256, 0, error=missing)
            continue
        on_event(Started(sha256, sha256[:12], sizes[sha256]))
        actual = hashlib.sha256()
        for piece in remote.read(sha256):
            actual.update(piece)
            on_event(Received(sha256, len(piece)))
        error = None
        if actual.hexdigest() != sha256:
            error = HashMismatch(name=f"{sha256[:12]}… in {remote.address}", expected=sha256,
                                 actual=Sha256(actual.hexdigest()))  # fmt: skip
            on_event(Failed(sha256, sha256[:12], error.code, error.message))
        else:
            on_event(Finished(sha256, sha256[:12], sizes[sha256]))
        yield Moved(sha256, sha256, sizes[sha256], error=error)


def _sizes(remote: ObjectStore, digests: Iterable[Sha256]) -> dict[Sha256, int]:
    wanted = list(digests)
    if len(wanted) > _FEW:
        listed = remote.blobs()
        return {sha256: listed[sha256] for sha256 in wanted if sha256 in listed}
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="size") as pool:
        sizes = pool.map(remote.size_of, wanted)
        return {sha256: size for sha256, size in zip(wanted, sizes, strict=True) if size is not None}


def _hashed(path: Path, sha256: Sha256, name: str, on_event: OnEvent) -> Iterator[bytes]:
    """Yield a file in pieces. Raises: StoreError. HashMismatch: after the last piece, if the digest is not `sha256`."""
    actual = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while piece := file.read(_READ_BYTES):
                actual.update(piece)
                yield piece
                on_event(Received(sha256, len(piece)))
    except OSError as error:
        raise StoreError(
            f"`{name}` cannot be read: {error.strerror}", hint="check the library's files with `civman verify`"
        ) from error
    if actual.hexdigest() != sha256:
        raise HashMismatch(name=name, expected=sha256, actual=Sha256(actual.hexdigest()))
