"""Compute missing digests (AutoV1, AutoV3, CRC32, BLAKE3) of the library's files.

An import computes these digests only for files that CivitAI does not know, and not for very large ones, because the
file has to be read once more. `civman verify --full` computes all missing digests.
"""

import contextlib
from pathlib import Path

from civman.domain.catalog import Asset
from civman.domain.refs import HashRef
from civman.errors import CivmanError, LibraryError
from civman.index import Index
from civman.store.other_digests import computed_kinds, other_digests

_MOST_BYTES = 8 << 30
"""The maximum total size in bytes of the files that one search hashes. The smallest files are hashed first."""


def find_computed(index: Index, ref: HashRef) -> list[Asset]:
    """Find the files with this digest by computing the digests that the index lacks, which are then saved."""
    kinds = computed_kinds().intersection(ref.kinds)
    left_bytes = _MOST_BYTES
    for blob in index.without_digests() if kinds else ():
        if not kinds.intersection(blob.missing):
            continue
        if blob.size_bytes > left_bytes:
            break
        left_bytes -= blob.size_bytes
        with contextlib.suppress(CivmanError):  # skip a file that is on a disconnected drive or cannot be read
            found = other_digests(Path(blob.path), whole=True)
            # ignore the error: a read-only library can be searched, but cannot save the digests
            with contextlib.suppress(LibraryError):
                index.save_hashes({blob.sha256: found})
            if any(getattr(found, kind.value) == ref.digest for kind in kinds):
                return index.referrers(blob.sha256)
    return []
