"""Write images as PNG, JPEG or WebP files with metadata texts, and read such files.

A PNG contains `parameters` (the text that A1111 and CivitAI read) in a text chunk of that name; a JPEG or WebP contains
it in EXIF's user comment. civman's own record is in a PNG's iTXt chunk `civman`; in a JPEG or WebP, it is an XMP
property. A JPEG comment is never written, because other programs expect Fooocus data there.

Source: CivitAI's upload page (run, August 2026).
"""

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from civman.errors import Cause, UsageError
from civman.pictures import exif, image_chunks

Format = Literal["png", "jpeg", "webp"]
SUFFIXES: Final[Mapping[str, Format]] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
"""Maps each file extension, in lower case, to its image format."""
_JPEG_QUALITY: Final = 95
_MOST_SEGMENT: Final = 65_500
"""The maximum size in bytes of the text in one JPEG segment, after the segment's length and prefix."""
_MOST_BYTES: Final = 1024 * 1024 * 1024
_MOST_PIXELS: Final = 89_000_000
"""The maximum number of pixels, which is slightly below Pillow's limit for decompression bombs."""


@dataclass(frozen=True, slots=True)
class Carried:
    """The metadata of an image file. `size` is (width, height) in pixels; texts are exactly as in the file."""

    format: Format
    size: tuple[int, int]
    record: str | None = None
    """civman's own record, as passed to `write`."""
    parameters: str | None = None
    """The text of a PNG's `parameters` chunk or of EXIF's user comment, in any program's format."""
    entries: Mapping[str, str] = field(default_factory=dict)
    """All texts by name (PNG keywords, EXIF entries, `comment`, `xmp`).

    If a name occurs twice, the first text is used.
    """


def write(
    pixels: Any,
    *,
    record: str | None,
    parameters: str | None,
    format: Format,  # noqa: A002 - as Pillow calls it
    quality: int | None = None,
    others: Mapping[str, str] | None = None,
    profile: bytes | None = None,
) -> bytes:
    """Encode (H, W, 3) uint8 pixels as a file with `record` and `parameters`. The same input gives the same bytes.

    Pixels may have a fourth channel, transparency, except in a JPEG. `quality` is 1 to 100 for JPEG (None: 95; chroma
    is never subsampled) and for WebP (None: lossless); it is ignored for PNG. `others`: further text chunks of a PNG by
    keyword. `profile`: the image's ICC profile.

    Raises: UsageError: `text-too-long` (a text does not fit into a JPEG), `unwritable-picture` (the image is too large
        for the format, or a text contains a lone surrogate).
    """
    from PIL import Image  # importing Pillow takes 0.1 s, so it is imported only to write an image

    data = io.BytesIO()
    image = Image.fromarray(pixels)
    if image.mode not in ("RGB", "RGBA"):
        raise ValueError(f"pixels are (H, W, 3) uint8, not {image.mode}")
    if image.mode == "RGBA" and format == "jpeg":
        raise UsageError(
            "a JPEG cannot contain transparency", hint="save a PNG or a WebP", code=Cause.UNWRITABLE_PICTURE
        )
    try:
        options = (
            _png_options(record, parameters, others or {}) if format == "png" else _exif_options(record, parameters)
        )
        if format == "jpeg":
            _check_segments(options)
            options |= {"quality": _JPEG_QUALITY if quality is None else quality, "subsampling": 0}
        elif format == "webp":
            options |= {"lossless": True, "quality": 80} if quality is None else {"quality": quality}
            # `exact` preserves the colours of transparent areas
            options |= {"exact": True} if image.mode == "RGBA" else {}
        if profile is not None:
            options["icc_profile"] = profile
        image.save(data, format.upper(), **options)
    except (OSError, ValueError, struct.error) as error:
        raise UsageError(f"cannot write the image as {format}: {error}", code=Cause.UNWRITABLE_PICTURE) from error
    return data.getvalue()


