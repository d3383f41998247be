"""Save CivitAI metadata. Nothing is ever deleted, and less complete data never replaces more complete data.

- An incomplete description of a model never overwrites a complete one, and older data never overwrites newer data.
- Fields that some endpoints leave out keep their old value if the newer response has None.
- An empty list of files or previews (an archived or removed model) leaves the old ones in place.
- Files that a newer response does not list stay as rows without a position.
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

from civman.domain.catalog import Model, ModelFile, ModelType, ModelVersion
from civman.index import rows, search_rows, write_notes
from civman.index.index_types import Source
from civman.index.transactions import IN_LIST, Connection, insert, listed, named, scalar, update

_NOT_IN_EVERY_ANSWER = (
    "base_model", "base_model_type", "published_at", "description", "air", "usage_control", "status", "availability",
    "download_url", "download_count", "thumbs_up_count",
)  # fmt: skip
_NOT_IN_EVERY_FILE = (
    "size_bytes", "sha256", "blake3", "crc32", "autov1", "autov2", "autov3", "format", "precision", "size_class",
    "quant_type", "scan_message",
)  # fmt: skip
_FILE_TYPES = {"VAE": ModelType.VAE, "Text Encoder": ModelType.TEXT_ENCODER}
_NO_WEIGHTS = ("Config", "Training Data")
_REPEATED = (
    "SELECT a.id, a.name, a.alias, a.version_id, a.type, a.type_raw, m.name AS model_name, m.creator AS model_creator, "
    "m.tags AS model_tags, m.type AS model_type, m.type_raw AS model_type_raw, v.name AS version_name, "
    "v.base_model AS version_base_model, v.trained_words AS version_trained_words, f.type AS file_type FROM asset a "
    "LEFT JOIN model m ON m.id = a.model_id LEFT JOIN version v ON v.id = a.version_id "
    "LEFT JOIN file f ON f.key = a.file_key"
)


def remember(
    connection: Connection, model: Model, versions: Sequence[ModelVersion], *, fetched_at: datetime, source: Source
) -> None:
    """Save a model and some of its versions as CivitAI returned them at `fetched_at`."""
    before = _known(connection, "version", [version.id for version in versions])
    _remember_model(connection, model, fetched_at=fetched_at, source=source)
    add_missing(connection, [(version, fetched_at) for version in versions], source=source)
    for version in versions:
        if version.id in before and before[version.id]["fetched_at"] <= rows.moment(fetched_at):
            _renew_version(connection, version, before[version.id], fetched_at=fetched_at, source=source)
    _place(connection, model, versions, source=source)
    refresh_assets(connection, "a.model_id = ?", model.id)


def add_missing(connection: Connection, versions: Iterable[tuple[ModelVersion, datetime]], *, source: Source) -> None:
    """Add the models and versions that have no row yet. Of the existing rows, only incomplete models are updated."""
    given = {version.id: (version, at) for version, at in versions}
    known_models = _known(connection, "model", {version.model.id for version, _ in given.values()})
    known = _known(connection, "version", given)
    models = {version.model.id: (version.model, at) for version, at in given.values()}
    for number, (model, at) in models.items():
        if number in known_models and model.is_complete and not known_models[number]["is_complete"]:
            _remember_model(connection, model, fetched_at=at, source=source)
    insert(
        connection,
        "model",
        [
            rows.model_values(model) | {"fetched_at": rows.moment(at), "source": source.value}
            for number, (model, at) in models.items()
            if number not in known_models
        ],
    )
    missing = [(version, at) for number, (version, at) in given.items() if number not in known]
    insert(
        connection,
        "version",
        [
            rows.version_values(version) | {"fetched_at": rows.moment(at), "source": source.value, "position": None}
            for version, at in missing
        ],
    )
    insert(connection, "file", [row for version, _ in missing for row in _file_rows(version)])
    insert(connection, "preview", [row for version, _ in missing for row in _preview_rows(version)])


def mark_gone(connection: Connection, table: str, number: int, *, status: int, at: datetime) -> bool:
    """Mark the row of a "model" or "version" as no longer on CivitAI. Returns whether the row exists."""
    write_notes.sidecar_is_due(
        connection,
        [asset for (asset,) in connection.execute(f"SELECT id FROM asset WHERE {table}_id = ?", (number,))],  # noqa: S608
    )
    gone = {"id": number, "gone_at": rows.moment(at), "gone_status": status}
    return update(connection, table, ("gone_at", "gone_status"), "id = :id", [gone]) > 0


def file_keys(connection: Connection, files: Iterable[tuple[ModelVersion, ModelFile]]) -> dict[tuple[int, str], int]:
    """Map (version id, `file_identity`) of each file to the key of its row; missing rows are added."""
    wanted = {(version.id, file_identity(file)): file for version, file in files}
    keys = _file_keys(connection, {version_id for version_id, _ in wanted})
    extra = [
        rows.file_values(file) | {"version_id": version_id, "position": None}
        for (version_id, identity), file in wanted.items()
        if (version_id, identity) not in keys
    ]
    if extra:
        insert(connection, "file", extra)
        keys = _file_keys(connection, {version_id for version_id, _ in wanted})
    return keys


def file_identity(file: ModelFile) -> str:
    """What identifies a file within its version: CivitAI's file id, or the type and name if there is none."""
    return _identity(file.id, file.type, file.name)


