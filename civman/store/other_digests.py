"""The short hashes by which other programs name a file, computed from its bytes."""

import hashlib
import zlib
from pathlib import Path

from civman.domain.digests import EMPTY_AUTOV3, Hashes
from civman.domain.file_suffixes import SAFETENSORS_SUFFIXES
from civman.store.partial import store_error

_READ_BYTES = 1 << 20
_AUTOV1_START, _AUTOV1_BYTES = 0x100000, 0x10000
_MOST_READ = 512 << 20
"""Files larger than this are not read a second time: programs name checkpoints by AutoV2, part of the SHA-256."""


def other_digests(path: Path, *, whole: bool = False) -> Hashes:
    """Compute AutoV1 of the file at `path`, and CRC32 and AutoV3 if it has at most 512 MiB or `whole` is set.

    Only safetensors files have an AutoV3.

    Raises: StoreError: it cannot be read.
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
            is_safetensors = path.suffix.lower() in SAFETENSORS_SUFFIXES and body_start <= size
            header = file.read(body_start - 8) if is_safetensors else b""
            crc32 = zlib.crc32(header, crc32)
            while chunk := file.read(_READ_BYTES):
                crc32 = zlib.crc32(chunk, crc32)
                if is_safetensors:
                    body.update(chunk)
    except OSError as error:
        raise store_error(error, path) from error
    autov3 = body.hexdigest()[:12] if is_safetensors else None
    return Hashes(crc32=f"{crc32:08x}", autov1=autov1, autov3=None if autov3 == EMPTY_AUTOV3 else autov3)
