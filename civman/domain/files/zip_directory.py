"""Read the directory of a zip archive that torch.save wrote, and refuse archives that programs may read differently.

Programs disagree about damaged and ambiguous archives: two members with the same name, names that differ between
directory and member, bytes before or after the archive. These archives are refused, so that every program reads the
same pickle that civman has checked.

Source: the zip format (APPNOTE 6.3, with zip64), and the members that torch.save writes.
"""

import re
import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

from civman.domain.files.header_text import refuse, short

MAX_MEMBERS = 100_000
_MAX_DIRECTORY_BYTES = 32 << 20
_MAX_RATIO = 16
_FREE_BYTES = 16 << 20
"""Archives that expand to at most this number of bytes are accepted, whatever their compression ratio."""
_END = struct.Struct("<4s4H2LH")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_STORED, _DEFLATED = 0, 8
_NAME = re.compile(r"([^/]{1,200})/(data\.pkl|version|byteorder|\.data/serialization_id|\.format_version|"
                   r"\.storage_alignment|data/(?:[0-9]{1,9})?|)")  # fmt: skip
_SCRIPT = re.compile(r"[^/]{1,200}/(code/.*|constants\.pkl|attributes\.pkl)")

ReadAt = Callable[[int, int], bytes]
"""A function that returns bytes of the file, given their offset and number; fewer at the end of the file."""


class Member(NamedTuple):
    """One file of the archive. Its contents are the `packed_bytes` bytes from offset `start`."""

    name: str
    start: int
    packed_bytes: int
    size_bytes: int
    is_deflated: bool
    crc32: int


def read_directory(read: ReadAt, file_size: int) -> dict[str, Member]:
    """Map each member's name to the member. The names, such as `data.pkl`, leave out the archive's top folder.

    Raises: InvalidModelFile: the archive is broken or ambiguous, contains something that torch.save does not write, or
        expands to much more than its own size.
    """
    entries, place, count = _end(read, file_size)
    raw = read(place, entries)
    found: dict[str, Member] = {}
    at, folder = 0, None
    spans = []
    for _ in range(count):
        name, member, local, at = _entry(raw, at)
        folder = _checked_name(name, folder)
        short_name = name[len(folder) + 1 :]
        if short_name in found:
            refuse(f"the archive contains `{short(name)}` twice", cause="duplicate-name")
        start = _data_start(read, local, name)
        found[short_name] = member._replace(name=name, start=start)
        spans.append((local, start + member.packed_bytes))
    if at != len(raw):
        refuse("the archive's directory goes on after its last entry", cause="bad-zip")
    _check_spans(spans, place)
    _check_expansion(found.values(), file_size)
    return found


def _end(read: ReadAt, file_size: int) -> tuple[int, int, int]:
    """Find the central directory, and return its size, its offset and its number of entries."""
    raw = read(max(0, file_size - _END.size), _END.size)
    if len(raw) < _END.size or raw[:4] != b"PK\x05\x06":
        refuse("truncated: the archive has no directory at its end", cause="truncated", hint="download the file again")
    _, *stated, _ = _END.unpack(raw)
    end = file_size - _END.size
    locator = read(end - _LOCATOR.size, _LOCATOR.size) if end >= _LOCATOR.size else b""
    if locator[:4] == b"PK\x06\x07":
        end = _LOCATOR.unpack(locator)[2]
        record = read(end, _END64.size) if end < file_size else b""
        if len(record) < _END64.size or record[:4] != b"PK\x06\x06":
            refuse("the archive's directory is damaged", cause="bad-zip")
        wide = _END64.unpack(record)[4:]
        limits = (0xFFFF,) * 4 + (0xFFFFFFFF,) * 2
        if any(short_ not in (limit, full) for short_, full, limit in zip(stated, wide, limits, strict=True)):
            refuse("the archive has two directories", cause="bad-zip")
        stated = list(wide)
    disk, first_disk, here, count, size, place = stated
    if disk or first_disk or here != count:
        refuse("the archive is only a part of a split archive", cause="bad-zip")
    if count > MAX_MEMBERS or size > _MAX_DIRECTORY_BYTES:
        refuse(f"the archive has {count:,} members, more than any model has", cause="bad-zip")
    if place + size != end:
        refuse("the archive's directory is not at its recorded position", cause="bad-zip")
    return size, place, count


