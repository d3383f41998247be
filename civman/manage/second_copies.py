"""Describes second copies of a library's files, such as those in an object store, for garbage collection."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime

from civman.domain.digests import Sha256


@dataclass(frozen=True, slots=True)
class SecondCopy:
    """A file with a second copy elsewhere, such as in an object store; the library's own copy is only in its trash.

    `is_verified`: the second copy has just been read completely and has this SHA-256. Otherwise only its presence and
    size are known.
    """

    sha256: Sha256
    size_bytes: int
    is_verified: bool = False


@dataclass(frozen=True, slots=True)
class StoreLeftover:
    """A sidecar or preview in the object store without its file, left by an interrupted upload."""

    key: str
    sha256: Sha256
    size_bytes: int
    written_at: datetime


AskSecondHome = Callable[[Collection[Sha256], Collection[Sha256]], Collection[SecondCopy]]
"""A function that finds out which files have a second copy elsewhere, and whether each copy was verified.

First argument: the digests of files whose last copy in the library is in the trash. Second argument: the digests of
those files that are also pinned.
"""


def no_second_home(last: Collection[Sha256], pinned: Collection[Sha256]) -> Collection[SecondCopy]:
    """Report no second copies: for callers that have none, or that do not want them to be looked up."""
    del last, pinned
    return ()
