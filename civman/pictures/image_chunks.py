"""Read the size and the texts of image files without decoding the pixels, from headers that may be invalid.

Every reader reads the whole file, so that a truncated or damaged file is an error instead of an incomplete result. All
lengths come from untrusted files and are checked before use.

Sources: PNG (third edition), ITU-T T.81 annex B, the WebP container specification.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from civman.pictures import exif

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_MOST_TEXT: Final = 64 * 1024 * 1024
"""The maximum total size in bytes of an image's texts, uncompressed. The largest ComfyUI graphs take a few megabytes.
"""
_MOST_NOTES: Final = 10_000
_XMP: Final = b"http://ns.adobe.com/xap/1.0/\0"
_MARKER: Final = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]", re.DOTALL)
"""Matches a JPEG marker, but not a stuffed byte or a restart marker."""
_SCAN: Final = 0xDA
_COMMENT: Final = 0xFE
_NO_FRAME: Final = (0xC4, 0xC8, 0xCC)
"""Markers between C0 and CF that do not start a frame."""


@dataclass(slots=True)
class Notes:
    """The size and the texts of an image file. `texts` are in the order of the file."""

    width: int = 0
    height: int = 0
    texts: list[tuple[str, str]] = field(default_factory=list)
    record: str | None = None
    room: int = _MOST_TEXT

    def add(self, name: str, text: str) -> None:
        """Add a text. Raises: ValueError: the texts of the image are too large or too many."""
        self.room -= len(text) + 100
        if self.room < 0 or len(self.texts) >= _MOST_NOTES:
            raise ValueError("it contains more text than civman reads")
        self.texts.append((name, text))


def png(data: bytes) -> Notes:
    """Read the texts of a PNG. Raises: ValueError, with the reason."""
    notes = Notes()
    records = set()
    for kind, body in _png_chunks(data):
        if kind == b"IHDR" and len(body) == 13:
            notes.width, notes.height = int.from_bytes(body[:4], "big"), int.from_bytes(body[4:8], "big")
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            name, text = _png_text(kind, body, notes.room)
            notes.add(name, text)
            if name == "civman":
                records.add(text)
        elif kind == b"eXIf":
            for name, text in exif.exif_texts(body).items():
                notes.add(name, text)
    if len(records) > 1:
        raise ValueError("it contains two different records of civman")
    notes.record = next(iter(records), None)
    return notes


def pixels_only(data: bytes) -> bytes:
    """Remove all chunks that decoding the pixels of a verified image does not need. A WebP is returned unchanged.

    The result is for Pillow, whose limits on text chunks are lower and which warns about unusual EXIF data.
    """
    if data.startswith(_PNG):
        return _png_pixels(data)
    return _jpeg_pixels(data) if data.startswith(b"\xff\xd8") else data


def _png_pixels(data: bytes) -> bytes:
    parts = [data[:8]]
    for kind, body in _png_chunks(data):
        if kind[:1].isupper() or kind == b"tRNS":
            parts += len(body).to_bytes(4, "big"), kind, body, zlib.crc32(kind + body).to_bytes(4, "big")
    return b"".join(parts)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at, kind = 8, b""
    while kind != b"IEND":
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body, check = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        if len(check) < 4:
            raise ValueError("it is truncated")
        if zlib.crc32(kind + body).to_bytes(4, "big") != check:
            raise ValueError(f"it is damaged: the chunk at byte {at} has a wrong checksum")
        yield kind, body
        at += 12 + length


def _png_text(kind: bytes, body: bytes, room: int) -> tuple[str, str]:
    name, zero, rest = body.partition(b"\0")
    if not zero:
        raise ValueError("it contains a text without a keyword")
    if kind == b"tEXt":
        return name.decode("latin-1"), rest.decode("latin-1")
    if kind == b"zTXt":
        return name.decode("latin-1"), _inflated(rest[1:], room).decode("latin-1")
    packed, rest = rest[:1] == b"\1", rest[2:]
    _language, _, rest = rest.partition(b"\0")
    _translated, _, rest = rest.partition(b"\0")
    data = _inflated(rest, room) if packed else rest
    return name.decode("latin-1"), data.decode("utf-8")


def _inflated(data: bytes, most: int) -> bytes:
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(data, max(most, 1))
    except zlib.error as error:
        raise ValueError("a compressed text is damaged") from error
    if not inflate.eof:
        raise ValueError("a compressed text is truncated or too large")
    return text


def jpeg(data: bytes) -> Notes:
    """Read the texts of a JPEG. Raises: ValueError, with the reason."""
    notes = Notes()
    for marker, body in _jpeg_segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME and len(body) >= 5 and not notes.width:
            notes.height, notes.width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
            for name, text in exif.exif_texts(body).items():
                notes.add(name, text)
        elif marker == 0xE1 and body.startswith(_XMP):
            _add_xmp(notes, body[len(_XMP) :])
        elif marker == _COMMENT:
            notes.add("comment", body.rstrip(b"\0").decode("utf-8", "replace"))
    return notes


def _jpeg_pixels(data: bytes) -> bytes:
    parts = [data[:2]]
    for marker, body in _jpeg_segments(data):
        if marker == _SCAN:
            break
        # keep JFIF and Adobe segments, because they specify how the colours are encoded
        if marker in (0xE0, 0xEE) or not (0xE0 <= marker <= 0xEF or marker == _COMMENT):
            parts += bytes((0xFF, marker)), (len(body) + 2).to_bytes(2, "big"), body
    return b"".join([*parts, data[_first_scan(data) :]])


def _first_scan(data: bytes) -> int:
    at = 2
    while (match := _MARKER.match(data, at)) is not None and data[match.end() - 1] != _SCAN:
        at = match.end() + int.from_bytes(data[match.end() : match.end() + 2], "big")
    return at


def _add_xmp(notes: Notes, packet: bytes) -> None:
    record = exif.record_in(packet)
    if record is not None:
        if notes.record not in (None, record):
            raise ValueError("it contains two different records of civman")
        notes.record = record
    else:
        notes.add("xmp", packet.decode("utf-8", "replace"))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Iterate over the segments up to the end-of-image marker. Raises: ValueError: the marker is missing."""
    at, has_scan = 2, False
    while True:
        match = _MARKER.match(data, at)
        if match is None:
            raise ValueError("it is truncated" if at >= len(data) - 1 else f"it is damaged (at byte {at})")
        marker, at = data[match.end() - 1], match.end()
        if marker == 0xD9:
            if not has_scan:
                raise ValueError("it contains no image")
            return
        length = int.from_bytes(data[at : at + 2], "big")
        if length < 2 or at + length > len(data):
            raise ValueError("it is truncated")
        yield marker, data[at + 2 : at + length]
        at += length
        if marker == _SCAN:
            has_scan = True
            following = _MARKER.search(data, at)
            if following is None:
                raise ValueError("it is truncated")
            at = following.start()


def webp(data: bytes) -> Notes:
    """Read the texts of a WebP. Raises: ValueError, with the reason."""
    notes = Notes()
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise ValueError("it is truncated")
    at = 12
    while at + 8 <= end:
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        body = data[at + 8 : at + 8 + length]
        if at + 8 + length > end:
            raise ValueError("it is truncated")
        _webp_size(notes, kind, body)
        if kind == b"EXIF":
            for name, text in exif.exif_texts(body).items():
                notes.add(name, text)
        elif kind == b"XMP ":
            _add_xmp(notes, body)
        at += 8 + length + length % 2
    return notes


def _webp_size(notes: Notes, kind: bytes, body: bytes) -> None:
    if notes.width or len(body) < 10:
        return
    if kind == b"VP8X":
        notes.width = int.from_bytes(body[4:7], "little") + 1
        notes.height = int.from_bytes(body[7:10], "little") + 1
    elif kind == b"VP8 ":
        notes.width = int.from_bytes(body[6:8], "little") & 0x3FFF
        notes.height = int.from_bytes(body[8:10], "little") & 0x3FFF
    elif kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        notes.width, notes.height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
