"""Write which files the library stores: the blobs, and which file of a version each blob is."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from civman.domain.catalog import Asset, FileFacts, ModelType
from civman.domain.digests import Hashes, Sha256
from civman.domain.refs import NameRef, parse_ref
from civman.errors import Cause, InvalidRef, UsageError
from civman.index import rows, search_rows, write_notes
from civman.index.index_types import UNREAD, Record, SeenFile, Source
from civman.index.transactions import IN_LIST, Connection, insert, insert_or_update, listed, named, scalar, update
from civman.index.write_catalog import add_missing, file_identity, file_keys, refresh_assets

CHUNK = 500
"""The number of records per group of statements: few enough for SQLite's limit on bound values, and fast enough."""
_OF_FILE = ("model_id", "version_id", "file_key", "name", "name_key", "stem_key", "origin", "type", "type_raw")
"""The columns of an asset that change when the same file is recorded again."""
_DIGESTS = ("blake3", "crc32", "autov1", "autov3")


def record(connection: Connection, records: Sequence[Record], *, folder: Path) -> list[int]:
    """Write blobs and assets. Returns the assets' row ids in the order of the records.

    A record with the same blob, version and file as an existing row updates that row. A record with a version replaces
    a row without one; a record without a version adds nothing if the blob already has a row.
    """
    versions = [(item.version, item.added_at) for item in records if item.version is not None]
    add_missing(connection, versions, source=Source.RECORD)
    files = [(item.version, item.file) for item in records if item.version is not None and item.file is not None]
    keys = file_keys(connection, files)
    _save_blobs(connection, records, folder)
    held = _held(connection, {item.blob.sha256 for item in records})
    added: list[rows.Values] = []
    changed: list[rows.Values] = []
    ids = []
    next_id = (scalar(connection, "SELECT max(id) FROM asset") or 0) + 1
    for item in records:
        file_key = keys[item.version.id, file_identity(item.file)] if item.version and item.file else None
        row = _same(held.setdefault(item.blob.sha256, []), item, file_key)
        if row is None:
            row = _new_row(item, file_key, next_id)
            next_id += 1
            held[item.blob.sha256].append(row)
            added.append(row)
        else:
            _take_over(row, item, file_key)
            changed.append(row)
        ids.append(row["id"])
    insert(connection, "asset", added)
    if changed:
        update(connection, "asset", _OF_FILE, "id = :id", changed)
    refresh_assets(connection, f"a.id {IN_LIST}", listed(ids))
    return ids


def update_facts(connection: Connection, sha256: Sha256, facts: FileFacts, model_type: ModelType | None) -> bool:
    """Save what a file's header shows. `model_type` is set only on assets without a version.

    Returns whether the blob exists.
    """
    values = rows.facts_values(facts)
    found = update(connection, "blob", values, "sha256 = :sha256", [values | {"sha256": sha256}]) > 0
    if model_type is not None:
        loose = "UPDATE asset SET type = ?1, type_raw = ?1 WHERE blob_sha256 = ?2 AND version_id IS NULL"
        connection.execute(loose, (model_type.value, sha256))
    held = connection.execute("SELECT id FROM asset WHERE blob_sha256 = ?", (sha256,)).fetchall()
    search_rows.refresh(connection, [number for (number,) in held])
    return found


def save_hashes(connection: Connection, sha256: Sha256, hashes: Hashes) -> None:
    """Write the other digests of a blob (AutoV1, AutoV3, CRC32, BLAKE3); those that `hashes` lacks are not changed."""
    given = {name: value for name in _DIGESTS if (value := getattr(hashes, name)) is not None}
    if given:
        update(connection, "blob", given, "sha256 = :sha256", [given | {"sha256": sha256}])


def set_verified(connection: Connection, sha256: Sha256, at: datetime) -> bool:
    """Record when the file's contents were last verified. Returns whether the blob exists."""
    change = "UPDATE blob SET verified_at = ? WHERE sha256 = ?"
    return connection.execute(change, (rows.moment(at), sha256)).rowcount > 0


def set_all_verified(connection: Connection, digests: Sequence[Sha256], at: datetime) -> None:
    """Record for many files when their contents were last verified."""
    if digests:
        change = "UPDATE blob SET verified_at = ? WHERE sha256 = ?"
        connection.executemany(change, [(rows.moment(at), sha256) for sha256 in digests])


def mark_used(connection: Connection, digests: Iterable[Sha256], at: datetime) -> None:
    """Record when assets were last used."""
    change = f"UPDATE asset SET last_used_at = ? WHERE blob_sha256 {IN_LIST}"  # noqa: S608
    connection.execute(change, (rows.moment(at), listed(digests)))


def set_alias(connection: Connection, number: int, alias: str | None) -> None:
    """Set the alias of the asset with this row id."""
    connection.execute("UPDATE asset SET alias = ? WHERE id = ?", (alias, number))
    refresh_assets(connection, "a.id = ?", number)


def require_name(alias: str) -> None:
    """Check that `alias` cannot be read as an id, hash, URL or path. Raises: UsageError."""
    try:
        readable = parse_ref(alias) == NameRef(alias)
    except InvalidRef:
        readable = False
    if not readable:
        hint = "choose a word that is not a number, hash, URL or path"
        raise UsageError(f"{alias!r} cannot be an alias", code=Cause.BAD_ALIAS, hint=hint, alias=alias)


