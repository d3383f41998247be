"""Imports pictures that contain a civman record into the index, for example from another library or after data loss."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from civman.domain.recipes.record import AnyRecord, read_origin
from civman.errors import CivmanError
from civman.index import Index
from civman.pictures import image_text


@dataclass(frozen=True, slots=True)
class ImportedPictures:
    """The result of importing a folder of pictures.

    `taken`: the number of newly imported pictures; `known`: the number of pictures that were already in the index;
    `others`: the number of pictures without a civman record; `problems`: error messages about files that cannot be
    read.
    """

    taken: int
    known: int
    others: int
    problems: tuple[str, ...]


def import_pictures(index: Index, folder: Path) -> ImportedPictures:
    """Import all pictures below `folder` that contain a record.

    The modification time of each file is recorded as the picture's creation time.
    """
    known = index.picture_paths()
    found: list[tuple[Path, AnyRecord, datetime]] = []
    counts = {"known": 0, "others": 0}
    problems: list[str] = []
    for path in _pictures(folder):
        if str(path) in known:
            counts["known"] += 1
            continue
        try:
            text = image_text.read(path).record
            record = _record(text) if text else None
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


def _record(text: str) -> AnyRecord | None:
    """Return the record of a rendered or upscaled image; None if the text is only a recipe, or lacks the prompts."""
    origin = read_origin(text)
    return origin.upscaled_record or origin.record


def _pictures(folder: Path) -> Iterator[Path]:
    """List the picture files below `folder`, in order.

    Skips hidden files, and copies of input images in folders named "inputs".
    """
    for place, folders, names in os.walk(folder.absolute()):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "inputs")
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in image_text.SUFFIXES:
                yield Path(place, name)
