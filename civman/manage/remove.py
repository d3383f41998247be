"""Removal: moves files to the trash according to a plan, undoes removals, and collects garbage.

Removal deletes rows before files, and restoring adds files before rows. A crash can leave a file without a row, never a
row without its file.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from civman.domain.catalog import Asset, Blob
from civman.domain.digests import Sha256
from civman.domain.plurals import counted
from civman.domain.ref_matching import KnownIds, means
from civman.errors import Cause, NotFound, Refused
from civman.index import USER_PIN, Index
from civman.manage.file_state import seen_now
from civman.manage.second_copies import AskSecondHome, SecondCopy, StoreLeftover, no_second_home
from civman.manage.sidecar import described, file_facts, restore, write_sidecar
from civman.store.blobs import INCOMING, BlobStore, StoredBlob, digest_of
from civman.store.partial import store_error
from civman.store.resume_journal import allocated_bytes
from civman.store.safe_copies import copies, drop_copy, find_copy
from civman.store.served_files import drop_served, original_images, served_files
from civman.store.trash import Removal, Trash, blob_lock, has_blob
from civman.system.move_files import remove_file
from civman.system.process_lock import FileLock


@dataclass(frozen=True, slots=True)
class RemovalPlan:
    """What a removal would do: `assets` are removed from the index, `blobs` are moved to the trash."""

    assets: tuple[Asset, ...]
    blobs: tuple[Blob, ...]
    kept: tuple[Asset, ...]
    """Assets that are not removed but have the same bytes as one of `assets`; the file in the store is therefore kept.
    """
    outside: tuple[Asset, ...] = ()
    """Assets whose files are outside the store. Only their index rows are removed; the files stay where they are."""
    pinned: tuple[Asset, ...] = ()
    """Pinned assets whose bytes would be removed."""
    pictures: int = 0
    """The number of images in the library that were made with these files and cannot be replayed without them."""

    @property
    def freed_bytes(self) -> int:
        """The disk space in bytes that emptying the trash will free, not counting previews."""
        return sum(blob.size_bytes for blob in self.blobs)


@dataclass(frozen=True, slots=True)
class StalePartial:
    """A partial download that has not been resumed since `touched_at`."""

    path: Path
    size_bytes: int
    touched_at: datetime


@dataclass(frozen=True, slots=True)
class Collection:
    """The garbage that a collection would remove: blobs that are not in the index, old partial downloads, old trash."""

    orphans: tuple[StoredBlob, ...] = ()
    partials: tuple[StalePartial, ...] = ()
    removals: tuple[Removal, ...] = ()
    kept: tuple[Sha256, ...] = ()
    """Blobs that are kept only because they are pinned."""
    copies: tuple[Path, ...] = ()
    """Safetensors copies, made from pickles, that would be deleted."""
    served: tuple[Path, ...] = ()
    """Thumbnails and input images of the server that would be deleted."""
    originals: tuple[Path, ...] = ()
    """Downloaded originals of images on CivitAI; they would be deleted, and can be downloaded again."""
    elsewhere: tuple[SecondCopy, ...] = ()
    """Files whose last copy in the library is in trash that would be emptied; the object store has another copy."""
    leftovers: tuple[StoreLeftover, ...] = ()
    """Sidecars and previews in the object store whose model file is missing there. They take no space on this disk."""
    drops_leftovers: bool = False
    """Whether `leftovers` are to be deleted."""

    @property
    def freed_bytes(self) -> int:
        """The disk space in bytes that is freed immediately.

        Orphaned blobs do not count, because they only move to the trash.
        """
        return (
            sum(partial.size_bytes for partial in self.partials)
            + sum(gone.size_bytes for gone in self.removals)
            + sum(path.stat().st_size for path in (*self.copies, *self.served, *self.originals) if path.exists())
        )

    @property
    def is_empty(self) -> bool:
        """Whether the collection has nothing to remove."""
        local = (self.orphans, self.partials, self.removals, self.copies, self.served, self.originals)
        return not any(local) and not (self.leftovers and self.drops_leftovers)


@dataclass(frozen=True, slots=True)
class Restored:
    """The result of undoing a removal: the number of restored assets, and the names of files that were lost."""

    removal: str
    assets: int
    lost: tuple[str, ...] = ()


def plan_removal(index: Index, store: BlobStore, assets: Iterable[Asset]) -> RemovalPlan:
    """Plan the removal of `assets`. A blob that another asset needs is kept."""
    chosen = list({_identity(asset): asset for asset in assets}.values())
    identities = {_identity(asset) for asset in chosen}
    blobs: list[Blob] = []
    kept: list[Asset] = []
    outside: list[Asset] = []
    pinned: list[Asset] = []
    for sha256, asset in {asset.blob.sha256: asset for asset in chosen}.items():
        others = [other for other in index.referrers(sha256) if _identity(other) not in identities]
        kept += others
        if others:
            continue
        if asset.pins:
            pinned.append(asset)
        if _is_outside(asset, store):
            outside.append(asset)
        else:
            blobs.append(asset.blob)
    pictures = index.pictures_with([blob.sha256 for blob in blobs])
    return RemovalPlan(tuple(chosen), tuple(blobs), tuple(kept), tuple(outside), tuple(pinned), pictures)


def remove(index: Index, store: BlobStore, plan: RemovalPlan, *, force: bool, now: datetime) -> Removal | None:
    """Carry out a removal plan. Returns the removal in the trash, with which it can be undone.

    Raises: Refused (`pinned`): some files are pinned, and `force` is not set. NotFound: another process has removed all
        of them in the meantime. StoreError.
    """
    if plan.pinned and not force:
        named = "; ".join(
            f"{asset.name} (by {', '.join('you' if pin == 'user' else pin for pin in asset.pins)})"
            for asset in plan.pinned[:5]
        )
        raise Refused(
            f"these files are pinned: {named}",
            code=Cause.PINNED,
            hint="`civman edit REF --unpin` removes your own pin; --force removes pinned files too",
            sha256=[str(asset.blob.sha256) for asset in plan.pinned],
        )
    if not plan.assets:
        return None
    by_blob: dict[Sha256, list[Asset]] = {}
    for asset in plan.assets:
        by_blob.setdefault(asset.blob.sha256, []).append(asset)
    entries = [_manifest(index, store, assets) for assets in by_blob.values()]
    trash, done = Trash(store), 0
    with trash.begin(entries, reason="remove", now=now) as removal:
        for sha256, assets in by_blob.items():
            with blob_lock(store, sha256):
                done += sum(index.forget(asset) for asset in assets)
                if index.referrers(sha256):
                    write_sidecar(store, index, sha256)
                    continue
                if force:
                    index.unpin(sha256, USER_PIN)
                done += trash.take(removal, sha256)
        if not done:
            trash.empty(removal)
            raise NotFound(
                f"another process has already removed {', '.join(asset.name for asset in plan.assets[:5])}",
                hint="run `civman restore` to undo that removal",
            )
    return removal


def undo(
    index: Index, store: BlobStore, removal: Removal, *, now: datetime, on_notice: Callable[[str], None]
) -> Restored:
    """Undo a removal: restore the files to their places, and the index rows with all user-entered data.

    Raises: NotFound: another process has already restored the files or emptied the trash.
    """
    trash = Trash(store)
    count, lost = 0, []
    with trash.held(removal):
        if not removal.folder.is_dir():
            raise NotFound(
                f"removal {removal.id} is no longer in the trash: another process has restored it or emptied the trash",
                hint="`civman list` shows the stored files, `civman restore --list` the trash",
            )
        for entry in removal.entries:
            sha256 = Sha256(str(entry["sha256"]))
            with blob_lock(store, sha256):
                stored = _restore_file(store, removal, entry, sha256)
                if stored is None:
                    lost.append(str(entry.get("name", sha256)))
                    continue
                facts = file_facts(stored, entry["sidecar"], on_notice)
                count += restore(entry["sidecar"], stored, index, facts, now=now, on_notice=on_notice)
                seen = seen_now(str(stored.path), sha256, kept_path=_kept_path(stored.path, store))
                if seen is not None:
                    index.save_seen([seen])
                write_sidecar(store, index, sha256)
        if not lost:
            trash.empty(removal)
    return Restored(removal.id, count, tuple(lost))


def removal_named(store: BlobStore, name: str | None) -> Removal:
    """Find a removal by its id, or by a name, ref or SHA-256 of a file in it; without `name`, the last one.

    Raises: NotFound.
    """
    removals = Trash(store).removals()
    for removal in removals:
        digests = removal.digests
        if name is None or removal.id == name or any(len(name) >= 6 and digest.startswith(name) for digest in digests):
            return removal
        if any(means(name, ids) for entry in removal.entries for ids in _known_ids(entry)):
            return removal
    if name is None:
        raise NotFound("the trash is empty", hint="no file was removed, or `civman gc` has emptied the trash")
    raise NotFound(f"nothing in the trash matches `{name}`", hint="`civman restore --list` shows the trash")


def plan_collection(
    index: Index, store: BlobStore, *, now: datetime, partials_after: timedelta, trash_after: timedelta,
    all_copies: bool = False, ask_second_home: AskSecondHome = no_second_home,
) -> Collection:  # fmt: skip
    """Plan a garbage collection of orphaned blobs, old partial downloads and old trash.

    Partial downloads are collected if they were not used for `partials_after`, trash if it is older than `trash_after`.

    Safetensors copies of pickles are collected if they can no longer be used, or all of them with `all_copies`.

    The last copy of a pinned file is kept, unless `ask_second_home` returns a verified copy of the file.

    Raises: Refused (`index-empty`): the index is empty, so that every file in the store would be collected.
    """
    known = {file.sha256 for file in index.held_files()}
    pins = index.pins()
    strangers = [blob for blob in store.blobs() if blob.sha256 not in known]
    if strangers and not known:
        raise Refused(
            f"the store has {counted(len(strangers), 'file')}, none of which is in the index",
            code=Cause.INDEX_EMPTY,
            hint="first add them to the index with `civman verify --rebuild`",
        )
    trash = Trash(store)
    old = [removal for removal in trash.removals() if now - removal.removed_at >= trash_after]
    last = _last_copies(store, old)
    elsewhere = tuple(ask_second_home(last, last & pins.keys())) if last else ()
    needed = (last & pins.keys()) - {copy.sha256 for copy in elsewhere if copy.is_verified}
    return Collection(
        tuple(blob for blob in strangers if blob.sha256 not in pins),
        tuple(_stale(store.root / "partial", now - partials_after)),
        (*(removal for removal in old if not needed.intersection(removal.digests)), *trash.leavings()),
        (*(blob.sha256 for blob in strangers if blob.sha256 in pins), *sorted(needed)),
        tuple(
            copy for copy in copies(store)
            if all_copies or Sha256(copy.name[:64]) not in known or find_copy(copy) is None
        ),
        tuple(served_files(store.root, now - partials_after)),
        tuple(original_images(store.root, now - partials_after)),
        elsewhere,
    )  # fmt: skip


def _last_copies(store: BlobStore, removals: Iterable[Removal]) -> set[Sha256]:
    """The digests of files that are in the trash of these removals but no longer in the library's store."""
    return {
        sha256
        for removal in removals
        for sha256 in removal.digests
        if has_blob(removal, sha256) and store.find(sha256) is None
    }


