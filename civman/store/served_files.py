"""Files of the library that may be deleted: the server's thumbnails and input images, and originals of replayed images.

Originals are images on CivitAI that were downloaded to be compared with their replays.
"""

import contextlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from civman.system.move_files import remove_file

THUMBNAILS, UPLOADS, ORIGINALS = "thumbnails", "uploads", "originals"


def served_files(library: Path, before: datetime) -> Iterator[Path]:
    """All of the server's thumbnails, and the input images that it received before the time `before`."""
    yield from sorted((library / THUMBNAILS).glob("*/*"))
    yield from _older(library / UPLOADS, before)


def original_images(library: Path, before: datetime) -> Iterator[Path]:
    """The originals of images on CivitAI that were downloaded before the time `before`."""
    yield from _older(library / ORIGINALS, before)


def _older(folder: Path, before: datetime) -> Iterator[Path]:
    for path in sorted(folder.glob("*")):
        with contextlib.suppress(OSError):  # skip a file that another process has deleted
            if path.stat().st_mtime < before.timestamp():
                yield path


def drop_served(path: Path) -> int:
    """Delete one file that is no longer needed.

    Returns the number of bytes freed; 0 if the file cannot be deleted now, in which case a later call may delete it.
    """
    try:
        freed = path.stat().st_size
        remove_file(path)
    except OSError:
        return 0
    return freed
