"""Writes what CivitAI says. Nothing is ever deleted, and a poorer answer never replaces a richer one.

- A partial description of a model never touches a complete one, an older answer never a newer one.
- Fields that some endpoints leave out keep their old value when a newer answer has None.
- An empty list of files or previews (an archived or taken down model) leaves the old ones.
- Files that a newer answer does not list stay as rows without a position.
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Table, bindparam, func, insert, select, update

from civman.domain.catalog import Model, ModelFile, ModelType, ModelVersion
from civman.index import annotating, rows, searching
from civman.index.tables import ASSET, FILE, MODEL, PREVIEW, VERSION
from civman.index.values import Source

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


def remember(
    connection: Connection, model: Model, versions: Sequence[ModelVersion], *, fetched_at: datetime, source: Source
) -> None:
    """Saves a model and some of its versions as CivitAI told them at `fetched_at`."""
    before = _known(connection, VERSION, [version.id for version in versions])
    _remember_model(connection, model, fetched_at=fetched_at, source=source)
    add_missing(connection, [(version, fetched_at) for version in versions], source=source)
    for version in versions:
        if version.id in before and before[version.id]["fetched_at"] <= rows.moment(fetched_at):
            _renew_version(connection, version, before[version.id], fetched_at=fetched_at, source=source)
    _place(connection, model, versions, source=source)
    refresh_assets(connection, ASSET.c.model_id == model.id)


def add_missing(connection: Connection, versions: Iterable[tuple[ModelVersion, datetime]], *, source: Source) -> None:
    """Adds the models and versions that have no row yet, with the time of each; others stay as they are."""
    given = {version.id: (version, at) for version, at in versions}
    known_models = _known(connection, MODEL, {version.model.id for version, _ in given.values()})
    known = _known(connection, VERSION, given)
    models = {version.model.id: (version.model, at) for version, at in given.values()}
    for number, (model, at) in models.items():
        if number in known_models and model.is_complete and not known_models[number]["is_complete"]:
            _remember_model(connection, model, fetched_at=at, source=source)
    _insert(
        connection,
        MODEL,
        [
            rows.model_values(model) | {"fetched_at": rows.moment(at), "source": source.value}
            for number, (model, at) in models.items()
            if number not in known_models
        ],
    )
    missing = [(version, at) for number, (version, at) in given.items() if number not in known]
    _insert(
        connection,
        VERSION,
        [
            rows.version_values(version) | {"fetched_at": rows.moment(at), "source": source.value, "position": None}
            for version, at in missing
        ],
    )
    _insert(connection, FILE, [row for version, _ in missing for row in _file_rows(version)])
    _insert(connection, PREVIEW, [row for version, _ in missing for row in _preview_rows(version)])


def mark_gone(connection: Connection, table: Table, number: int, *, status: int, at: datetime) -> bool:
    """Notes on the row of a model or version that CivitAI no longer has it. Gives whether there is such a row."""
    change = update(table).where(table.c.id == number).values(gone_at=rows.moment(at), gone_status=status)
    held = ASSET.c.model_id if table is MODEL else ASSET.c.version_id
    annotating.sidecar_is_due(connection, connection.scalars(select(ASSET.c.id).where(held == number)))
    return connection.execute(change).rowcount > 0


def file_keys(connection: Connection, files: Iterable[tuple[ModelVersion, ModelFile]]) -> dict[tuple[int, str], int]:
    """Key of each file's row, by version and `file_identity`; rows that are missing are added."""
    wanted = {(version.id, file_identity(file)): file for version, file in files}
    keys = _file_keys(connection, {version_id for version_id, _ in wanted})
    extra = [
        rows.file_values(file) | {"version_id": version_id, "position": None}
        for (version_id, identity), file in wanted.items()
        if (version_id, identity) not in keys
    ]
    if extra:
        _insert(connection, FILE, extra)
        keys = _file_keys(connection, {version_id for version_id, _ in wanted})
    return keys


def file_identity(file: ModelFile) -> str:
    """By what one file of a version is told from another: CivitAI's id, or type and name where there is none."""
    return _identity(file.id, file.type, file.name)