def _entry(raw: bytes, at: int) -> tuple[str, Member, int, int]:
    """Parse one entry of the ZIP central directory.

    Returns its name, its `Member`, the offset of its local header, and the offset of the next entry in `raw`.
    """
    if len(raw) - at < _ENTRY.size or raw[at : at + 4] != b"PK\x01\x02":
        refuse("the archive's directory is damaged", cause="bad-zip")
    (_, _, _, flags, method, _, _, crc32, packed, size, name_bytes, extra_bytes, comment_bytes, _, _, _, local) = (
        _ENTRY.unpack_from(raw, at)
    )
    at += _ENTRY.size
    end = at + name_bytes + extra_bytes + comment_bytes
    if end > len(raw):
        refuse("the archive's directory is damaged", cause="bad-zip")
    name = _text(raw[at : at + name_bytes])
    packed, size, local = _wide(raw[at + name_bytes : at + name_bytes + extra_bytes], packed, size, local)
    if flags & 1:
        refuse(f"`{short(name)}` in the archive is encrypted", cause="bad-zip")
    if method not in (_STORED, _DEFLATED):
        refuse(f"`{short(name)}` in the archive is compressed in a way that torch does not read", cause="bad-zip")
    if method == _STORED and packed != size:
        refuse(f"the archive states two different sizes for `{short(name)}`", cause="bad-size")
    return name, Member(name, 0, packed, size, method == _DEFLATED, crc32), local, end


def _wide(extra: bytes, packed: int, size: int, local: int) -> tuple[int, int, int]:
    """Replace values that do not fit into 32 bits with those in the zip64 field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        body = extra[at + 4 : at + 4 + length]
        if kind == 1:
            values = list(struct.unpack_from(f"<{len(body) // 8}Q", body))
            if size == 0xFFFFFFFF and values:
                size = values.pop(0)
            if packed == 0xFFFFFFFF and values:
                packed = values.pop(0)
            if local == 0xFFFFFFFF and values:
                local = values.pop(0)
            break
        at += 4 + length
    return packed, size, local


def _checked_name(name: str, folder: str | None) -> str:
    match = _NAME.fullmatch(name)
    if match is None:
        if _SCRIPT.fullmatch(name):
            refuse("the file is a TorchScript program, not only tensors", cause="torch-script")
        refuse(f"the archive contains `{short(name)}`, which does not belong to a model", cause="bad-zip")
    if folder not in (None, match[1]):
        refuse(f"the archive contains two folders, `{short(folder or '')}` and `{short(match[1])}`", cause="bad-zip")
    return match[1]


def _data_start(read: ReadAt, local: int, name: str) -> int:
    raw = read(local, _LOCAL.size + len(name.encode()))
    if len(raw) < _LOCAL.size or raw[:4] != b"PK\x03\x04":
        refuse(f"`{short(name)}` in the archive is not at its recorded position", cause="bad-zip")
    *_, name_bytes, extra_bytes = _LOCAL.unpack_from(raw)
    if raw[_LOCAL.size :] != name.encode() or name_bytes != len(name.encode()):
        refuse(f"the name of `{short(name)}` in the archive differs from its name in the directory", cause="bad-zip")
    return local + _LOCAL.size + int(name_bytes) + int(extra_bytes)


def _check_spans(spans: list[tuple[int, int]], place: int) -> None:
    """Check that the archive starts at the file's first byte, and that no two members overlap."""
    spans.sort()
    if not spans or spans[0][0] != 0:
        refuse("the archive does not start at the beginning of the file", cause="bad-zip")
    for (_, end), (begin, _) in zip(spans, [*spans[1:], (place, place)], strict=True):
        if end > begin:
            refuse("two members of the archive overlap", cause="bad-layout")


def _check_expansion(members: Iterable[Member], file_size: int) -> None:
    total = sum(member.size_bytes for member in members)
    if total > max(_FREE_BYTES, file_size * _MAX_RATIO):
        refuse(
            f"the archive expands from {file_size:,} to {total:,} bytes; no model file compresses that well",
            cause="decompression-bomb",
        )


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        refuse("the archive's directory contains a name that is not UTF-8", cause="bad-text")
