"""Finding assets: what is asked becomes one SELECT, on SQLite's own module."""

import json
import os
from collections.abc import Sequence

from civman.domain.catalog import Asset
from civman.domain.refs import HashKind
from civman.index import rows
from civman.index.database import Reader
from civman.index.values import EVERYTHING, AssetFilter

_NEWEST_FIRST = "ORDER BY a.added_at DESC, a.id DESC"
_LABELS = (
    "SELECT base_model FROM (SELECT DISTINCT base_model FROM asset) "
    "WHERE lower(base_model) IN (SELECT value FROM json_each(?))"
)
"""CivitAI's labels in any case, so that the index on them still serves."""
Condition = tuple[str, list[object]]


def select(
    reader: Reader, wanted: AssetFilter = EVERYTHING, *, limit: int | None = None, offset: int = 0
) -> list[Asset]:
    """Assets that pass the filter, newest first; equal times in order of entry, so that pages neither skip nor repeat.

    The rows of the page are chosen before anything is joined to them: an index gives the newest at once.
    """
    where, parameters = _condition(wanted)
    page = f"SELECT a.id FROM {_narrow(wanted)} WHERE {where} {_NEWEST_FIRST} LIMIT ? OFFSET ?"  # noqa: S608
    sql = f"SELECT {rows.ASSET_COLUMNS} FROM {rows.ASSET_TABLES}"  # noqa: S608  only names of ours
    if limit is None and not offset:
        return _assets(reader, f"{sql} WHERE {where} {_NEWEST_FIRST}", parameters)
    return _assets(reader, f"{sql} WHERE a.id IN ({page}) {_NEWEST_FIRST}", [*parameters, _limit(limit), offset])


def count(reader: Reader, wanted: AssetFilter = EVERYTHING) -> int:
    """How many assets pass the filter."""
    where, parameters = _condition(wanted)
    row = reader.one(f"SELECT count(*) FROM {_narrow(wanted)} WHERE {where}", parameters)  # noqa: S608
    return int(row[0]) if row else 0


def where(reader: Reader, condition: str, parameters: Sequence[object]) -> list[Asset]:
    """Assets for which `condition` holds, newest first. The condition may name a(sset), b(lob), f(ile), v, m."""
    sql = f"SELECT {rows.ASSET_COLUMNS} FROM {rows.ASSET_TABLES} WHERE {condition} {_NEWEST_FIRST}"  # noqa: S608
    return _assets(reader, sql, parameters)


def by_digest(reader: Reader, digest: str, kind: HashKind | None) -> list[Asset]:
    """Assets with this digest: of `kind`, or of any kind it may be. Beginnings of a SHA-256 count."""
    tests: list[str] = []
    if kind in (None, HashKind.SHA256, HashKind.AUTOV2):
        tests.append("(b.sha256 >= ?1 AND b.sha256 < ?1 || 'g')")
    if kind is None:
        tests += [f"b.{name} = ?1" for name in ("blake3", "crc32", "autov1", "autov3")]
    elif kind not in (HashKind.SHA256, HashKind.AUTOV2):
        tests.append(f"b.{kind.value} = ?1")
    return where(reader, f"({' OR '.join(tests)})", [digest.lower()]) if digest else []


def by_name(reader: Reader, name: str) -> list[Asset]:
    """Assets called `name`: by alias, else file name with or without ending, model name, beginning, any part.

    The first way that finds any decides; several assets mean that the name does not tell them apart.
    """
    wanted = rows.key(name)
    if not wanted:
        return []
    part = _like(wanted)
    ways: list[Condition] = [
        ("a.alias = ?", [name.strip()]),
        ("a.name_key = ? OR a.stem_key = ?", [wanted, wanted]),
        ("a.model_key = ?", [wanted]),
        (
            "a.stem_key LIKE ? ESCAPE '\\' OR a.model_key LIKE ? ESCAPE '\\' OR lower(a.alias) LIKE ? ESCAPE '\\'",
            [f"{part}%"] * 3,
        ),
        ("a.stem_key LIKE ? ESCAPE '\\' OR a.model_key LIKE ? ESCAPE '\\'", [f"%{part}%"] * 2),
    ]
    return next((found for condition, given in ways if (found := where(reader, condition, given))), [])


def _condition(wanted: AssetFilter) -> Condition:
    tests: list[str] = ["1"]
    given: list[object] = []

    def any_of(column: str, values: Sequence[str], chosen: str = "SELECT value FROM json_each(?)") -> None:
        if values:
            tests.append(f"{column} IN ({chosen})")
            given.append(json.dumps(values))

    any_of("a.type", [member.value for member in wanted.types])
    any_of("a.base_model", [name.lower() for name in wanted.base_models], _LABELS)
    any_of("b.architecture", wanted.architectures)
    any_of("b.kind", wanted.kinds)
    if wanted.creator is not None:
        tests.append("a.model_id IN (SELECT id FROM model WHERE creator_key = ?)")
        given.append(rows.key(wanted.creator))
    if wanted.model_id is not None:
        tests.append("a.model_id = ?")
        given.append(wanted.model_id)
    for word in wanted.words:
        tests.append("a.search_text LIKE ? ESCAPE '\\'")
        given.append(f"%{_like(rows.key(word))}%")
    if wanted.fits is not None:
        tests.append(
            "(b.architecture IN (SELECT value FROM json_each(?)) OR b.architecture IN ('', 'unknown')"
            " AND a.base_model IN (SELECT value FROM json_each(?)))"
        )
        given += [json.dumps(wanted.fits.architectures), json.dumps(wanted.fits.base_models)]
    return " AND ".join(tests), given


def _narrow(wanted: AssetFilter) -> str:
    """The tables a filter asks about: most ask only about assets."""
    asks_blob = wanted.architectures or wanted.kinds or wanted.fits is not None
    return "asset a JOIN blob b ON b.sha256 = a.blob_sha256" if asks_blob else "asset a"


def _assets(reader: Reader, sql: str, parameters: Sequence[object]) -> list[Asset]:
    folder = str(reader.folder) if str(reader.folder).endswith(os.sep) else f"{reader.folder}{os.sep}"
    return [rows.asset_from(row, folder) for row in reader.all(sql, parameters)]


def _like(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _limit(limit: int | None) -> int:
    return -1 if limit is None else limit