def refresh_assets(connection: Connection, condition: Any) -> None:
    """Writes anew what assets repeat from their version, and the text by which they are found."""
    columns = [
        *(ASSET.c[name] for name in ("id", "name", "alias", "version_id", "type", "type_raw")),
        *(MODEL.c[name].label(f"model_{name}") for name in ("name", "creator", "tags", "type", "type_raw")),
        *(VERSION.c[name].label(f"version_{name}") for name in ("name", "base_model", "trained_words")),
        FILE.c.type.label("file_type"),
    ]
    joined = ASSET.outerjoin(MODEL, MODEL.c.id == ASSET.c.model_id).outerjoin(
        VERSION, VERSION.c.id == ASSET.c.version_id
    )
    joined = joined.outerjoin(FILE, FILE.c.key == ASSET.c.file_key)
    found = connection.execute(select(*columns).select_from(joined).where(condition)).mappings().all()
    changes = [{"asset_id": row["id"], **_repeated(row)} for row in found]
    if changes:
        names = [name for name in changes[0] if name != "asset_id"]
        change = update(ASSET).where(ASSET.c.id == bindparam("asset_id"))
        connection.execute(change.values({name: bindparam(name) for name in names}), changes)
        ids = [row["id"] for row in found]
        searching.refresh(connection, ids)
        annotating.sidecar_is_due(connection, ids)


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
    old = _known(connection, MODEL, [model.id]).get(model.id)
    if old is None:
        _insert(connection, MODEL, [values])
        return
    if (model.is_complete, values["fetched_at"]) < (bool(old["is_complete"]), old["fetched_at"]):
        return
    if old["gone_at"] is not None and old["gone_at"] <= values["fetched_at"]:
        values |= {"gone_at": None, "gone_status": None}
    connection.execute(update(MODEL).where(MODEL.c.id == model.id).values(values))


def _renew_version(
    connection: Connection, version: ModelVersion, old: Any, *, fetched_at: datetime, source: Source
) -> None:
    values = rows.version_values(version) | {"fetched_at": rows.moment(fetched_at), "source": source.value}
    values |= {name: old[name] for name in _NOT_IN_EVERY_ANSWER if values[name] is None}
    if old["gone_at"] is not None and old["gone_at"] <= values["fetched_at"]:
        values |= {"gone_at": None, "gone_status": None}
    connection.execute(update(VERSION).where(VERSION.c.id == version.id).values(values))
    if version.files:
        _renew_files(connection, version)
    if version.previews:
        connection.execute(PREVIEW.delete().where(PREVIEW.c.version_id == version.id))
        _insert(connection, PREVIEW, _preview_rows(version))


def _renew_files(connection: Connection, version: ModelVersion) -> None:
    of_version = FILE.c.version_id == version.id
    held = connection.execute(select(FILE).where(of_version).order_by(FILE.c.key)).mappings().all()
    connection.execute(update(FILE).where(of_version).values(position=None))
    free = list(held)
    for values in _file_rows(version):
        identity = _identity(values["file_id"], values["type"], values["name"])
        old = next((row for row in free if _identity(row["file_id"], row["type"], row["name"]) == identity), None)
        if old is None:
            _insert(connection, FILE, [values])
            continue
        free.remove(old)
        if values["sha256"] in (None, old["sha256"]):
            values |= {name: old[name] for name in _NOT_IN_EVERY_FILE if values[name] is None}
        connection.execute(update(FILE).where(FILE.c.key == old["key"]).values(values))


def _place(connection: Connection, model: Model, versions: Sequence[ModelVersion], *, source: Source) -> None:
    """Keeps the creator's order. Only a whole page may change it; other answers begin one where there is none."""
    of_model = VERSION.c.model_id == model.id
    if not versions:
        return
    if source is not Source.MODEL:
        placed = select(func.count()).select_from(VERSION).where(of_model, VERSION.c.position.is_not(None))
        if len(versions) < 2 or connection.scalar(placed):
            return
    connection.execute(update(VERSION).where(of_model).values(position=None))
    change = update(VERSION).where(VERSION.c.id == bindparam("version"), of_model).values(position=bindparam("place"))
    connection.execute(change, [{"version": version.id, "place": place} for place, version in enumerate(versions)])


def _known(connection: Connection, table: Table, numbers: Collection[int]) -> dict[int, Any]:
    found = connection.execute(select(table).where(table.c.id.in_(list(numbers)))).mappings()
    return {row["id"]: row for row in found}


def _file_keys(connection: Connection, versions: Collection[int]) -> dict[tuple[int, str], int]:
    columns = (FILE.c.key, FILE.c.version_id, FILE.c.file_id, FILE.c.type, FILE.c.name)
    # Newest first, so that of two rows with one identity the older one counts.
    found = connection.execute(
        select(*columns).where(FILE.c.version_id.in_(list(versions))).order_by(FILE.c.key.desc())
    )
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


def _insert(connection: Connection, table: Table, values: Sequence[rows.Values]) -> None:
    if values:
        connection.execute(insert(table), values)
