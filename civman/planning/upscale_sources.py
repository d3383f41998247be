"""Reads the images to be upscaled, including transparency, colour profile and text metadata."""

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from civman.domain.digests import Sha256
from civman.domain.recipes.record import read_origin
from civman.errors import Cause, CivmanError, UsageError
from civman.pictures import image_text

_OPAQUE: Final = 255
_SUFFIXES: Final = (*image_text.SUFFIXES, ".bmp", ".tif", ".tiff", ".gif")


@dataclass(frozen=True, slots=True)
class SourcePicture:
    """An image to upscale. `sha256` is the digest of its file; `image` is a Pillow image in RGB or RGBA, upright."""

    path: Path
    sha256: Sha256
    image: Any = field(repr=False, compare=False)
    profile: bytes | None = field(default=None, repr=False)
    """The image's ICC colour profile."""
    parameters: str | None = None
    """A1111's `parameters` text in the image, if there is one."""
    parent: Sha256 | None = None
    """The SHA-256 of the recipe in the image; None if the image contains no civman recipe."""
    notices: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        width, height = self.image.size
        return width, height


def read_source(path: Path) -> SourcePicture:
    """Read the image at `path`, rotated as its EXIF data says. Transparency is kept unless the image is opaque.

    Raises: UsageError (`unreadable-picture`): the file is missing, not an image, incomplete, or has several frames.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        data = path.expanduser().read_bytes()
        with Image.open(io.BytesIO(data)) as opened:
            if getattr(opened, "n_frames", 1) > 1:
                raise _unreadable(path, "it is animated or has several pages")
            profile = opened.info.get("icc_profile") if opened.mode in ("RGB", "RGBA", "P") else None
            image, notices = _eight_bit(ImageOps.exif_transpose(opened))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        why = (
            error.strerror if isinstance(error, OSError) and error.strerror else "it is not an image, or is incomplete"
        )
        raise _unreadable(path, why) from error
    parameters, parent = _texts(data)
    return SourcePicture(
        path, Sha256(hashlib.sha256(data).hexdigest()), image, profile, parameters, parent, tuple(notices)
    )


def _eight_bit(image: Any) -> tuple[Any, list[str]]:
    """Convert an image to RGB or RGBA with 8 bits per channel, and return notices about what is lost."""
    import numpy as np
    from PIL import Image

    notices = []
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        most = 65535.0 if image.mode.startswith("I") else max(float(values.max(initial=1.0)), 1.0)
        image = Image.fromarray((values.clip(0, most) * (_OPAQUE / most)).round().astype(np.uint8))
        notices.append("its values are reduced from 16 or 32 bits to 8")
    if not image.has_transparency_data:
        return image.convert("RGB"), notices
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema()[0] == _OPAQUE:
        return image.convert("RGB"), notices
    return image, notices


def _texts(data: bytes) -> tuple[str | None, Sha256 | None]:
    """Return A1111's `parameters` text in an image, and the SHA-256 of its civman recipe. Damaged texts are ignored."""
    try:
        carried = image_text.texts(data)
    except UsageError:
        return None, None
    if carried.record is None:
        return carried.parameters, None
    try:
        return carried.parameters, read_origin(carried.record).recipe_sha256
    except CivmanError:
        return carried.parameters, None


def pictures_in(paths: Iterable[Path]) -> Iterator[Path]:
    """Replace each folder with the image files directly in it, ordered by name.

    Raises: UsageError: a folder contains no images.
    """
    for path in paths:
        folder = path.expanduser()
        if not folder.is_dir():
            yield path
            continue
        found = sorted(
            each
            for each in folder.iterdir()
            if each.suffix.lower() in _SUFFIXES and each.is_file() and not each.name.startswith(".")
        )
        if not found:
            raise UsageError(
                f"the folder `{path}` contains no images",
                hint="pass a folder that contains images itself; subfolders are not searched",
                code=Cause.UNREADABLE_PICTURE,
            )  # fmt: skip
        yield from found


def _unreadable(path: Path, why: str) -> UsageError:
    return UsageError(
        f"cannot read the picture `{path}`: {why}",
        hint="supported formats are PNG, JPEG, WebP, BMP, TIFF and GIF with one frame", code=Cause.UNREADABLE_PICTURE,
        path=str(path),
    )  # fmt: skip
