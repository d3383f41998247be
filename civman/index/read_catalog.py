"""Read the saved CivitAI metadata with the standard `sqlite3` module."""

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from civman.domain.catalog import Model, ModelId, ModelVersion, VersionId
from civman.index import rows
from civman.index.database import Reader
from civman.index.index_types import SeenFile, Snapshot


def version(reader: Reader, version_id: VersionId) -> ModelVersion | None:
    """Return a version with its model, files and previews as they were last saved, or None."""
    with reader.snapshot():
        row = reader.one(f"SELECT model_id, {rows.VERSION_COLUMNS} FROM version WHERE id = ?", [version_id])  # noqa: S608
        found = None if row is None else _model(reader, row[0])
        return None if row is None or found is None else _version(reader, row[1:], found)


def model(reader: Reader, model_id: ModelId) -> tuple[Model, tuple[ModelVersion, ...]] | None:
    """A model with all its versions: first those listed on its page, in that order, then the rest, highest id first."""
    with reader.snapshot():
        if (found := _model(reader, model_id)) is None:
            return None
        order = "ORDER BY position IS NULL, position, id DESC"
        sql = f"SELECT {rows.VERSION_COLUMNS} FROM version WHERE model_id = ? {order}"  # noqa: S608
        return found, tuple(_version(reader, row, found) for row in reader.all(sql, [model_id]))


def preview_levels(reader: Reader, version_ids: Iterable[VersionId]) -> dict[VersionId, int]:
    """Map versions to the content rating of their first image. Previews with a higher rating are not stored."""
    sql = (
        "SELECT version_id, nsfw_level, min(position) FROM preview WHERE media = 'image' "
        "AND version_id IN (SELECT value FROM json_each(?)) GROUP BY version_id"
    )
    return {VersionId(number): level for number, level, _ in reader.all(sql, [json.dumps(list(version_ids))])}


def snapshot(reader: Reader, table: str, number: int) -> Snapshot | None:
    """Return when and from where a row of `table` ("model" or "version") was saved; None if there is no such row."""
    sql = f"SELECT fetched_at, source, gone_at, gone_status FROM {table} WHERE id = ?"  # noqa: S608
    if (row := reader.one(sql, [number])) is None:
        return None
    fetched_at, source, gone_at, gone_status = row
    return Snapshot(datetime.fromisoformat(fetched_at), source, rows.when(gone_at), gone_status)


def seen_files(reader: Reader, paths: Iterable[str] | None) -> dict[str, SeenFile]:
    """Map the paths of files outside the store to their saved SHA-256 and stat information."""
    sql = "SELECT path, device, inode, size_bytes, mtime_ns, sha256 FROM seen_file"
    if paths is None:
        found = reader.all(sql)
    else:
        found = reader.all(f"{sql} WHERE path IN (SELECT value FROM json_each(?))", [json.dumps(list(paths))])  # noqa: S608
    return {
        path: SeenFile(path, int(device), int(inode), size, mtime_ns, sha256)
        for path, device, inode, size, mtime_ns, sha256 in found
    }


def _model(reader: Reader, model_id: int) -> Model | None:
    row = reader.one(f"SELECT {rows.MODEL_COLUMNS} FROM model WHERE id = ?", [model_id])  # noqa: S608
    return None if row is None else rows.model_from(row)


def _version(reader: Reader, row: tuple[Any, ...], of_model: Model) -> ModelVersion:
    listed = "version_id = ? AND position IS NOT NULL ORDER BY position"
    files = reader.all(f"SELECT {rows.FILE_COLUMNS} FROM file WHERE {listed}", [row[0]])  # noqa: S608
    previews = reader.all(f"SELECT {rows.PREVIEW_COLUMNS} FROM preview WHERE {listed}", [row[0]])  # noqa: S608
    return rows.version_from(row, of_model, files, previews)
