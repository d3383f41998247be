"""Read and write the two texts in a JPEG or WebP: EXIF's user comment, and civman's record as an XMP property.

Sources: Exif 2.32 (section 4.6: user comment and its character codes), TIFF 6.0 (directories), XMP part 1.
"""

import base64
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Final
from xml.sax.saxutils import escape, unescape

_USER_COMMENT: Final = 0x9286
_EXIF_DIRECTORY: Final = 0x8769
_TEXT_TAGS: Final = {
    0x010E: "ImageDescription", 0x010F: "Make", 0x0110: "Model", 0x0131: "Software", 0x013B: "Artist",
    0x927C: "MakerNote", _USER_COMMENT: "UserComment",
}  # fmt: skip
_MOST_ENTRIES: Final = 2000
_ITEM_BYTES: Final = {1: 1, 2: 1, 6: 1, 7: 1, 129: 1}
"""The EXIF field types that may contain text, and the bytes per item of each type (129 is UTF-8, from Exif 3)."""
_SIGNS: Final = ("Steps: ", "sui_image_params", '{"', "{\n")
"""Strings that are typical of generation data. Decoded text that contains one of them has the right byte order."""

_NAMESPACE: Final = "urn:civman:1.0/"
_PLAIN: Final = re.compile("[\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufdcf\ufdf0-\ufffd\U00010000-\U0001fffd]*")
_MOST_PLAIN: Final = 60_000
"""The maximum size in UTF-8 bytes of an uncompressed record. Larger records are compressed to fit a JPEG segment."""
_MOST_RECORD: Final = 64 * 1024 * 1024
_RECORD: Final = re.compile(rb"<civman:(?P<tag>record|packed)>(?P<text>[^<]*)</civman:(?P=tag)>", re.DOTALL)


def exif_with(comment: str) -> bytes:
    """Build an EXIF block (TIFF without the `Exif` prefix) with a user comment in big-endian UTF-16, as A1111 does."""
    value = b"UNICODE\0" + comment.encode("utf-16-be")
    main = struct.pack(">HHHIII", 1, _EXIF_DIRECTORY, 4, 1, 26, 0)
    inner = struct.pack(">HHHIII", 1, _USER_COMMENT, 7, len(value), 44, 0)
    return struct.pack(">2sHI", b"MM", 42, 8) + main + inner + value


def exif_texts(block: bytes) -> dict[str, str]:
    """Read the text entries of an EXIF block, by their names in the standard.

    Raises: ValueError: the bytes are not an EXIF block, or an offset points outside the block.
    """
    block = block.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        raise ValueError("no byte order")
    try:
        (first,) = struct.unpack_from(f"{order}I", block, 4)
        texts: dict[str, str] = {}
        for tag, value in _entries(block, order, first, depth=0):
            name = _TEXT_TAGS[tag]
            text = comment_text(value) if tag == _USER_COMMENT else _plain_text(value)
            if text:
                texts.setdefault(name, text)
    except struct.error as error:
        raise ValueError("truncated") from error
    return texts


def _entries(block: bytes, order: str, start: int, depth: int) -> Iterator[tuple[int, bytes]]:
    (number,) = struct.unpack_from(f"{order}H", block, start)
    if number > _MOST_ENTRIES:
        raise ValueError(f"{number} entries")
    for index in range(number):
        at = start + 2 + 12 * index
        tag, kind, length, where = struct.unpack_from(f"{order}HHII", block, at)
        if tag == _EXIF_DIRECTORY and depth == 0:
            yield from _entries(block, order, where, depth=1)
        elif tag in _TEXT_TAGS and kind in _ITEM_BYTES:
            begin = at + 8 if length <= 4 else where
            if begin + length > len(block):
                raise ValueError("an entry extends beyond the EXIF block")
            yield tag, block[begin : begin + length]


def comment_text(value: bytes) -> str:
    """Decode a user comment in any of the encodings that programs use.

    The standard does not specify the byte order of UTF-16, and the byte order of the TIFF does not determine it
    (CivitAI's images use another one). civman chooses the order in which the text contains generation data, or else the
    one with more ASCII characters.
    """
    code, body = value[:8], value[8:]
    if code == b"UNICODE\0":
        return _utf16(body).rstrip("\0")
    if code.startswith((b"ASCII\0", b"UTF8")) or code == bytes(8):
        return _plain_text(body)
    return _plain_text(value)


def _utf16(body: bytes) -> str:
    if body[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return body.decode("utf-16", "replace")
    both = [body.decode(f"utf-16-{end}", "replace") for end in ("be", "le")]
    for text in both:
        if any(sign in text for sign in _SIGNS):
            return text
    return max(both, key=lambda text: sum(" " <= letter <= "~" for letter in text))


def _plain_text(value: bytes) -> str:
    value = value.rstrip(b"\0")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def xmp_with(record: str) -> bytes:
    """Build an XMP packet with the record as its only property.

    The record is stored as plain text, or compressed (zlib, base64) if it is too long or XML cannot contain it.
    """
    data = record.encode("utf-8")
    if _PLAIN.fullmatch(record) and len(escape(record).encode()) <= _MOST_PLAIN:
        tag, text = "record", escape(record)
    else:
        tag, text = "packed", base64.b64encode(zlib.compress(data, 9)).decode()
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""'
        f' xmlns:civman="{_NAMESPACE}"><civman:{tag}>{text}</civman:{tag}></rdf:Description></rdf:RDF></x:xmpmeta>'
        '<?xpacket end="r"?>'
    ).encode()


def record_in(packet: bytes) -> str | None:
    """Read the record in an XMP packet; None if there is none.

    Raises: ValueError: the record is damaged, or there are two different records.
    """
    found = {(match["tag"], match["text"]) for match in _RECORD.finditer(packet)}
    if not found:
        if _NAMESPACE.encode() in packet:
            raise ValueError("civman's record is truncated")
        return None
    if len(found) > 1:
        raise ValueError("it contains two different records of civman")
    ((tag, text),) = found
    if tag == b"record":
        return unescape(text.decode("utf-8"))
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(base64.b64decode(text, validate=True), _MOST_RECORD)
    except zlib.error as error:
        raise ValueError("civman's record cannot be decompressed") from error
    if not inflate.eof:
        raise ValueError("civman's record is truncated or too large")
    return data.decode("utf-8")
