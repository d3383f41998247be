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

    `taken`: how many were imported; `known`: how many were in the index already; `others`: how many have no civman
    record; `problems`: error messages of files that cannot be read.
    """

    taken: int
    known: int
    others: int
    problems: tuple[str, ...]


def import_pictures(index: Index, folder: Path) -> ImportedPictures:
    """Import all pictures below `folder` that contain a record.

    Files' modification times are used as creation times.
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
    """The record of an image that was rendered or upscaled; None if the text is a recipe alone or without prompts."""
    origin = read_origin(text)
    return origin.upscaled_record or origin.record


def _pictures(folder: Path) -> Iterator[Path]:
    """The picture files below `folder`, in order.

    Skips hidden files, and the copies of input images in "inputs" folders.
    """
    for place, folders, names in os.walk(folder.absolute()):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "inputs")
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in image_text.SUFFIXES:
                yield Path(place, name)
