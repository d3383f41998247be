"""Pictures as files that carry text: PNG, JPEG and WebP, out and in again.

Where the texts go: `parameters` (what A1111 and CivitAI read) in a PNG's text chunk of that name, in a JPEG or WebP in
EXIF's user comment; civman's own record in a PNG's iTXt chunk `civman`, elsewhere in an XMP property. Never in a JPEG
comment, where other tools expect Fooocus' data. Source of the places: CivitAI's upload page (run, August 2026).
"""

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from civman.errors import UsageError
from civman.pictures import exif, image_chunks

Format = Literal["png", "jpeg", "webp"]
SUFFIXES: Final[Mapping[str, Format]] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
"""File suffix (lower case) → format."""
_JPEG_QUALITY: Final = 95
_MOST_SEGMENT: Final = 65_500
"""Bytes of one JPEG segment, less its length and prefix."""
_MOST_BYTES: Final = 1024 * 1024 * 1024
_MOST_PIXELS: Final = 89_000_000
"""A little less than where Pillow begins to warn of decompression bombs."""


@dataclass(frozen=True, slots=True)
class Carried:
    """What a picture file holds: `size` is (width, height) in pixels; texts are exactly what was written."""

    format: Format
    size: tuple[int, int]
    record: str | None = None
    """civman's own, as given to `write`."""
    parameters: str | None = None
    """Of a PNG's `parameters` chunk or EXIF's user comment, whoever wrote it and in whatever form."""
    entries: Mapping[str, str] = field(default_factory=dict)
    """All texts by their names (PNG keywords, EXIF's entry names, `comment`, `xmp`), the first where there are two."""


def write(
    pixels: Any,
    *,
    record: str | None,
    parameters: str | None,
    format: Format,  # noqa: A002 - as Pillow calls it
    quality: int | None = None,
) -> bytes:
    """(H, W, 3) uint8 as a file that carries both texts. The same input gives the same bytes.

    `quality` 1 … 100: of JPEG (None: 95; never with subsampled colours), of WebP (None: lossless); PNG has none.

    Raises: UsageError: `text-too-long` (a JPEG cannot hold it), `unwritable-picture` (too large for the format, or a
    text with half a surrogate pair).
    """
    from PIL import Image  # 0.1 s, when there is a picture

    data = io.BytesIO()
    image = Image.fromarray(pixels)
    if image.mode != "RGB":
        raise ValueError(f"pixels are (H, W, 3) uint8, not {image.mode}")
    try:
        options = _png_options(record, parameters) if format == "png" else _exif_options(record, parameters)
        if format == "jpeg":
            _check_segments(options)
            options |= {"quality": _JPEG_QUALITY if quality is None else quality, "subsampling": 0}
        elif format == "webp":
            options |= {"lossless": True, "quality": 80} if quality is None else {"quality": quality}
        image.save(data, format.upper(), **options)
    except (OSError, ValueError, struct.error) as error:
        raise UsageError(f"cannot write the picture as {format}: {error}", code="unwritable-picture") from error
    return data.getvalue()


def _png_options(record: str | None, parameters: str | None) -> dict[str, Any]:
    from PIL.PngImagePlugin import PngInfo

    notes = PngInfo()
    if parameters is not None:
        try:
            notes.add_text("parameters", parameters.encode("latin-1"))
        except UnicodeEncodeError:
            notes.add_itxt("parameters", parameters)
    if record is not None:
        notes.add_itxt("civman", record)
    return {"pnginfo": notes}


def _exif_options(record: str | None, parameters: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if parameters is not None:
        options["exif"] = b"Exif\0\0" + exif.exif_with(parameters)
    if record is not None:
        options["xmp"] = exif.xmp_with(record)
    return options


def _check_segments(options: Mapping[str, Any]) -> None:
    for name, what in (("exif", "prompt and settings"), ("xmp", "recipe")):
        if len(options.get(name, b"")) > _MOST_SEGMENT:
            raise UsageError(
                f"a JPEG cannot carry so long a text: {what}, {len(options[name])} bytes, {_MOST_SEGMENT} fit",
                hint="write a PNG or a WebP, or leave the metadata out", code="text-too-long",
            )  # fmt: skip


def read(source: Path | bytes) -> Carried:
    """What a picture carries. The whole file is gone through and decoded: a cut or damaged one is an error.

    Raises: UsageError (`bad-picture`): not there, not a PNG, JPEG or WebP, cut short, damaged, or larger than sense.
    """
    data, name = _bytes(source), _name(source)
    kind, notes = _notes(data, name)
    size = (notes.width, notes.height)
    _decoded(data, kind, size, name)
    entries: dict[str, str] = {}
    for key, text in notes.texts:
        entries.setdefault(key, text)
    parameters = entries.get("parameters") if kind == "png" else None
    return Carried(
        kind, (notes.width, notes.height), notes.record,
        entries.get("UserComment") if parameters is None else parameters, entries,
    )  # fmt: skip


def pixels(source: Path | bytes) -> Any:
    """(H, W, 3) uint8: what the file decodes to, colours as they are, no turning by EXIF, transparency dropped.

    Raises: UsageError (`bad-picture`): as `read`.
    """
    data, name = _bytes(source), _name(source)
    kind, notes = _notes(data, name)
    image = _decoded(data, kind, (notes.width, notes.height), name)
    import numpy as np  # only who wants pixels needs it: looking at what a picture tells does not

    return np.asarray(image)


def is_picture(path: Path) -> bool:
    """Whether the file begins as a PNG, JPEG or WebP does. Raises: UsageError: it cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError as error:
        raise _bad(str(path), error.strerror or str(error)) from error
    return head.startswith((b"\x89PNG", b"\xff\xd8\xff")) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")


def _bytes(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        with source.expanduser().open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise _bad(str(source), error.strerror or str(error)) from error
    if len(data) > _MOST_BYTES:
        raise _bad(str(source), "it is larger than 1 GB")
    return data


def _name(source: Path | bytes) -> str:
    return str(source) if isinstance(source, Path) else ""


def _notes(data: bytes, name: str) -> tuple[Format, image_chunks.Notes]:
    kind: Format
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            kind, notes = "png", image_chunks.png(data)
        elif data.startswith(b"\xff\xd8\xff"):
            kind, notes = "jpeg", image_chunks.jpeg(data)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            kind, notes = "webp", image_chunks.webp(data)
        else:
            raise _bad(name, "it is no PNG, JPEG or WebP picture" if data else "it is empty")
    except ValueError as error:
        why = "a text in it is damaged" if isinstance(error, UnicodeDecodeError) else str(error)
        raise _bad(name, why) from error
    if not 0 < notes.width * notes.height <= _MOST_PIXELS:
        raise _bad(name, f"its size says {notes.width}x{notes.height} pixels")
    return kind, notes


def _decoded(data: bytes, kind: Format, size: tuple[int, int], name: str) -> Any:
    from PIL import Image  # 0.1 s, when there is a picture

    try:
        with Image.open(io.BytesIO(image_chunks.pixels_only(data)), formats=[kind.upper()]) as image:
            if image.size != size:
                raise _bad(name, "it says two different sizes")
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise _bad(name, "it is damaged: its pixels cannot be decoded to the end") from error


def _bad(name: str, why: str) -> UsageError:
    what = f"the picture `{name}`" if name else "the picture"
    return UsageError(
        f"cannot read {what}: {why}", hint="whole PNG, JPEG and WebP files can be read", code="bad-picture", path=name
    )
