"""Files of the library that can be made or received again: the server's thumbnails and input images, and originals.

Originals are images on CivitAI that were downloaded to compare a replay with them.
"""

import contextlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from civman.system.move_files import remove_file

THUMBNAILS, UPLOADS, ORIGINALS = "thumbnails", "uploads", "originals"


def served_files(library: Path, before: datetime) -> Iterator[Path]:
    """All thumbnails, and the input images that were received before the time `before`."""
    yield from sorted((library / THUMBNAILS).glob("*/*"))
    yield from _older(library / UPLOADS, before)


def original_images(library: Path, before: datetime) -> Iterator[Path]:
    """The originals of images on CivitAI that were downloaded before this time."""
    yield from _older(library / ORIGINALS, before)


def _older(folder: Path, before: datetime) -> Iterator[Path]:
    for path in sorted(folder.glob("*")):
        with contextlib.suppress(OSError):  # another process has deleted the file
            if path.stat().st_mtime < before.timestamp():
                yield path


def drop_served(path: Path) -> int:
    """Delete one file that the server no longer needs.

    Returns the bytes freed; 0 if it cannot be deleted now and will be deleted later.
    """
    try:
        freed = path.stat().st_size
        remove_file(path)
    except OSError:
        return 0
    return freed