def alias_owner(connection: Connection, alias: str) -> int | None:
    """Return the row id of the asset with this alias; None if no asset has it."""
    found: int | None = scalar(connection, "SELECT id FROM asset WHERE alias = ?", [alias])
    return found


def forget(connection: Connection, asset: Asset) -> bool:
    """Remove the asset's row, and the blob's row if no other asset refers to it. Returns whether the asset existed."""
    number = asset_id(connection, asset)
    if number is None:
        return False
    sha256 = asset.blob.sha256
    search_rows.forget(connection, number)
    connection.execute("DELETE FROM asset WHERE id = ?", (number,))
    if scalar(connection, "SELECT id FROM asset WHERE blob_sha256 = ? LIMIT 1", [sha256]) is None:
        write_notes.sidecar_goes(connection, sha256)
        connection.execute("DELETE FROM blob WHERE sha256 = ?", (sha256,))
    return True


def save_seen(connection: Connection, files: Sequence[SeenFile]) -> None:
    """Save the digests of files outside the store."""
    names = ("device", "inode", "size_bytes", "mtime_ns", "sha256")
    insert_or_update(
        connection,
        "seen_file",
        "path",
        {name: f"excluded.{name}" for name in names},
        [
            {
                "path": file.path,
                "device": str(file.device),
                "inode": str(file.inode),
                "size_bytes": file.size_bytes,
                "mtime_ns": file.mtime_ns,
                "sha256": file.sha256,
            }
            for file in files
        ],
    )


def asset_id(connection: Connection, asset: Asset) -> int | None:
    """The row id of `asset`, found by blob, version and file; among several matches, the one with the same name."""
    found: int | None = scalar(
        connection,
        "SELECT a.id FROM asset a LEFT JOIN file f ON f.key = a.file_key "
        "WHERE a.blob_sha256 = ? AND a.version_id IS ? AND f.file_id IS ? ORDER BY a.name <> ? LIMIT 1",
        [asset.blob.sha256, asset.version_id, asset.file_id, asset.name],
    )
    return found


def _save_blobs(connection: Connection, records: Sequence[Record], folder: Path) -> None:
    always = {name: f"excluded.{name}" for name in ("size_bytes", "suffix", "path")}
    always |= {name: f"coalesce(excluded.{name}, blob.{name})" for name in _DIGESTS}
    always["verified_at"] = "max(excluded.verified_at, blob.verified_at)"
    always["declared_by"] = "CASE WHEN blob.declared_by = 'civitai' THEN 'civitai' ELSE excluded.declared_by END"
    facts = {name: f"excluded.{name}" for name in rows.facts_values(UNREAD)}
    # keep the known facts of a file if its header was not read this time
    for read, changes in ((True, always | facts), (False, always)):
        values = [
            rows.blob_values(item.blob, rows.kept_path(item.path, folder), item.facts, _digests(item))
            for item in records
            if (item.facts != UNREAD) is read
        ]
        insert_or_update(connection, "blob", "sha256", changes, values)


def _digests(item: Record) -> Hashes:
    if item.hashes is not None:
        return item.hashes
    if item.file is not None and item.file.hashes.sha256 == item.blob.sha256:
        return item.file.hashes
    return Hashes()


def _held(connection: Connection, digests: set[Sha256]) -> dict[str, list[rows.Values]]:
    held: dict[str, list[rows.Values]] = {}
    found = named(
        connection,
        f"SELECT * FROM asset WHERE blob_sha256 {IN_LIST} ORDER BY id",  # noqa: S608
        [listed(digests)],
    )
    for row in found:
        held.setdefault(row["blob_sha256"], []).append(dict(row))
    return held


def _same(held: list[rows.Values], item: Record, file_key: int | None) -> rows.Values | None:
    """Find the existing row for the same file as `item`."""
    if item.version is None:
        return held[0] if held else None
    of_version = [row for row in held if row["version_id"] == item.version.id]
    exact = (row for row in of_version if row["file_key"] == file_key)
    vague = (row for row in of_version if row["file_key"] is None or file_key is None)
    loose = (row for row in held if row["version_id"] is None)
    return next(exact, None) or next(vague, None) or next(loose, None)


def _new_row(item: Record, file_key: int | None, number: int) -> rows.Values:
    row: dict[str, Any] = {
        "id": number,
        "blob_sha256": item.blob.sha256,
        "model_id": None,
        "version_id": None,
        "file_key": None,
        "model_key": "",
        "search_text": "",
        "alias": None,
        "base_model": None,
        "added_at": rows.moment(item.added_at),
    }
    _take_over(row, item, file_key)
    return row


def _take_over(row: rows.Values, item: Record, file_key: int | None) -> None:
    if item.version is None and row["version_id"] is not None:
        return
    row |= {"name": item.name, "name_key": rows.key(item.name), "stem_key": rows.key(stem(item.name))}
    row["origin"] = item.origin
    kind = item.model_type or ModelType.of(item.facts.kind)
    if kind is not ModelType.OTHER or "type" not in row:
        row |= {"type": kind.value, "type_raw": kind.value}
    if item.version is not None:
        row |= {"model_id": item.version.model.id, "version_id": item.version.id}
        row["file_key"] = file_key if file_key is not None else row["file_key"]


def stem(name: str) -> str:
    """A file name without its extension."""
    head, dot, tail = name.rpartition(".")
    return head if dot and head and tail.isalnum() else name
