"""Library maintenance: verifies files again, downloads corrupt ones again, and rebuilds the index.

A file whose device, inode, size and modification time are the same as at its last verification is not read again. It is
reported as unchanged, not as verified.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from civman.domain.access import Permits
from civman.domain.catalog import Asset, Blob
from civman.domain.digests import Hashes, Sha256
from civman.domain.events import Notice, OnEvent, Started, Verifying
from civman.domain.plurals import counted
from civman.domain.printed_refs import bare_version_ref
from civman.errors import Cause, CivmanError, IntegrityError, LibraryError, StoreError
from civman.index import HeldFile, Index, SeenFile
from civman.manage.file_state import seen_now
from civman.manage.places import Presence, other_place, presence
from civman.manage.sidecar import file_facts, restore
from civman.store.blobs import BlobStore, StoredBlob, digest_of
from civman.store.other_digests import computed_kinds, other_digests
from civman.store.safe_copies import copies, find_copy, verify_copy
from civman.store.trash import Trash, blob_lock
from civman.system.system_facts import spins

WHOLE = "verify"
"""The key of the `Started` event that states the total number of bytes to read."""
_SAVE_EVERY = 200
_MISSING = "the file is missing"
_MISSING_OUTSIDE = (
    "the file is missing; if it was moved or renamed, run `civman import` with its new folder to find it again"
)
_AWAY = "the file's drive is not connected; if the file was moved to another drive, `civman import` finds it again"


class State(StrEnum):
    """The result of verifying a file."""

    OK = "ok"
    """The file was read just now, and its SHA-256 matches."""
    UNCHANGED = "unchanged"
    """The file has not changed since it was last read, so it was not read now."""
    CORRUPT = "corrupt"
    """The file's bytes do not have the expected SHA-256."""
    MISSING = "missing"
    """The file is in the index, but no longer on disk."""
    AWAY = "away"
    """The drive or network share that the file is on is not connected, so the file was not verified."""
    UNREADABLE = "unreadable"
    UNKNOWN = "unknown"
    """The file is intact, but not in the index."""
    REPAIRED = "repaired"
    """The file was corrupt or missing, and is intact again: found elsewhere, copied or downloaded.

    For a corrupt safetensors copy of a pickle: the copy was deleted.
    """


