"""Maintain the words by which assets are found: one row of the FTS5 table `search` per asset.

These rows are written in the same transaction as the rows they are derived from, and can be rebuilt at any time.
"""

import html
import json
import re
from collections.abc import Iterable, Sequence

from civman.index.index_types import SEARCH_COLUMNS
from civman.index.transactions import IN_LIST, Connection, listed

_TAG = re.compile(r"<(script|style)\b.*?</\1\s*>|<[^>]*>", re.IGNORECASE | re.DOTALL)
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[A-Za-z])(?=[0-9])")
_SOURCES = (
    "SELECT a.id, a.name, m.name, v.name, a.alias, v.trained_words, b.trigger_words, n.trigger_words, m.tags, n.tags, "
    "m.creator, a.base_model, n.note, m.description, v.description FROM asset a "
    "JOIN blob b ON b.sha256 = a.blob_sha256 LEFT JOIN version v ON v.id = a.version_id "
    "LEFT JOIN model m ON m.id = a.model_id LEFT JOIN annotation n ON n.asset_id = a.id"
)
_CHUNK = 1000


def refresh(connection: Connection, ids: Iterable[int]) -> None:
    """Update the search words of these assets after their rows, models or versions have changed."""
    numbers = list(ids)
    for start in range(0, len(numbers), _CHUNK):
        some = listed(numbers[start : start + _CHUNK])
        connection.execute(f"DELETE FROM search WHERE rowid {IN_LIST}", (some,))  # noqa: S608
        _add(connection, f"{_SOURCES} WHERE a.id {IN_LIST}", (some,))


def forget(connection: Connection, number: int) -> None:
    """Remove the search words of an asset that is being removed."""
    connection.execute("DELETE FROM search WHERE rowid = ?", (number,))


def refill(connection: Connection) -> None:
    """Rebuild the whole table from the rows and optimise it."""
    connection.execute("DELETE FROM search")
    _add(connection, _SOURCES, ())
    connection.execute("INSERT INTO search (search) VALUES ('optimize')")


def refill_if_empty(connection: Connection) -> None:
    """Rebuild the search table if assets are missing from it after a migration. Do nothing if there is no table."""
    is_there = "SELECT 1 FROM sqlite_master WHERE name = 'search'"
    if connection.execute(is_there).fetchone() is None:
        return
    lacking = "SELECT 1 FROM asset WHERE id NOT IN (SELECT id FROM search_docsize) LIMIT 1"
    if connection.execute(lacking).fetchone() is not None:
        refill(connection)


def plain_text(markup: str | None) -> str:
    """Extract the plain text of a creator's HTML description.

    >>> plain_text("<p>Use <b>0.8</b> &amp; up</p>")
    'Use 0.8 & up'
    """
    if not markup:
        return ""
    return " ".join(html.unescape(_TAG.sub(" ", markup)).split())


def spread(name: str) -> str:
    """Append a name's parts to it if the name consists of several words written as one.

    >>> spread("dreamShaperXL_v10")
    'dreamShaperXL_v10 dream Shaper XL v 10'
    """
    parted = _HUMP.sub(" ", name.replace("_", " "))
    return name if parted == name.replace("_", " ") else f"{name} {parted}"


def _add(connection: Connection, sql: str, parameters: Sequence[object]) -> None:
    places = ", ".join("?" * (len(SEARCH_COLUMNS) + 1))
    insert = f"INSERT INTO search (rowid, {', '.join(SEARCH_COLUMNS)}) VALUES ({places})"  # noqa: S608
    found = connection.execute(sql, tuple(parameters))
    described: dict[tuple[str | None, str | None], str] = {}
    while rows := found.fetchmany(_CHUNK):
        connection.executemany(insert, [_words(row, described) for row in rows])


def _words(row: Sequence[str | None], described: dict[tuple[str | None, str | None], str]) -> tuple[object, ...]:
    (number, name, model, version, alias, trained, found, own, tags, own_tags,
     creator, base_model, note, about_model, about_version) = row  # fmt: skip
    about = (about_model, about_version)
    if about not in described:
        if len(described) > _CHUNK:
            described.clear()
        described[about] = " ".join(filter(None, map(plain_text, about)))
    stem, _, suffix = (name or "").rpartition(".")
    return (
        number, spread(stem or suffix), spread(model or ""), version or "", alias or "", _listed(trained, found, own),
        _listed(tags, own_tags), creator or "", base_model or "", note or "", described[about],
    )  # fmt: skip


def _listed(*lists: str | None) -> str:
    return "\n".join(dict.fromkeys(word for text in lists if text and text != "[]" for word in json.loads(text)))
