"""The state of a file on disk, to detect whether it has changed since it was last read."""

import os

from civman.domain.digests import Sha256
from civman.index import SeenFile


def seen_now(path: str, sha256: Sha256, *, kept_path: str | None = None) -> SeenFile | None:
    """Return the current state of a file that was just verified to have this SHA-256; None if it no longer exists.

    A file counts as unchanged as long as its device, inode, size and modification time stay the same.
    """
    try:
        stats = os.stat(path)  # noqa: PTH116  a Path object is too slow for 30,000 files
    except OSError:
        return None
    return SeenFile(kept_path or path, stats.st_dev, stats.st_ino, stats.st_size, stats.st_mtime_ns, sha256)


def is_unchanged(seen: SeenFile) -> bool:
    """Whether the file at `seen.path`, which must be absolute, is unchanged since it was last read."""
    return seen_now(seen.path, seen.sha256) == seen
