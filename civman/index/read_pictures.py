"""Read the images that were made with this library, with the standard `sqlite3` module."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from civman.domain.digests import Sha256
from civman.domain.recipes.record import AnyRecord, read_origin
from civman.index import rows
from civman.index.database import Reader


@dataclass(frozen=True, slots=True)
class KeptPicture:
    """A recorded image: its id in the library, the path it was saved to, and its record."""

    id: int
    path: str
    record: AnyRecord
    made_at: datetime

    @property
    def is_here(self) -> bool:
        """Whether the image's file still exists at the recorded path."""
        return Path(self.path).is_file()


@dataclass(frozen=True, slots=True)
class PictureFilter:
    """Which images to return; an empty filter matches all.

    `words` must all occur in the prompts or the file name. `digests` selects images made with any of these model files.
    `recipe` is a prefix of the recipe's SHA-256.
    """

    words: tuple[str, ...] = ()
    digests: tuple[Sha256, ...] = ()
    recipe: str = ""
    pixel_sha256: Sha256 | None = None
    since: datetime | None = None
    number: int | None = None


def select(reader: Reader, wanted: PictureFilter, *, limit: int | None = None, offset: int = 0) -> list[KeptPicture]:
    """Images that match the filter, newest first. Raises the errors of `read_origin` for unreadable records."""
    where, parameters = _condition(wanted)
    found = reader.all(
        f"SELECT id, path, record, made_at FROM rendering WHERE {where} "  # noqa: S608  only words of ours
        "ORDER BY made_at DESC, id DESC LIMIT ? OFFSET ?",
        [*parameters, -1 if limit is None else limit, offset],
    )
    return list(_pictures(reader, found))


def count(reader: Reader, wanted: PictureFilter) -> int:
    """The number of images that match the filter."""
    where, parameters = _condition(wanted)
    row = reader.one(f"SELECT count(*) FROM rendering WHERE {where}", parameters)  # noqa: S608
    return int(row[0]) if row else 0


def paths(reader: Reader) -> set[str]:
    """The absolute paths of all recorded images."""
    return {_full(reader, path) for (path,) in reader.all("SELECT path FROM rendering")}


def seeds_of(reader: Reader, recipes: Iterable[str]) -> list[tuple[str, str, int | None]]:
    """The recipe's SHA-256, the image's path and its seed (None if upscaled), for each image made with these recipes.

    The paths are absolute.
    """
    found = (
        # with two JSON paths, json_extract returns the seeds as JSON text, because 64-bit seeds would lose precision as
        # SQL numbers
        reader.all(
            "SELECT recipe_sha256, path, json_extract(record, '$.seed', '$.seed') FROM rendering "
            "WHERE recipe_sha256 IN (SELECT value FROM json_each(?))",
            [json.dumps(sorted(set(recipes)))],
        )
    )
    return [(recipe, _full(reader, path), json.loads(seeds)[0]) for recipe, path, seeds in found]


def made_with(reader: Reader, digests: Iterable[Sha256]) -> int:
    """The number of images that were made with one of these files."""
    row = reader.one(
        "SELECT count(DISTINCT rendering_id) FROM rendering_file WHERE sha256 IN (SELECT value FROM json_each(?))",
        [json.dumps(list(digests))],
    )
    return int(row[0]) if row else 0


def _pictures(reader: Reader, found: list[tuple[int, str, str, str]]) -> Iterator[KeptPicture]:
    for number, path, text, made_at in found:
        origin = read_origin(text)
        record = origin.record or origin.upscaled_record
        assert record is not None
        yield KeptPicture(number, _full(reader, path), record, datetime.fromisoformat(made_at))


def _full(reader: Reader, path: str) -> str:
    return path if os.path.isabs(path) else str(reader.folder / path)  # noqa: PTH117


def _condition(wanted: PictureFilter) -> tuple[str, list[object]]:
    tests: list[str] = ["1"]
    parameters: list[object] = []
    for word in wanted.words:
        tests.append("instr(search_text, ?)")
        parameters.append(rows.key(word))
    if wanted.digests:
        tests.append("id IN (SELECT rendering_id FROM rendering_file WHERE sha256 IN (SELECT value FROM json_each(?)))")
        parameters.append(json.dumps(list(wanted.digests)))
    if wanted.recipe:
        tests.append("recipe_sha256 >= ? AND recipe_sha256 < ?")
        parameters += [wanted.recipe, wanted.recipe + "g"]
    if wanted.pixel_sha256:
        tests.append("pixel_sha256 = ?")
        parameters.append(wanted.pixel_sha256)
    if wanted.since is not None:
        tests.append("made_at >= ?")
        parameters.append(rows.moment(wanted.since))
    if wanted.number is not None:
        tests.append("id = ?")
        parameters.append(wanted.number)
    return " AND ".join(tests), parameters