def refresh_assets(connection: Connection, condition: str, parameter: object) -> None:
    """Update the columns that assets copy from their model and version, and their search words.

    `condition` selects the assets. It may use the tables in `_REPEATED`, where `a` is the asset.
    """
    found = named(connection, f"{_REPEATED} WHERE {condition}", [parameter])
    changes = [{"id": row["id"], **_repeated(row)} for row in found]
    if changes:
        update(connection, "asset", [name for name in changes[0] if name != "id"], "id = :id", changes)
        ids = [row["id"] for row in found]
        search_rows.refresh(connection, ids)
        write_notes.sidecar_is_due(connection, ids)


def _repeated(row: Any) -> rows.Values:
    kind, raw = row["type"], row["type_raw"]
    if row["version_id"] is not None:
        kind, raw = row["model_type"], row["model_type_raw"]
        if row["file_type"] in _NO_WEIGHTS or row["file_type"] in _FILE_TYPES:
            kind, raw = _FILE_TYPES.get(row["file_type"], ModelType.OTHER).value, row["file_type"]
    words = [row["name"], row["alias"], row["model_name"], row["model_creator"], row["version_name"]]
    words += [*rows.from_words(row["model_tags"] or "[]"), *rows.from_words(row["version_trained_words"] or "[]")]
    words += [row["version_base_model"]]
    return {
        "type": kind,
        "type_raw": raw,
        "base_model": row["version_base_model"],
        "model_key": rows.key(row["model_name"] or ""),
        "search_text": "\n".join(rows.key(word) for word in words if word),
    }


def _remember_model(connection: Connection, model: Model, *, fetched_at: datetime, source: Source) -> None:
    values = rows.model_values(model) | {"fetched_at": rows.moment(fetched_at), "source": source.value}
    old = _known(connection, "model", [model.id]).get(model.id)
    if old is None:
        insert(connection, "model", [values])
        return
    if (model.is_complete, values["fetched_at"]) < (bool(old["is_complete"]), old["fetched_at"]):
        return
    if old["gone_at"] is not None and old["gone_at"] <= values["fetched_at"]:
        values |= {"gone_at": None, "gone_status": None}
    update(connection, "model", values, "id = :id", [values])


def _renew_version(
    connection: Connection, version: ModelVersion, old: Any, *, fetched_at: datetime, source: Source
) -> None:
    values = rows.version_values(version) | {"fetched_at": rows.moment(fetched_at), "source": source.value}
    values |= {name: old[name] for name in _NOT_IN_EVERY_ANSWER if values[name] is None}
    if old["gone_at"] is not None and old["gone_at"] <= values["fetched_at"]:
        values |= {"gone_at": None, "gone_status": None}
    update(connection, "version", values, "id = :id", [values])
    if version.files:
        _renew_files(connection, version)
    if version.previews:
        connection.execute("DELETE FROM preview WHERE version_id = ?", (version.id,))
        insert(connection, "preview", _preview_rows(version))


def _renew_files(connection: Connection, version: ModelVersion) -> None:
    free = named(connection, "SELECT * FROM file WHERE version_id = ? ORDER BY key", [version.id])
    connection.execute("UPDATE file SET position = NULL WHERE version_id = ?", (version.id,))
    for values in _file_rows(version):
        identity = _identity(values["file_id"], values["type"], values["name"])
        old = next((row for row in free if _identity(row["file_id"], row["type"], row["name"]) == identity), None)
        if old is None:
            insert(connection, "file", [values])
            continue
        free.remove(old)
        if values["sha256"] in (None, old["sha256"]):
            values |= {name: old[name] for name in _NOT_IN_EVERY_FILE if values[name] is None}
        update(connection, "file", values, "key = :key", [values | {"key": old["key"]}])


def _place(connection: Connection, model: Model, versions: Sequence[ModelVersion], *, source: Source) -> None:
    """Save the creator's order of the versions.

    Only a response with the model's whole page may change a saved order; a search response with several versions may
    only set it if there is none.
    """
    if not versions:
        return
    if source is not Source.MODEL:
        placed = "SELECT count(*) FROM version WHERE model_id = ? AND position IS NOT NULL"
        if len(versions) < 2 or scalar(connection, placed, [model.id]):
            return
    connection.execute("UPDATE version SET position = NULL WHERE model_id = ?", (model.id,))
    places = [{"id": version.id, "model": model.id, "position": place} for place, version in enumerate(versions)]
    update(connection, "version", ["position"], "id = :id AND model_id = :model", places)


def _known(connection: Connection, table: str, numbers: Collection[int]) -> dict[int, Any]:
    found = named(connection, f"SELECT * FROM {table} WHERE id {IN_LIST}", [listed(numbers)])  # noqa: S608
    return {row["id"]: row for row in found}


def _file_keys(connection: Connection, versions: Collection[int]) -> dict[tuple[int, str], int]:
    # newest first, because a later row replaces an earlier one in the result, and the oldest row must be used
    wanted = f"SELECT key, version_id, file_id, type, name FROM file WHERE version_id {IN_LIST} ORDER BY key DESC"  # noqa: S608
    found = connection.execute(wanted, (listed(versions),))
    return {(version_id, _identity(number, kind, name)): key for key, version_id, number, kind, name in found}


def _identity(number: int | None, kind: str, name: str) -> str:
    return f"{kind}/{name}" if number is None else str(number)


def _file_rows(version: ModelVersion) -> list[rows.Values]:
    return [
        rows.file_values(file) | {"version_id": version.id, "position": place}
        for place, file in enumerate(version.files)
    ]


def _preview_rows(version: ModelVersion) -> list[rows.Values]:
    return [
        rows.preview_values(preview) | {"version_id": version.id, "position": place}
        for place, preview in enumerate(version.previews)
    ]
