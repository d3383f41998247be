"""Find assets: each request becomes one SELECT statement, run with the standard `sqlite3` module."""

import json
import os
from collections.abc import Callable, Sequence

from civman.domain.base_models import label_key
from civman.domain.catalog import Asset
from civman.domain.licence import labels_not_for_sale
from civman.domain.refs import HashKind
from civman.index import rows
from civman.index.database import Reader
from civman.index.full_text_query import Understood, column_match
from civman.index.index_types import SEARCH_WEIGHTS, AssetFilter, Fits, Sort

_NEWEST_FIRST = "ORDER BY a.added_at DESC, a.id DESC"
_ORDERS = {
    Sort.RELEVANCE: "ORDER BY s.score, a.added_at DESC, a.id DESC",
    Sort.ADDED: _NEWEST_FIRST,
    Sort.NAME: "ORDER BY coalesce(nullif(a.model_key, ''), a.name_key), a.name_key, a.id",
    Sort.SIZE: "ORDER BY b.size_bytes DESC, a.id DESC",
    Sort.RATING: "ORDER BY coalesce(n.rating, 0) DESC, coalesce(n.is_favourite, 0) DESC, a.added_at DESC, a.id DESC",
    Sort.USED: "ORDER BY coalesce(a.last_used_at, '') DESC, a.added_at DESC, a.id DESC",
}
_JOINS = {
    "b": "JOIN blob b ON b.sha256 = a.blob_sha256",
    "m": "LEFT JOIN model m ON m.id = a.model_id",
    "n": "LEFT JOIN annotation n ON n.asset_id = a.id",
}
_SCORE = f"bm25(search, {', '.join(map(str, SEARCH_WEIGHTS))})"
_LABELS = (
    "SELECT base_model FROM (SELECT DISTINCT base_model FROM asset) "
    "WHERE replace(replace(replace(lower(base_model), ' ', ''), '-', ''), '_', '') IN (SELECT value FROM json_each(?))"
)
"""Subquery for base models whose normalised name (see `label_key`) is in a list. It lets SQLite use the index on
`base_model`.
"""
FIT_ROW = (
    "EXISTS (SELECT 1 FROM fit f WHERE f.checkpoint_sha256 = ? AND f.part_sha256 = a.blob_sha256"
    " AND f.labels = ? || coalesce(a.base_model, '') AND f.rules = ?"
)
"""The SQL condition that an asset has a saved compatibility verdict; its parameters come from `fit_key`.

The parenthesis is left open, so that conditions on the verdict can be added.
"""
Condition = tuple[str, list[object]]


def fit_key(fits: Fits) -> list[object]:
    """The parameters of FIT_ROW. A verdict is only valid for the base models that both files had when it was saved."""
    return [fits.checkpoint, f"{fits.label}\n", fits.rules]


def without_verdict(reader: Reader, fits: Fits) -> list[Asset]:
    """Assets, except checkpoints, that have no saved compatibility verdict for the checkpoint of `fits`."""
    condition = f"NOT {FIT_ROW}) AND coalesce(b.kind, '') <> 'checkpoint' AND a.type <> 'Checkpoint'"
    return where(reader, condition, fit_key(fits))