def collect(index: Index, store: BlobStore, plan: Collection, *, now: datetime) -> int:
    """Carry out a collection plan. Returns the bytes freed.

    Files that another process has started to use are skipped.
    """
    trash = Trash(store)
    if plan.orphans:
        entries = [_orphan(store, blob) for blob in plan.orphans]
        with trash.begin(entries, reason="gc", now=now) as removal:
            taken = 0
            for blob in plan.orphans:
                with blob_lock(store, blob.sha256):
                    if not index.referrers(blob.sha256):
                        taken += trash.take(removal, blob.sha256)
            if not taken:
                trash.empty(removal)
    freed = sum(_discard(partial) for partial in plan.partials) + sum(map(drop_copy, plan.copies))
    freed += sum(map(drop_served, (*plan.served, *plan.originals)))
    # empty the oldest removal first: if a file was removed twice, only the later removal stores it, and restoring the
    # earlier removal needs it too
    for old in sorted(plan.removals, key=lambda removal: removal.id):
        with trash.held(old):
            freed += trash.empty(old)
    _tidy(store.root)
    # keep the saved states of files that are in the index, because a moved file is recognised by its state
    known = {file.sha256 for file in index.held_files()}
    gone = [
        seen.path
        for seen in index.seen_files().values()
        if seen.sha256 not in known and not _exists(store.root, seen.path)
    ]
    if gone:
        index.forget_seen(gone)
    return freed


