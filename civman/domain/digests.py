"""Digests of files, under CivitAI's names. All are lower-case hex."""

import re
from dataclasses import dataclass
from typing import NewType

Sha256 = NewType("Sha256", str)
"""A SHA-256 digest as 64 lower-case hex digits."""

_HEX = re.compile(r"[0-9a-f]+")
EMPTY_AUTOV3 = "e3b0c44298fc"
"""The AutoV3 of every file without tensor data: the SHA-256 of no bytes, which therefore identifies no file."""


def sha256_from(text: str) -> Sha256:
    """Parse the digest in `text`, ignoring case. Raises: ValueError: it is not 64 hex digits."""
    lowered = text.strip().lower()
    if len(lowered) != 64 or not _HEX.fullmatch(lowered):
        raise ValueError(f"not a SHA-256: {text!r}")
    return Sha256(lowered)


def autov2(digest: Sha256) -> str:
    """Shorten a SHA-256 to AutoV2, its first ten digits, which A1111 and CivitAI show as "model hash"."""
    return digest[:10]


@dataclass(frozen=True, slots=True)
class Hashes:
    """The digests that CivitAI declares for a file; any of them may be None (new uploads have none).

    `autov3` has 12 digits, even if an old response contained 64.
    """

    sha256: Sha256 | None = None
    blake3: str | None = None
    crc32: str | None = None
    autov1: str | None = None
    autov2: str | None = None
    autov3: str | None = None

    def known(self) -> dict[str, str]:
        """Return the digests that are not None, by name."""
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}