def _png_options(record: str | None, parameters: str | None, others: Mapping[str, str]) -> dict[str, Any]:
    from PIL.PngImagePlugin import PngInfo

    notes = PngInfo()
    own = {} if parameters is None else {"parameters": parameters}
    for name, text in (own | dict(others)).items():
        try:
            notes.add_text(name, text.encode("latin-1"))
        except UnicodeEncodeError:
            notes.add_itxt(name, text)
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
    for name, contents in (("exif", "prompt and settings"), ("xmp", "recipe")):
        if len(options.get(name, b"")) > _MOST_SEGMENT:
            raise UsageError(
                f"a JPEG can contain at most {_MOST_SEGMENT} bytes of {contents}, but this image has "
                f"{len(options[name])}",
                hint="save a PNG or a WebP, or leave out the metadata (--no-metadata)",
                code=Cause.TEXT_TOO_LONG,
            )


def read(source: Path | bytes) -> Carried:
    """Read the texts of an image. The whole file is checked and decoded, so truncated and damaged files are errors.

    Raises: UsageError (`bad-picture`): the file is missing, not a PNG, JPEG or WebP, truncated, damaged, or too large.
    """
    data, name = _bytes(source), _name(source)
    carried = texts(data, name)
    _decoded(data, carried.format, carried.size, name)
    return carried


def texts(data: bytes, name: str = "") -> Carried:
    """Read the texts in the bytes of an image file without decoding its pixels. Raises: UsageError (`bad-picture`)."""
    kind, notes = _notes(data, name)
    entries: dict[str, str] = {}
    for key, text in notes.texts:
        entries.setdefault(key, text)
    parameters = entries.get("parameters") if kind == "png" else None
    return Carried(
        kind, (notes.width, notes.height), notes.record,
        entries.get("UserComment") if parameters is None else parameters, entries,
    )  # fmt: skip


def pixels(source: Path | bytes, *, with_alpha: bool = False) -> Any:
    """Decode a file to (H, W, 3) uint8. Colours are unchanged, EXIF rotation is ignored, transparency is dropped.

    With `with_alpha`, an image with transparency is decoded to (H, W, 4). Raises: UsageError (`bad-picture`), as `read`
    does.
    """
    data, name = _bytes(source), _name(source)
    kind, notes = _notes(data, name)
    image = _decoded(data, kind, (notes.width, notes.height), name, with_alpha=with_alpha)
    import numpy as np  # numpy is needed only to return pixels, not to read an image's texts

    return np.asarray(image)


def is_picture(path: Path) -> bool:
    """Whether the file starts with the signature of a PNG, JPEG or WebP. Raises: UsageError: it is unreadable."""
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
            raise _bad(name, "it is not a PNG, JPEG or WebP image" if data else "it is empty")
    except ValueError as error:
        why = "a text in it is damaged" if isinstance(error, UnicodeDecodeError) else str(error)
        raise _bad(name, why) from error
    if not 0 < notes.width * notes.height <= _MOST_PIXELS:
        raise _bad(name, f"its size of {notes.width}x{notes.height} is not supported: at most {_MOST_PIXELS:,} pixels")
    return kind, notes


def _decoded(data: bytes, kind: Format, size: tuple[int, int], name: str, *, with_alpha: bool = False) -> Any:
    from PIL import Image  # importing Pillow takes 0.1 s, so it is imported only to read an image

    try:
        with Image.open(io.BytesIO(image_chunks.pixels_only(data)), formats=[kind.upper()]) as image:
            if image.size != size:
                raise _bad(name, "its headers contain two different sizes")
            return image.convert("RGBA" if with_alpha and image.has_transparency_data else "RGB")
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise _bad(name, "it is damaged: its pixels cannot be fully decoded") from error


def _bad(name: str, why: str) -> UsageError:
    picture = f"the picture `{name}`" if name else "the picture"
    return UsageError(
        f"cannot read {picture}: {why}",
        hint="civman reads complete PNG, JPEG and WebP files",
        code=Cause.BAD_PICTURE,
        path=name,
    )
