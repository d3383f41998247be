"""What garbage collection knows about a library's second home, such as an object store."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime

from civman.domain.digests import Sha256


@dataclass(frozen=True, slots=True)
class SecondCopy:
    """A file that the second home has, and of which the library has no copy except in its trash.

    `is_verified`: the copy was read from start to end just now and has this SHA-256. Otherwise only its presence and
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
"""A function that says which files a second home has, and whether each was verified.

It is called with the digests of files whose last copy in the library is in the trash, and with those of them that are
pinned.
"""


def no_second_home(last: Collection[Sha256], pinned: Collection[Sha256]) -> Collection[SecondCopy]:
    """Return nothing: the library has no second home, or it is not asked."""
    del last, pinned
    return ()
