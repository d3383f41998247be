"""What the server keeps in the library and can make or receive again: thumbnails, and input images of clients."""

import contextlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from civman.system.move_files import remove_file

THUMBNAILS, UPLOADS = "thumbnails", "uploads"


def served_files(library: Path, before: datetime) -> Iterator[Path]:
    """All thumbnails, and the input images that were received before this time."""
    yield from sorted((library / THUMBNAILS).glob("*/*"))
    for path in sorted((library / UPLOADS).glob("*")):
        with contextlib.suppress(OSError):  # somebody else has deleted it
            if path.stat().st_mtime < before.timestamp():
                yield path


def drop_served(path: Path) -> int:
    """Delete one of these files. Returns the bytes freed; 0 if it cannot be deleted, since it is then deleted later."""
    try:
        freed = path.stat().st_size
        remove_file(path)
    except OSError:
        return 0
    return freed
