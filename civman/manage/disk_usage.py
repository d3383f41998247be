"""What a library takes of the disk, by group of files and by kind of storage."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from civman.errors import UsageError
from civman.index import Index, Share
from civman.store.blobs import BlobStore
from civman.store.resume_journal import allocated_bytes

GROUPS = ("type", "base_model", "architecture", "used")


@dataclass(frozen=True, slots=True)
class Usage:
    """Shares by group, and what lies where, in bytes. `outside`: files that civman knows and does not keep."""

    group: str
    shares: tuple[Share, ...]
    store_bytes: int
    outside_bytes: int
    partial_bytes: int
    trash_bytes: int
    index_bytes: int


def usage(index: Index, store: BlobStore, group: str) -> Usage:
    """What the library takes. Files in the store count with their length, all else with what the disk gives them.

    Raises: UsageError: no such group.
    """
    group = group.replace("-", "_")
    if group not in GROUPS:
        raise UsageError(f"nothing is grouped by `{group}`", hint=f"one of: {', '.join(GROUPS)}")
    root = store.root
    inside, outside = 0, 0
    for file in index.held_files():
        if Path(file.kept_path).is_absolute():
            outside += file.size_bytes
        else:
            inside += file.size_bytes
    return Usage(
        group,
        tuple(index.shares(group)),
        inside,
        outside,
        sum(_sizes(root / "partial", "*.part")),
        sum(_sizes(root / "trash", "*/*")),
        sum(_sizes(root, "library.db*")),
    )


def _sizes(folder: Path, pattern: str) -> Iterator[int]:
    for path in folder.glob(pattern):
        try:
            yield allocated_bytes(path.stat())
        except FileNotFoundError:
            continue  # another process was quicker
