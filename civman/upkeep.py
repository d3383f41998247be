"""Keeping a library sound: every byte proven again, the index refilled from the files, removal by a plan."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from civman.domain.catalog import Asset, Blob, FileFacts
from civman.domain.digests import Sha256
from civman.domain.events import Notice, OnEvent, Started, Verifying
from civman.errors import InvalidModelFile, StoreError
from civman.index import Index
from civman.inspecting import facts_of_file
from civman.sidecar import restore, write_sidecar
from civman.store.blobs import BlobStore, StoredBlob, digest_of


class State(StrEnum):
    """What reading a file again showed."""

    OK = "ok"
    CORRUPT = "corrupt"
    """Its bytes are not what its name says."""
    MISSING = "missing"
    """The index knows it, and it is gone."""
    UNREADABLE = "unreadable"
    UNKNOWN = "unknown"
    """It is sound, and the index does not know it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one file."""

    sha256: Sha256
    name: str
    path: str
    state: State
    size_bytes: int
    actual_sha256: Sha256 | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild brought back. `bare` files were sound and had nothing beside them that says what they are."""

    assets: int
    bare: int
    corrupt: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class RemovalPlan:
    """Assets to forget, and those of their blobs that nothing else refers to."""

    assets: tuple[Asset, ...]
    blobs: tuple[Blob, ...]
    kept: tuple[Asset, ...]
    """Others that still need some of the bytes, which therefore stay."""

    @property
    def freed_bytes(self) -> int:
        """Bytes of disk that come free, previews aside."""
        return sum(blob.size_bytes for blob in self.blobs)


def verify(
    index: Index, store: BlobStore, assets: Sequence[Asset], *, on_event: OnEvent, clock: Callable[[], datetime]
) -> Iterator[Verdict]:
    """A verdict for each file of `assets`, or of the whole library where there are none given."""
    wanted = assets or index.assets()
    known: set[Sha256] = set()
    for asset in wanted:
        if asset.blob.sha256 not in known:
            known.add(asset.blob.sha256)
            verdict = _read_again(asset.blob.sha256, asset.name, Path(asset.path), asset.blob.size_bytes, on_event)
            if verdict.state is State.OK:
                index.set_verified(asset.blob.sha256, clock())
            yield verdict
    if not assets:
        for stored in store.blobs():
            if stored.sha256 not in known:
                yield _stray(stored, on_event)


def rebuild(index: Index, store: BlobStore, *, on_event: OnEvent, clock: Callable[[], datetime]) -> Rebuilt:
    """Put every sound blob back into the index with what is kept beside it. What the index knows stays."""
    count, bare, corrupt = 0, 0, []
    for stored in store.blobs():
        sidecar = store.read_sidecar(stored.sha256)
        name = _name_in(sidecar) or stored.path.name
        verdict = _read_again(stored.sha256, name, stored.path, stored.size_bytes, on_event)
        if verdict.state is not State.OK:
            corrupt.append(verdict)
            continue
        facts = _facts(stored, on_event)
        if sidecar is not None:
            count += restore(
                sidecar,
                stored,
                index,
                facts,
                now=clock(),
                on_notice=_teller(stored.sha256, on_event),
            )
        else:
            now = clock()
            blob = Blob(stored.sha256, stored.size_bytes, stored.suffix, "civman", now)
            index.record(
                blob=blob,
                path=str(stored.path),
                name=stored.path.name,
                origin="import",
                version=None,
                file=None,
                facts=facts,
                added_at=now,
            )
            bare += 1
    return Rebuilt(count, bare, tuple(corrupt))


def plan_removal(index: Index, assets: Iterable[Asset]) -> RemovalPlan:
    """What removing `assets` takes away. A blob that another asset needs stays."""
    chosen = list({(asset.blob.sha256, asset.version_id, asset.file_id): asset for asset in assets}.values())
    blobs, kept = [], []
    for sha256, blob in {asset.blob.sha256: asset.blob for asset in chosen}.items():
        others = [
            other
            for other in index.referrers(sha256)
            if not any((other.version_id, other.file_id) == (asset.version_id, asset.file_id) for asset in chosen)
        ]
        kept += others
        if not others:
            blobs.append(blob)
    return RemovalPlan(tuple(chosen), tuple(blobs), tuple(kept))


def remove(index: Index, store: BlobStore, plan: RemovalPlan) -> int:
    """Rows first, then bytes: a crash leaves a file that nobody refers to, never a row without its file."""
    for asset in plan.assets:
        index.forget(asset)
    freed = 0
    for blob in plan.blobs:
        if not index.referrers(blob.sha256):
            freed += store.remove(blob.sha256)
    for sha256 in {asset.blob.sha256 for asset in plan.kept}:
        write_sidecar(store, index, sha256)
    return freed


def _read_again(sha256: Sha256, name: str, path: Path, size_bytes: int, on_event: OnEvent) -> Verdict:
    on_event(Started(sha256, name, size_bytes))
    try:
        actual = digest_of(path, lambda done: on_event(Verifying(sha256, done, size_bytes)))
    except StoreError as error:
        if not path.exists():
            return Verdict(sha256, name, str(path), State.MISSING, size_bytes, problem="the file is gone")
        return Verdict(sha256, name, str(path), State.UNREADABLE, size_bytes, problem=error.message)
    if actual != sha256:
        return Verdict(sha256, name, str(path), State.CORRUPT, size_bytes, actual, "its bytes have changed")
    return Verdict(sha256, name, str(path), State.OK, size_bytes, actual)


def _teller(sha256: Sha256, on_event: OnEvent) -> Callable[[str], None]:
    return lambda text: on_event(Notice(sha256, text))


def _stray(stored: StoredBlob, on_event: OnEvent) -> Verdict:
    verdict = _read_again(stored.sha256, stored.path.name, stored.path, stored.size_bytes, on_event)
    if verdict.state is not State.OK:
        return verdict
    return Verdict(
        stored.sha256,
        verdict.name,
        verdict.path,
        State.UNKNOWN,
        stored.size_bytes,
        verdict.actual_sha256,
        "sound, but the index does not know it; `civman verify --rebuild` takes it in",
    )


def _facts(stored: StoredBlob, on_event: OnEvent) -> FileFacts:
    try:
        return facts_of_file(stored.path, None)
    except InvalidModelFile as error:
        on_event(Notice(stored.sha256, error.message))
        return FileFacts()


def _name_in(sidecar: dict[str, object] | None) -> str:
    assets = (sidecar or {}).get("assets")
    first = assets[0] if isinstance(assets, list) and assets else {}
    return str(first.get("name", "")) if isinstance(first, dict) else ""