BROKEN = frozenset({State.CORRUPT, State.MISSING, State.UNREADABLE})


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result for one file. `proven_at`: when its bytes were last read and found correct."""

    sha256: Sha256
    name: str
    path: str
    state: State
    size_bytes: int
    actual_sha256: Sha256 | None = None
    problem: str = ""
    proven_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """The result of a rebuild.

    `bare`: the number of intact files without a sidecar, about which nothing else is known.
    """

    assets: int
    bare: int
    corrupt: tuple[Verdict, ...]


def verify(
    index: Index,
    store: BlobStore,
    assets: Sequence[Asset],
    *,
    is_full: bool,
    on_event: OnEvent,
    clock: Callable[[], datetime],
) -> Iterator[Verdict]:
    """Verify the files of `assets` or, if there are none, the whole library.

    Yields each verdict as soon as it is ready.

    Files are read by several threads, as many as suit their disk; `on_event` is called from these threads. `is_full`:
    also read files that have not changed.
    """
    files = index.held_files({asset.blob.sha256 for asset in assets} if assets else None)
    to_read: list[HeldFile] = []
    for file in files:
        if (
            not is_full
            and file.seen is not None
            and seen_now(file.path, file.sha256, kept_path=file.kept_path) == file.seen
        ):
            yield _verdict(file, State.UNCHANGED, proven_at=file.verified_at)
        else:
            to_read.append(file)
    if not assets:
        known = {file.sha256 for file in files}
        strays = list(_strays(store, known))
        to_read += [_as_file(blob, clock()) for blob in strays]
    else:
        strays = []
    yield from _read_all(index, to_read, {blob.sha256 for blob in strays}, on_event, clock)
    yield from _verify_copies(store, files, is_full=is_full, now=clock())


def repair(
    verdicts: Iterable[Verdict],
    index: Index,
    store: BlobStore,
    *,
    fetch: Callable[[Asset], Asset],
    now: datetime,
    on_event: OnEvent,
) -> Iterator[Verdict]:
    """Repair each broken file. Yields a verdict for each file; the verdicts of intact files are yielded unchanged.

    If a file with the same bytes exists at another known path, it is used. Otherwise the file is downloaded; `fetch`
    downloads and verifies a file, or raises. A corrupt file of the store is moved to the trash first and stays there. A
    file outside the store is never changed: its replacement is in the store or elsewhere.
    """
    for verdict in verdicts:
        assets = index.referrers(verdict.sha256)
        if verdict.state not in (*BROKEN, State.AWAY) or not assets:
            yield verdict
            continue
        is_outside = Path(verdict.path).parent != store.place_of(verdict.sha256, "").parent.absolute()
        if not is_outside and verdict.state is not State.MISSING:
            trash = Trash(store)
            entry: dict[str, Any] = {"sha256": verdict.sha256, "name": verdict.name, "sidecar": {"assets": []}}
            with trash.begin([entry], reason="broken", now=now) as removal, blob_lock(store, verdict.sha256):
                trash.take(removal, verdict.sha256)
        replacement = _from_elsewhere(verdict, index, store, is_outside=is_outside)
        if replacement is not None:
            yield _repaired(verdict, *replacement, now)
            continue
        if verdict.state is State.AWAY:
            yield verdict
            continue
        try:
            fetched = fetch(assets[0])
        except CivmanError as error:
            on_event(Notice(verdict.sha256, f"`{verdict.name}` could not be downloaded again: {error.message}"))
            yield _changed(verdict, f"{verdict.problem}; downloading it again failed: {error.message}")
            continue
        if fetched.blob.sha256 != verdict.sha256:
            yield _changed(
                verdict, f"{verdict.problem}; CivitAI now has a different file: SHA-256 {fetched.blob.sha256[:10]}"
            )
            continue
        yield _repaired(verdict, fetched.path, "downloaded again and verified", now)


def _from_elsewhere(verdict: Verdict, index: Index, store: BlobStore, *, is_outside: bool) -> tuple[str, str] | None:
    """Use a file with the same bytes at another known path, if there is one.

    Returns the new path and a description of the repair.
    """
    other = other_place(index, store, verdict.sha256, except_path=verdict.path)
    if other is None:
        return None
    if is_outside:
        index.rehome([(verdict.sha256, verdict.path, str(other))])
        return str(other), f"found at `{other}`"
    with blob_lock(store, verdict.sha256):
        stored = store.take_in(other, verdict.sha256, Path(verdict.path).suffix, by_link=False)
        index.rehome([(verdict.sha256, verdict.path, str(stored.path))])
    return str(stored.path), f"copied from `{other}` and verified"


def _repaired(verdict: Verdict, path: str, how: str, now: datetime) -> Verdict:
    return Verdict(
        verdict.sha256, verdict.name, path, State.REPAIRED, verdict.size_bytes, verdict.sha256,
        f"was {verdict.state.value}; {how}", now,
    )  # fmt: skip


def refetch(
    asset: Asset,
    plan: Callable[..., Any],
    download: Callable[..., Asset],
    on_event: OnEvent,
) -> Asset:
    """Download an asset's file again, by version and file or else by SHA-256, if CivitAI still has the same bytes.

    `plan` and `download` are `library.downloads.plan` and `library.downloads.fetch`. Raises: IntegrityError: CivitAI
    now has a different file; and what `plan` and `download` raise.
    """
    ref = f"sha256:{asset.blob.sha256}"
    if asset.version_id is not None:
        ref = bare_version_ref(asset.version_id, asset.model_id)
    file = str(asset.file_id) if asset.file_id is not None else None
    # allow pickles and unsafe files: the user accepted this file before, and only the same bytes are accepted now
    permits = Permits(pickle=True, unsafe=True)
    declared = plan(ref, file=file, permits=permits).file.hashes.sha256
    if declared != asset.blob.sha256:
        raise IntegrityError(
            f"CivitAI now has a different file for {ref}: SHA-256 {(declared or 'undeclared')[:10]}",
            code=Cause.CHANGED_UPSTREAM,
        )
    return download(ref, file=file, permits=permits, on_event=on_event)


def rebuild(index: Index, store: BlobStore, *, on_event: OnEvent, clock: Callable[[], datetime]) -> Rebuilt:
    """Add every intact blob to the index, with the contents of its sidecar. Existing index entries are kept.

    Files outside the store are added too, if they are still at the path in their sidecar.
    """
    count, bare, corrupt = 0, 0, []
    for stored, sidecar in _with_sidecars(store):
        name = _name_in(sidecar) or stored.path.name
        held = HeldFile(stored.sha256, stored.size_bytes, str(stored.path), _kept(stored.path, store), clock(), name)
        verdict, seen = _read_again(held, {}, on_event)
        if verdict.state is not State.OK:
            corrupt.append(verdict)
            continue
        facts = file_facts(stored, sidecar, _reporter(stored.sha256, on_event))
        if sidecar is not None:
            count += restore(sidecar, stored, index, facts, now=clock(), on_notice=_reporter(stored.sha256, on_event))
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
        if seen is not None:
            index.save_proofs([seen], clock())
    return Rebuilt(count, bare, tuple(corrupt))


def _read_all(
    index: Index, files: list[HeldFile], strays: set[Sha256], on_event: OnEvent, clock: Callable[[], datetime]
) -> Iterator[Verdict]:
    if not files:
        return
    on_event(Started(WHOLE, counted(len(files), "file"), sum(file.size_bytes for file in files)))
    verified: list[SeenFile] = []
    digests = dict.fromkeys(
        (blob.sha256 for blob in index.without_digests() if computed_kinds().intersection(blob.missing)), Hashes()
    )
    pools = {device: ThreadPoolExecutor(readers, "verify") for device, readers in _disks(files).items()}
    try:
        running = [pools[_device(file.path)].submit(_read_again, file, digests, on_event) for file in files]
        for future in as_completed(running):
            verdict, seen = future.result()
            if verdict.sha256 in strays:
                verdict = _stray(verdict)
                if seen is None and not Path(verdict.path).exists():
                    continue  # skip a blob that was garbage-collected in the meantime
            elif verdict.state is State.MISSING and not index.referrers(verdict.sha256):
                continue  # skip a file that was removed from the library in the meantime: it is not missing
            elif seen is not None:
                verified.append(seen)
            if len(verified) >= _SAVE_EVERY:
                _save(index, verified, digests, clock(), on_event)
            yield verdict
    finally:
        for pool in pools.values():
            pool.shutdown(wait=True, cancel_futures=True)
        _save(index, verified, digests, clock(), on_event)


def _save(
    index: Index, verified: list[SeenFile], digests: Mapping[Sha256, Hashes], at: datetime, on_event: OnEvent
) -> None:
    """Record which files were verified. If the library is read-only, report that nothing could be recorded."""
    if not verified:
        return
    try:
        index.save_proofs(verified, at)
        index.save_hashes({seen.sha256: digests[seen.sha256] for seen in verified if seen.sha256 in digests})
    except LibraryError as error:
        if error.code not in (Cause.LIBRARY_READ_ONLY, Cause.DISK_FULL):
            raise
        on_event(
            Notice(WHOLE, f"the results could not be saved, so the next run will read all files again: {error.message}")
        )
    verified.clear()


def _read_again(file: HeldFile, digests: dict[Sha256, Hashes], on_event: OnEvent) -> tuple[Verdict, SeenFile | None]:
    """Read a file. Returns the verdict, and the file's state before reading if its SHA-256 matches.

    If `digests` has an entry for the file, the digests other than SHA-256 are computed too and stored in this entry.
    """
    path = Path(file.path)
    seen = seen_now(file.path, file.sha256, kept_path=file.kept_path)
    on_event(Started(file.sha256, file.name, file.size_bytes))
    try:
        actual = digest_of(path, lambda done: on_event(Verifying(file.sha256, done, file.size_bytes)))
    except StoreError as error:
        where = presence(file.path, file.seen)
        if where is Presence.AWAY:
            return _verdict(file, State.AWAY, problem=_AWAY), None
        if where is Presence.MISSING:
            is_outside = os.path.isabs(file.kept_path)  # noqa: PTH117
            return _verdict(file, State.MISSING, problem=_MISSING_OUTSIDE if is_outside else _MISSING), None
        return _verdict(file, State.UNREADABLE, problem=error.message), None
    if actual != file.sha256:
        return _verdict(file, State.CORRUPT, actual, "its bytes have changed"), None
    if file.sha256 in digests:
        with contextlib.suppress(StoreError):
            digests[file.sha256] = other_digests(path, whole=True)
    return _verdict(file, State.OK, actual), seen


def _verdict(
    file: HeldFile,
    state: State,
    actual: Sha256 | None = None,
    problem: str = "",
    *,
    proven_at: datetime | None = None,
) -> Verdict:
    return Verdict(file.sha256, file.name, file.path, state, file.size_bytes, actual, problem, proven_at)


def _changed(verdict: Verdict, problem: str) -> Verdict:
    return Verdict(
        verdict.sha256, verdict.name, verdict.path, verdict.state, verdict.size_bytes, verdict.actual_sha256, problem
    )


def _stray(verdict: Verdict) -> Verdict:
    if verdict.state is not State.OK:
        return verdict
    problem = (
        "the file is intact, but not in the index: `civman verify --rebuild` adds it, `civman gc` moves it to the trash"
    )
    return Verdict(
        verdict.sha256, verdict.name, verdict.path, State.UNKNOWN, verdict.size_bytes, verdict.actual_sha256, problem
    )


def _disks(files: list[HeldFile]) -> dict[int, int]:
    """How many threads should read from each disk: only one from a hard disk, where parallel reads cause seeks."""
    most = max(1, min(4, os.cpu_count() or 1))
    return {device: 1 if spins(device) else most for device in {_device(file.path) for file in files}}


def _device(path: str) -> int:
    try:
        return os.stat(path).st_dev  # noqa: PTH116  asked of 30,000 files
    except OSError:
        return 0


def _strays(store: BlobStore, known: set[Sha256]) -> Iterator[StoredBlob]:
    """Yield the blobs whose SHA-256 is not in `known`.

    Blobs are found by file name alone, since `store.blobs` takes 0.5 s for 30,000 files.
    """
    folder = store.root / "blobs" / "sha256"
    try:
        names = {name[:64] for place in os.scandir(folder) if place.is_dir() for name in os.listdir(place)}  # noqa: PTH208
    except FileNotFoundError:
        return
    for sha256 in sorted(names - known):
        stored = store.find(Sha256(sha256)) if len(sha256) == 64 else None
        if stored is not None:
            yield stored


def _with_sidecars(store: BlobStore) -> Iterator[tuple[StoredBlob, dict[str, Any] | None]]:
    """Yield all blobs with their sidecars, and files outside the store that a sidecar refers to."""
    for stored in store.blobs():
        yield stored, store.read_sidecar(stored.sha256)
    for path in sorted((store.root / "blobs" / "sha256").glob("*/*.civman.json")):
        sha256 = Sha256(path.name.partition(".")[0])
        sidecar = store.read_sidecar(sha256)
        outside = Path(str(sidecar["path"])) if sidecar and sidecar.get("path") else None
        if outside is not None and outside.is_file() and store.find(sha256) is None:
            yield StoredBlob(sha256, outside.suffix.lower(), outside, outside.stat().st_size), sidecar


def _verify_copies(store: BlobStore, files: list[HeldFile], *, is_full: bool, now: datetime) -> Iterator[Verdict]:
    """Verify the safetensors copies of pickles. A corrupt copy is deleted, and made again on next use."""
    by_digest = {file.sha256: file for file in files}
    for place in copies(store):
        file = by_digest.get(Sha256(place.name[:64]))
        if file is None:
            continue
        name, known = f"{file.name} (safetensors copy)", find_copy(place)
        size, sha256 = place.stat().st_size, known.sha256 if known is not None else file.sha256
        if known is not None and not is_full:
            yield Verdict(sha256, name, str(place), State.UNCHANGED, size, proven_at=file.verified_at)
            continue
        problem = verify_copy(place)
        if problem:
            problem = f"{problem}; the copy was deleted, and the next use of the original makes it again"
            yield Verdict(sha256, name, str(place), State.REPAIRED, size, None, problem)
        else:
            found = find_copy(place)
            sha256 = found.sha256 if found is not None else sha256
            yield Verdict(sha256, name, str(place), State.OK, size, sha256, proven_at=now)


def _as_file(blob: StoredBlob, now: datetime) -> HeldFile:
    return HeldFile(blob.sha256, blob.size_bytes, str(blob.path), str(blob.path), now, blob.path.name)


def _kept(path: Path, store: BlobStore) -> str:
    root = store.root.absolute()
    return path.absolute().relative_to(root).as_posix() if path.absolute().is_relative_to(root) else str(path)


def _reporter(sha256: Sha256, on_event: OnEvent) -> Callable[[str], None]:
    return lambda text: on_event(Notice(sha256, text))


def _name_in(sidecar: dict[str, object] | None) -> str:
    assets = (sidecar or {}).get("assets")
    first = assets[0] if isinstance(assets, list) and assets else {}
    return str(first.get("name", "")) if isinstance(first, dict) else ""
