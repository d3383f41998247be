"""Thumbnails: small WebP images, made once and kept in the library's `thumbnails` folder."""

import contextlib
import hashlib
import io
import os
import secrets
import warnings
from pathlib import Path

from civman.store.served_files import THUMBNAILS

SIZE = 320
_MOST_PIXELS = 64_000_000


def folder_of(library: Path) -> Path:
    """Where the thumbnails of a library are kept."""
    return library / THUMBNAILS


def thumbnail(library: Path, source: Path, key: str) -> bytes | None:
    """Return the thumbnail of the image file `source`, making it if it is not kept yet; None if it cannot be made.

    `key` identifies the contents of `source`, which is not read if a thumbnail is kept under it.
    """
    name = hashlib.sha256(f"{key} {SIZE} 1".encode()).hexdigest()
    path = folder_of(library) / name[:2] / f"{name}.webp"
    with contextlib.suppress(OSError):
        return path.read_bytes()
    made = _made(source)
    if made is not None:
        with contextlib.suppress(OSError):  # a read-only library still shows them
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{secrets.token_hex(6)}")
            partial.write_bytes(made)
            partial.replace(path)
    return made


def key_of(path: Path) -> str:
    """What identifies the contents of a file without reading it."""
    seen = os.stat(path)  # noqa: PTH116  # one call for all four numbers
    return f"{seen.st_dev}:{seen.st_ino}:{seen.st_size}:{seen.st_mtime_ns}"


def _made(source: Path) -> bytes | None:
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings(), Image.open(source, formats=("PNG", "JPEG", "WEBP")) as image:
            warnings.simplefilter("ignore")
            if image.width * image.height > _MOST_PIXELS:
                return None
            image.draft("RGB", (SIZE, SIZE))
            image.thumbnail((SIZE, SIZE), reducing_gap=2.0)
            upright = ImageOps.exif_transpose(image).convert("RGB")
            out = io.BytesIO()
            upright.save(out, "WEBP", quality=80, method=0)
            return out.getvalue()
    except Exception:  # noqa: BLE001  # Pillow raises many kinds for broken files, which have no thumbnail
        return None
