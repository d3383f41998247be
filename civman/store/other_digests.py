"""The short hashes by which other programs identify a file, computed from its bytes."""

import hashlib
import importlib
import zlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from civman.domain.digests import EMPTY_AUTOV3, Hashes
from civman.domain.file_suffixes import SAFETENSORS_SUFFIXES
from civman.domain.refs import HashKind
from civman.store.partial import store_error

_READ_BYTES = 1 << 20
_AUTOV1_START, _AUTOV1_BYTES = 0x100000, 0x10000
_MOST_READ = 512 << 20
"""Files with more bytes than this are not read again to compute digests other than the SHA-256.

Only checkpoints are that large, and other programs identify checkpoints by AutoV2, a prefix of the SHA-256.
"""


@cache
def computed_kinds() -> frozenset[HashKind]:
    """The kinds of digests that civman can compute; BLAKE3 only if the extra `blake3` is installed."""
    usual = frozenset({HashKind.AUTOV1, HashKind.AUTOV3, HashKind.CRC32})
    return usual | {HashKind.BLAKE3} if find_spec("blake3") is not None else usual


def other_digests(path: Path, *, whole: bool = False) -> Hashes:
    """Compute the file's AutoV1, and its other short hashes if it has at most 512 MiB or `whole` is set.

    Only safetensors files have an AutoV3. BLAKE3 is computed if it is among `computed_kinds`.

    Raises: StoreError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            autov1 = None
            if size >= _AUTOV1_START + _AUTOV1_BYTES:
                file.seek(_AUTOV1_START)
                autov1 = hashlib.sha256(file.read(_AUTOV1_BYTES)).hexdigest()[:8]
            if size > _MOST_READ and not whole:
                return Hashes(autov1=autov1)
            file.seek(0)
            start = file.read(8)
            crc32, body, body_start = zlib.crc32(start), hashlib.sha256(), 8 + int.from_bytes(start, "little")
            blake3 = _blake3()
            is_safetensors = path.suffix.lower() in SAFETENSORS_SUFFIXES and body_start <= size
            header = file.read(body_start - 8) if is_safetensors else b""
            crc32 = zlib.crc32(header, crc32)
            if blake3 is not None:
                blake3.update(start + header)
            while chunk := file.read(_READ_BYTES):
                crc32 = zlib.crc32(chunk, crc32)
                if is_safetensors:
                    body.update(chunk)
                if blake3 is not None:
                    blake3.update(chunk)
    except OSError as error:
        raise store_error(error, path) from error
    autov3 = body.hexdigest()[:12] if is_safetensors else None
    return Hashes(
        crc32=f"{crc32:08x}", autov1=autov1, autov3=None if autov3 == EMPTY_AUTOV3 else autov3,
        blake3=None if blake3 is None else blake3.hexdigest(),
    )  # fmt: skip


def _blake3() -> Any:
    """Create a BLAKE3 hash object; None if the package `blake3` is not installed."""
    return importlib.import_module("blake3").blake3() if HashKind.BLAKE3 in computed_kinds() else None
