"""Sidecar files: a copy of what the index knows about a blob, stored next to it, so that the index can be rebuilt.

Format 2 adds to format 1: the user's own data (note, tags, rating and so on), pins, further hashes, when CivitAI was
asked and whether it still has the model, and the path of a file outside the store.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from threading import Lock
from typing import Any

from civman.domain.catalog import NOTHING_SAID, Asset, Blob, FileFacts, ModelFile, ModelType, ModelVersion, Own
from civman.domain.digests import Hashes, Sha256
from civman.errors import InvalidModelFile, UsageError
from civman.index import Index, Snapshot, Source
from civman.store.blobs import BlobStore, StoredBlob
from civman.store.partial import store_error
from civman.store.trash import blob_lock

_FORMAT = 2
_MOST_AT_ONCE = 200
_WRITERS = 16
_SIDECARS_AT_ONCE = 256


def write_sidecar(store: BlobStore, index: Index, sha256: Sha256) -> None:
    """Write the sidecar of a blob from the index. Raises: StoreError."""
    due = index.sidecars_due(sha256)
    assets = index.referrers(sha256)
    if assets:
        _write(store, sha256, described(index, assets, store))
    if due:
        index.sidecar_kept(due)


def write_due(store: BlobStore, index: Index, *, most: int = _MOST_AT_ONCE) -> int:
    """Write up to `most` sidecars whose index rows have changed. Returns their number. Raises: StoreError."""
    due = index.sidecars_due()[:most]
    # use threads, because writing a sidecar mostly waits for the disk, which can sync several small files at the same
    # time
    reading = Lock()
    with ThreadPoolExecutor(_WRITERS, thread_name_prefix="sidecar") as pool:
        for start in range(0, len(due), _SIDECARS_AT_ONCE):
            digests = [sha256 for sha256, _ in due[start : start + _SIDECARS_AT_ONCE]]
            written = pool.map(lambda sha256: _written(store, index, sha256, reading), digests)
            index.sidecar_kept([entry for entries in written for entry in entries])
    return len(due)


def _written(store: BlobStore, index: Index, sha256: Sha256, reading: Lock) -> list[tuple[Sha256, str]]:
    """Write the sidecar of a blob that still has assets. Returns the entries for `Index.sidecar_kept`.

    `reading` protects the index, which only one thread may read at a time.
    """
    with blob_lock(store, sha256):
        with reading:
            due = index.sidecars_due(sha256)
            assets = index.referrers(sha256)
            facts = described(index, assets, store) if assets else None
        if facts is not None:
            _write(store, sha256, facts)
    return due


def _write(store: BlobStore, sha256: Sha256, facts: dict[str, Any]) -> None:
    place = store.place_of(sha256, "")
    try:
        # create the folder: a file outside the store has no blob folder yet
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise store_error(error, place.parent) from error
    store.write_sidecar(sha256, facts)


def described(index: Index, assets: Sequence[Asset], store: BlobStore) -> dict[str, Any]:
    """Collect what the index knows about these assets, which must share one blob, as JSON-compatible values."""
    blob = assets[0].blob
    hashes = index.hashes(blob.sha256).known()
    facts: dict[str, Any] = {
        "format": _FORMAT,
        "size_bytes": blob.size_bytes,
        "suffix": blob.suffix,
        "declared_by": blob.declared_by,
        "hashes": {name: digest for name, digest in hashes.items() if name not in ("sha256", "autov2")},
        "pins": list(assets[0].pins),
        "assets": [_entry(asset, index) for asset in reversed(assets)],
    }
    if not assets[0].path.startswith(str(store.place_of(blob.sha256, "").parent)):
        facts["path"] = assets[0].path
    return facts


def restore(
    facts: dict[str, Any],
    stored: StoredBlob,
    index: Index,
    file_facts: FileFacts,
    *,
    now: datetime,
    on_notice: Callable[[str], None],
) -> int:
    """Restore a sidecar's contents to the index. Returns the number of assets restored.

    `stored` has already been read and verified; `file_facts` has just been read from the header of the file.
    """
    count = 0
    blob = Blob(stored.sha256, stored.size_bytes, stored.suffix, str(facts.get("declared_by") or "civman"), now)
    known = facts.get("hashes") or {}
    hashes = Hashes(sha256=stored.sha256, **{name: known.get(name) for name in ("blake3", "crc32", "autov1", "autov3")})
    for entry in facts.get("assets", []):
        version = _remembered(entry, index, now=now, on_notice=on_notice)
        asset = index.record(
            blob=blob,
            path=str(stored.path),
            name=str(entry["name"]),
            origin=str(entry["origin"]),
            version=version,
            file=_file_named(version, entry) if version is not None else None,
            facts=file_facts,
            added_at=datetime.fromisoformat(entry["added_at"]),
            hashes=hashes if known else None,
            model_type=ModelType.of(entry.get("type")) if version is None else None,
        )
        _restore_own(entry, asset, index, on_notice)
        count += 1
    for reason in facts.get("pins") or []:
        index.pin(stored.sha256, str(reason), now)
    return count


def file_facts(stored: StoredBlob, facts: dict[str, Any] | None, on_notice: Callable[[str], None]) -> FileFacts:
    """Read from a file's header what the index stores about it, given the base model label in the file's sidecar."""
    from civman.manage.inspection import (
        facts_of_file,
    )  # imported here: the identification rules take 0.05 s to import, and only a rebuild uses them

    first = ((facts or {}).get("assets") or [{}])[0]
    label = (first.get("version") or {}).get("baseModel")
    try:
        return facts_of_file(stored.path, label)
    except InvalidModelFile as error:
        on_notice(error.message)
        return FileFacts()


def _entry(asset: Asset, index: Index) -> dict[str, Any]:
    version = index.version(asset.version_id) if asset.version_id is not None else None
    own = asset.own
    return {
        "name": asset.name,
        "origin": asset.origin,
        "added_at": asset.added_at.isoformat(),
        "last_used_at": asset.last_used_at.isoformat() if asset.last_used_at else None,
        "alias": asset.alias,
        "note": own.note,
        "tags": list(own.tags),
        "trigger_words": list(own.trigger_words),
        "rating": own.rating,
        "is_favourite": own.is_favourite,
        "type": asset.type.value,
        "file_id": asset.file_id,
        "air": version.air if version is not None else None,
        "usage_control": version.usage_control if version is not None else None,
        "model": json.loads(version.model.raw) if version is not None else None,
        "version": json.loads(version.raw) if version is not None else None,
        "asked": {
            "model": _asked(index.snapshot_of_model(asset.model_id) if asset.model_id is not None else None),
            "version": _asked(index.snapshot_of_version(version.id) if version is not None else None),
        },
    }


def _asked(snapshot: Snapshot | None) -> dict[str, Any] | None:
    if snapshot is None:
        return None
    return {
        "at": snapshot.fetched_at.isoformat(),
        "gone_at": snapshot.gone_at.isoformat() if snapshot.gone_at else None,
        "gone_status": snapshot.gone_status,
    }


def _remembered(
    entry: dict[str, Any], index: Index, *, now: datetime, on_notice: Callable[[str], None]
) -> ModelVersion | None:
    """Return the version that a sidecar entry describes, after adding it to the index unless it is there already."""
    if not entry.get("model") or not entry.get("version"):
        return None
    from civman.civitai import wire_models  # imported here: it imports pydantic, which takes 0.2 s

    page = wire_models.page({**entry["model"], "modelVersions": [entry["version"]]}, now=now, on_notice=on_notice)
    if not page.versions:
        return None
    version = replace(
        page.versions[0],
        air=page.versions[0].air or entry.get("air"),
        usage_control=entry.get("usage_control"),
    )
    asked = entry.get("asked") or {}
    of_model, of_version = asked.get("model") or {}, asked.get("version") or {}
    if of_version.get("at") and index.snapshot_of_version(version.id) is None:
        index.remember(version, fetched_at=datetime.fromisoformat(of_version["at"]), source=Source.SIDECAR)
        if of_version.get("gone_at"):
            gone_at = datetime.fromisoformat(of_version["gone_at"])
            index.mark_version_gone(version.id, status=int(of_version["gone_status"]), at=gone_at)
        if of_model.get("gone_at"):
            gone_at = datetime.fromisoformat(of_model["gone_at"])
            index.mark_model_gone(version.model.id, status=int(of_model["gone_status"]), at=gone_at)
    return version


def _restore_own(entry: dict[str, Any], asset: Asset, index: Index, on_notice: Callable[[str], None]) -> None:
    own = Own(
        str(entry.get("note") or ""),
        _words(entry.get("tags")),
        _words(entry.get("trigger_words")),
        entry.get("rating"),
        bool(entry.get("is_favourite")),
    )
    # restore the annotations only if the index has none, because annotations in the index are newer
    if own != NOTHING_SAID and asset.own == NOTHING_SAID:
        index.annotate(asset, own)
    if entry.get("alias") and asset.alias is None:
        try:
            index.set_alias(asset, str(entry["alias"]))
        except UsageError as error:
            on_notice(f"the alias of `{asset.name}` could not be restored: {error.message}")
    if entry.get("last_used_at") and asset.last_used_at is None:
        index.mark_used([asset.blob.sha256], datetime.fromisoformat(entry["last_used_at"]))


def _words(listed: object) -> tuple[str, ...]:
    return tuple(map(str, listed)) if isinstance(listed, Iterable) and not isinstance(listed, str) else ()


def _file_named(version: ModelVersion, entry: dict[str, Any]) -> ModelFile | None:
    by_id = (file for file in version.files if file.id is not None and file.id == entry.get("file_id"))
    by_name = (file for file in version.files if file.name == entry.get("name"))
    return next(by_id, None) or next(by_name, None)
