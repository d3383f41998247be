"""Importing pictures with civman's record into the index: from another library, another disk, or after a loss."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from civman.domain.recipes.record import Record, read_origin
from civman.errors import CivmanError
from civman.index import Index
from civman.pictures import image_text


@dataclass(frozen=True, slots=True)
class ImportedPictures:
    """How many pictures of a folder were imported, known before, without a record, and which could not be read."""

    taken: int
    known: int
    others: int
    problems: tuple[str, ...]


def import_pictures(index: Index, folder: Path) -> ImportedPictures:
    """Import all pictures below `folder` that carry a record; the times of their files are when they were made."""
    known = index.picture_paths()
    found: list[tuple[Path, Record, datetime]] = []
    counts = {"known": 0, "others": 0}
    problems: list[str] = []
    for path in _pictures(folder):
        if str(path) in known:
            counts["known"] += 1
            continue
        try:
            text = image_text.read(path).record
            record = read_origin(text).record if text else None
        except CivmanError as error:
            problems.append(error.message)
            continue
        if record is None:
            counts["others"] += 1
        else:
            found.append((path, record, datetime.fromtimestamp(path.stat().st_mtime, UTC)))
    found.sort(key=lambda each: each[2])
    for path, record, made_at in found:
        index.record_pictures([(path, record)], made_at)
    return ImportedPictures(len(found), counts["known"], counts["others"], tuple(problems))


def _pictures(folder: Path) -> Iterator[Path]:
    """Files whose names end like a picture's, in order; nothing hidden, nothing that a recipe started from."""
    for place, folders, names in os.walk(folder.absolute()):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "inputs")
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in image_text.SUFFIXES:
                yield Path(place, name)
