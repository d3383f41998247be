"""Pictures to start from: read whole before anything is loaded, as 8-bit RGB, masks as grey."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from civman.domain.digests import Sha256
from civman.errors import UsageError


@dataclass(frozen=True, slots=True)
class InputPicture:
    """A picture on this disk: SHA-256 of its file, its size in pixels."""

    path: Path
    sha256: Sha256
    width: int
    height: int
    pixels: Any = field(repr=False, compare=False)
    """(H, W, 3) uint8, a mask (H, W) uint8."""


def read_picture(path: Path, *, is_mask: bool = False) -> InputPicture:
    """The picture at `path`, turned as its EXIF entry says, transparent parts on white.

    Raises: UsageError (`unreadable-picture`): it is not there, or no picture that can be read to its end.
    """
    import numpy as np  # with Pillow 0.15 s, which text to picture can do without
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        data = path.expanduser().read_bytes()
        with Image.open(path.expanduser()) as opened:
            image: Any = ImageOps.exif_transpose(opened)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("L" if is_mask else "RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        why = (
            error.strerror if isinstance(error, OSError) and error.strerror else "it is no picture, or not a whole one"
        )
        raise UsageError(
            f"cannot read the {'mask' if is_mask else 'picture'} `{path}`: {why}",
            hint="PNG, JPEG and WebP can be read", code="unreadable-picture",
        ) from error  # fmt: skip
    return InputPicture(path, Sha256(hashlib.sha256(data).hexdigest()), image.width, image.height, np.asarray(image))


def size_like(picture: InputPicture, native: int) -> tuple[int, int]:
    """The size to render at when none is asked for: the picture's own, in eights; large ones at the native area."""
    width, height = picture.width, picture.height
    if width * height > 4 * native * native:
        factor = (native * native / (width * height)) ** 0.5
        width, height = int(width * factor), int(height * factor)
    return max(8, width // 8 * 8), max(8, height // 8 * 8)