def _identity(asset: Asset) -> tuple[Sha256, int | None, int | None]:
    return asset.blob.sha256, asset.version_id, asset.file_id


def _is_outside(asset: Asset, store: BlobStore) -> bool:
    return Path(asset.path).parent != store.place_of(asset.blob.sha256, "").parent.absolute()


def _manifest(index: Index, store: BlobStore, assets: Sequence[Asset]) -> dict[str, Any]:
    asset = assets[0]
    seen = seen_now(asset.path, asset.blob.sha256)
    return {
        "sha256": asset.blob.sha256,
        "suffix": asset.blob.suffix,
        "size_bytes": asset.blob.size_bytes,
        "name": asset.name,
        "outside": asset.path if _is_outside(asset, store) else None,
        "looks": [seen.inode, seen.size_bytes, seen.mtime_ns] if seen is not None else None,
        "sidecar": described(index, assets, store),
    }


def _orphan(store: BlobStore, blob: StoredBlob) -> dict[str, Any]:
    seen = seen_now(str(blob.path), blob.sha256)
    sidecar = store.read_sidecar(blob.sha256) or {
        "assets": [{"name": blob.path.name, "origin": "import", "added_at": "1970-01-01T00:00:00+00:00"}]
    }
    return {
        "sha256": blob.sha256,
        "suffix": blob.suffix,
        "size_bytes": blob.size_bytes,
        "name": str((sidecar.get("assets") or [{}])[0].get("name") or blob.path.name),
        "outside": None,
        # record a state that matches no file, so that restoring verifies the bytes by reading them
        "looks": None if seen is None else [0, seen.size_bytes, 0],
        "sidecar": sidecar,
    }