def select(
    reader: Reader,
    wanted: AssetFilter,
    asked: Understood,
    *,
    sort: Sort | None = None,
    limit: int | None = None,
    offset: int = 0,
) -> list[Asset]:
    """Assets that match the filter, in order. Ties are sorted by row id, so that pages neither skip nor repeat rows.

    `asked` is the parsed form of `wanted.words`. The rows of the page are chosen before other tables are joined, so
    that the newest rows come straight from an index.
    """
    sql = f"SELECT {rows.ASSET_COLUMNS} FROM {rows.ASSET_TABLES}"  # noqa: S608  only names of ours
    with reader.snapshot():
        order = _ORDERS[sort or (Sort.RELEVANCE if asked.match else Sort.ADDED)]
        source, where, parameters = _condition(wanted, asked, order)
        if order == _NEWEST_FIRST and source == "asset a" and limit is None and not offset:
            return _assets(reader, f"{sql} WHERE {where} {_NEWEST_FIRST}", parameters)
        page = f"SELECT a.id FROM {source} WHERE {where} {order} LIMIT ? OFFSET ?"  # noqa: S608
        ids = [number for (number,) in reader.all(page, [*parameters, _limit(limit), offset])]
        # CROSS JOIN makes SQLite read the left table first, which keeps the page's order
        paged = f"json_each(?) j CROSS JOIN {rows.ASSET_TABLES.replace('asset a', 'asset a ON a.id = j.value', 1)}"
        return _assets(reader, f"SELECT {rows.ASSET_COLUMNS} FROM {paged} ORDER BY j.key", [json.dumps(ids)])  # noqa: S608


def count(reader: Reader, wanted: AssetFilter, asked: Understood) -> int:
    """The number of assets that match the filter; `asked` is the parsed form of `wanted.words`."""
    source, where, parameters = _condition(wanted, asked, "")
    row = reader.one(f"SELECT count(*) FROM {source} WHERE {where}", parameters)  # noqa: S608
    return int(row[0]) if row else 0


def where(reader: Reader, condition: str, parameters: Sequence[object]) -> list[Asset]:
    """Assets that satisfy the SQL `condition`, newest first.

    `condition` may use the table aliases a (asset), b (blob), f (file), v (version) and m (model).
    """
    sql = f"SELECT {rows.ASSET_COLUMNS} FROM {rows.ASSET_TABLES} WHERE {condition} {_NEWEST_FIRST}"  # noqa: S608
    return _assets(reader, sql, parameters)


def by_digest(reader: Reader, digest: str, kind: HashKind | None) -> list[Asset]:
    """Assets with this digest, of the given kind, or of any kind if `kind` is None. A prefix of a SHA-256 is enough."""
    tests: list[str] = []
    if kind in (None, HashKind.SHA256, HashKind.AUTOV2):
        tests.append("(b.sha256 >= ?1 AND b.sha256 < ?1 || 'g')")
    if kind is None:
        tests += [f"b.{name} = ?1" for name in ("blake3", "crc32", "autov1", "autov3")]
    elif kind not in (HashKind.SHA256, HashKind.AUTOV2):
        tests.append(f"b.{kind.value} = ?1")
    return where(reader, f"({' OR '.join(tests)})", [digest.lower()]) if digest else []


def by_name(reader: Reader, name: str) -> list[Asset]:
    """Assets that `name` may refer to.

    The name is compared with the alias, the file name with or without extension, the model name, the name stored by the
    trainer, and prefixes and parts of names, in this order. The first comparison with a match decides; if several
    assets match, the name is ambiguous.
    """
    wanted = rows.key(name)
    if not wanted:
        return []
    part = _like(wanted)
    ways: list[Condition] = [
        ("a.alias = ?", [name.strip()]),
        ("a.name_key = ? OR a.stem_key = ?", [wanted, wanted]),
        ("a.model_key = ?", [wanted]),
        ("lower(b.output_name) = ?", [name.strip().lower()]),
        (
            "a.stem_key LIKE ? ESCAPE '\\' OR a.model_key LIKE ? ESCAPE '\\' OR lower(a.alias) LIKE ? ESCAPE '\\'",
            [f"{part}%"] * 3,
        ),
        ("a.stem_key LIKE ? ESCAPE '\\' OR a.model_key LIKE ? ESCAPE '\\'", [f"%{part}%"] * 2),
    ]
    return next((found for condition, given in ways if (found := where(reader, condition, given))), [])


