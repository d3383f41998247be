"""The disk usage of a library, by group of files and by kind of storage."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from civman.errors import UsageError
from civman.index import Index, Share
from civman.store.blobs import BlobStore
from civman.store.resume_journal import allocated_bytes
from civman.store.safe_copies import copies
from civman.store.served_files import ORIGINALS

GROUPS = ("type", "base_model", "architecture", "used")


@dataclass(frozen=True, slots=True)
class Usage:
    """The disk usage of a library in bytes: `shares` by group of files, the other fields by kind of storage.

    `safe_copy_bytes`: the safetensors copies of pickles. `outside_bytes`: indexed files that are not in the store.
    `originals_bytes`: images downloaded from CivitAI to compare replays with.
    """

    group: str
    shares: tuple[Share, ...]
    store_bytes: int
    safe_copy_bytes: int
    outside_bytes: int
    partial_bytes: int
    trash_bytes: int
    index_bytes: int
    originals_bytes: int = 0


def usage(index: Index, store: BlobStore, group: str) -> Usage:
    """Compute the library's disk usage.

    For model files, the file length is counted; for everything else, the space allocated on disk.

    Raises: UsageError: `group` is not one of `GROUPS`.
    """
    group = group.replace("-", "_")
    if group not in GROUPS:
        raise UsageError(f"cannot group by `{group}`", hint=f"choose one of: {', '.join(GROUPS)}")
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
        sum(_sizes(copies(store))),
        outside,
        sum(_sizes((root / "partial").glob("*.part"))),
        sum(_sizes((root / "trash").glob("*/*"))),
        sum(_sizes(root.glob("library.db*"))),
        sum(_sizes((root / ORIGINALS).glob("*"))),
    )


def _sizes(paths: Iterable[Path]) -> Iterator[int]:
    for path in paths:
        try:
            yield allocated_bytes(path.stat())
        except FileNotFoundError:
            continue  # skip a file that another process has deleted in the meantime