def _restore_file(store: BlobStore, removal: Removal, entry: dict[str, Any], sha256: Sha256) -> StoredBlob | None:
    """Restore a removed file to its place after verifying it. Returns None if it no longer exists or has changed."""
    if entry.get("outside"):
        path = Path(str(entry["outside"]))
        found = StoredBlob(sha256, path.suffix.lower(), path, path.stat().st_size) if path.is_file() else None
        return found if found is not None and _is_verified(entry, path, sha256) else None
    here = store.find(sha256)
    if here is not None:
        return here if _is_verified(entry, here.path, sha256) else None
    trash = Trash(store)
    lying = trash.lying(removal, sha256)
    if lying is None or not _is_verified(entry, lying[1], sha256):
        return None
    return trash.give_back(lying[0], sha256)


def _is_verified(entry: dict[str, Any], path: Path, sha256: Sha256) -> bool:
    """Whether the file is unchanged since it was removed, by its stat data or else by its SHA-256."""
    now = seen_now(str(path), sha256)
    if now is not None and entry.get("looks") == [now.inode, now.size_bytes, now.mtime_ns]:
        return True
    try:
        return digest_of(path) == sha256
    except FileNotFoundError:  # another process has just emptied the trash
        return False


def _known_ids(entry: dict[str, Any]) -> Iterator[KnownIds]:
    """Yield the names and ids by which a removed file can be found, once for each of its assets."""
    sha256, name = Sha256(str(entry["sha256"])), str(entry.get("name"))
    yield KnownIds(sha256, names=(name,))
    for asset in entry.get("sidecar", {}).get("assets", []):
        version, model = asset.get("version") or {}, asset.get("model") or {}
        names = (asset.get("alias"), asset.get("name"), model.get("name"))
        yield KnownIds(sha256, model.get("id"), version.get("id"), asset.get("file_id"), tuple(filter(None, names)))


def _stale(folder: Path, before: datetime) -> Iterator[StalePartial]:
    # incomplete copies that killed imports left behind are no longer needed, whatever their age
    for path in sorted(folder.glob(f"*{INCOMING}")) if folder.is_dir() else []:
        found = path.stat()
        yield StalePartial(path, allocated_bytes(found), datetime.fromtimestamp(found.st_mtime, before.tzinfo))
    for path in sorted(folder.glob("*.part")) if folder.is_dir() else []:
        beside = (path, path.with_suffix(".live"), path.with_suffix(".synced"))
        touched = max(file.stat().st_mtime for file in beside if file.exists())
        touched_at = datetime.fromtimestamp(touched, before.tzinfo)
        if touched_at <= before:
            yield StalePartial(path, allocated_bytes(path.stat()), touched_at)


def _discard(partial: StalePartial) -> int:
    """Delete a partial file with its journal, unless a download is using it. Returns the bytes freed."""
    is_incoming = partial.path.suffix == INCOMING
    locks = partial.path.parent.parent / "locks"
    lock = FileLock(locks / f"{partial.path.stem}.lock" if is_incoming else partial.path.with_suffix(".lock"))
    if not lock.acquire():
        return 0
    try:
        for path in (partial.path, partial.path.with_suffix(".live"), partial.path.with_suffix(".synced")):
            remove_file(path, missing_ok=True)
    except OSError as error:
        raise store_error(error, partial.path) from error
    finally:
        lock.release()
    return partial.size_bytes


def _tidy(root: Path) -> None:
    """Delete lock files that killed processes left behind."""
    for path in (root / "locks").glob("*.lock"):
        lock = FileLock(path)
        if lock.acquire():
            lock.release()


def _exists(root: Path, path: str) -> bool:
    return (root / path).exists()  # if `path` is absolute, `root` has no effect


def _kept_path(path: Path, store: BlobStore) -> str:
    root = store.root.absolute()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
