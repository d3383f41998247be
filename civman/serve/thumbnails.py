"""Thumbnails: small WebP images, made once and stored in the library's `thumbnails` folder."""

import contextlib
import hashlib
import os
import secrets
import warnings
from io import BytesIO
from pathlib import Path

from civman.store.served_files import THUMBNAILS

SIZE = 320
LARGE = 1024
"""The longest side in pixels of a large thumbnail, which shows a single image; thumbnails in lists use `SIZE`."""
_MOST_PIXELS = 64_000_000


def folder_of(library: Path) -> Path:
    """Return the folder in which a library's thumbnails are stored."""
    return library / THUMBNAILS


def kept_thumbnail(library: Path, key: str, size: int = SIZE) -> bytes | None:
    """Find the thumbnail that is stored under a key; None if there is none."""
    try:
        return _path(library, key, size).read_bytes()
    except OSError:
        return None


def thumbnail(library: Path, source: Path | BytesIO, key: str, size: int = SIZE) -> bytes | None:
    """Return the thumbnail of the image `source`, making it if it is not stored yet; None if it cannot be made.

    `key` identifies the contents of `source`; if a thumbnail is stored under it, `source` is not read.
    """
    found = kept_thumbnail(library, key, size) or _made(source, size)
    path = _path(library, key, size)
    if found is not None and not path.exists():
        # ignore the error: in a read-only library, thumbnails can be shown but not stored
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{secrets.token_hex(6)}")
            partial.write_bytes(found)
            partial.replace(path)
    return found


def _path(library: Path, key: str, size: int) -> Path:
    name = hashlib.sha256(f"{key} {size} 1".encode()).hexdigest()
    return folder_of(library) / name[:2] / f"{name}.webp"


def key_of(path: Path) -> str:
    """Build a key that identifies the contents of a file without reading it."""
    seen = os.stat(path)  # noqa: PTH116  # one call for all four numbers
    return f"{seen.st_dev}:{seen.st_ino}:{seen.st_size}:{seen.st_mtime_ns}"


def _made(source: Path | BytesIO, size: int) -> bytes | None:
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings(), Image.open(source, formats=("PNG", "JPEG", "WEBP")) as image:
            warnings.simplefilter("ignore")
            if image.width * image.height > _MOST_PIXELS:
                return None
            image.draft("RGB", (size, size))
            image.thumbnail((size, size), reducing_gap=2.0)
            upright = ImageOps.exif_transpose(image).convert("RGB")
            out = BytesIO()
            upright.save(out, "WEBP", quality=80, method=0)
            return out.getvalue()
    except Exception:  # noqa: BLE001  # Pillow raises many kinds for broken files, which have no thumbnail
        return None