def _condition(wanted: AssetFilter, asked: Understood, order: str) -> tuple[str, str, list[object]]:
    """Return the tables that filter and order need (often only `asset`), the SQL condition and its parameters."""
    tests: list[str] = ["1"]
    given: list[object] = []

    def require(test: str, *values: object) -> None:
        tests.append(test)
        given.extend(values)

    def any_of(column: str, values: Sequence[str], chosen: str = "SELECT value FROM json_each(?)") -> None:
        if values:
            require(f"{column} IN ({chosen})", json.dumps(values))

    any_of("a.type", [member.value for member in wanted.types])
    any_of("a.base_model", [label_key(name) for name in wanted.base_models], _LABELS)
    any_of("b.architecture", wanted.architectures)
    any_of("b.kind", wanted.kinds)
    if wanted.creator is not None:
        require("a.model_id IN (SELECT id FROM model WHERE creator_key = ?)", rows.key(wanted.creator))
    if wanted.model_id is not None:
        require("a.model_id = ?", wanted.model_id)
    for part in asked.parts:
        require("a.search_text LIKE ? ESCAPE '\\'", f"%{_like(rows.key(part))}%")
    for tag in wanted.tags:
        require("a.id IN (SELECT rowid FROM search WHERE search MATCH ?)", column_match("tags", tag) or '""')
    if wanted.fits is not None:
        condition, parameters = _fitting(wanted.fits)
        require(condition, *parameters)
    _require_facts(wanted, require)
    where = " AND ".join(tests)
    source = "asset a"
    for alias, joined in _JOINS.items():
        if f"{alias}." in where or f"{alias}." in order:
            source += f" {joined}"
    if asked.match:
        score = f"{_SCORE} AS score" if "s.score" in order else "0"
        found = f"SELECT rowid AS id, {score} FROM search WHERE search MATCH ?"  # noqa: S608
        source += f" JOIN ({found}) s ON s.id = a.id"
        given.insert(0, asked.match)
    return source, where, given


def _fitting(fits: Fits) -> tuple[str, list[object]]:
    """Return the SQL condition for files that are compatible with a checkpoint, and its parameters."""
    if fits.checkpoint:
        accepted = " AND f.verdict IN (SELECT value FROM json_each(?)))"
        return FIT_ROW + accepted, [*fit_key(fits), json.dumps(fits.verdicts)]
    is_alike = "b.architecture IN (SELECT value FROM json_each(?))"
    is_labelled = f"b.architecture IN ('', 'unknown') AND a.base_model IN ({_LABELS})"
    labels = [label_key(name) for name in fits.base_models]
    return f"({is_alike} OR {is_labelled})", [json.dumps(fits.architectures), json.dumps(labels)]


def _require_facts(wanted: AssetFilter, require: Callable[..., None]) -> None:
    if wanted.is_favourite is not None:
        require("coalesce(n.is_favourite, 0) = ?", wanted.is_favourite)
    if wanted.min_rating is not None:
        require("n.rating >= ?", wanted.min_rating)
    if wanted.larger_bytes is not None:
        require("b.size_bytes >= ?", wanted.larger_bytes)
    if wanted.smaller_bytes is not None:
        require("b.size_bytes <= ?", wanted.smaller_bytes)
    if wanted.since is not None:
        require("a.added_at >= ?", rows.moment(wanted.since))
    if wanted.is_commercial:
        require(
            f"m.commercial_use LIKE '%\"Image\"%' AND (a.base_model IS NULL OR a.base_model NOT IN ({_LABELS}))",
            json.dumps(labels_not_for_sale()),
        )
    if wanted.is_safe:
        require("m.nsfw_level BETWEEN 1 AND 3")


def _assets(reader: Reader, sql: str, parameters: Sequence[object]) -> list[Asset]:
    folder = str(reader.folder) if str(reader.folder).endswith(os.sep) else f"{reader.folder}{os.sep}"
    return [rows.asset_from(row, folder) for row in reader.all(sql, parameters)]


def _like(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _limit(limit: int | None) -> int:
    return -1 if limit is None else limit
