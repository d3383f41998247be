"""Reads the tensors of a file that torch.save wrote, without torch and without running any code that the file names.

Both containers are supported: the zip archive, and the older sequence of pickles. Names, shapes and types are read from
the pickles themselves; the weights stay in the file until `write_safetensors` copies them.
`civman.domain.files.pickle_machine` reads the pickles and refuses whatever could run code.
"""

import io
import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import IO, Any, Final, Literal

from civman.domain.file_suffixes import PICKLE_SUFFIXES
from civman.domain.files import pickle_machine
from civman.domain.files.header import Header, Sniffed, sniff
from civman.domain.files.header_text import BITS, refuse
from civman.domain.files.pickle_machine import MAX_PICKLE_BYTES, NeedsMore, Unpickled
from civman.domain.files.pickle_tensors import PickledTensors, name_tensors
from civman.domain.files.pickle_values import Pairs, Storage, StoredTensor
from civman.domain.files.zip_directory import Member, ReadAt, read_directory
from civman.errors import Cause, CivmanError, IntegrityError, Refused, StoreError
from civman.store.partial import store_error
from civman.store.read_header import number_of, read_first
from civman.system.file_io import read_at

_ZIP_START = b"PK\x03\x04"
_MAGIC = 0x1950A86A20F9469CFC6C
"""The magic number that torch.save before 1.6 writes as the first pickle of a file."""
_PROTOCOL = 1001
_FIRST_BYTES = 1 << 18
_PIECE_BYTES = 4 << 20
_MAX_DEFLATED = 1 << 30
"""The maximum size of a compressed storage, which has to fit into memory. torch itself does not compress."""
_MAX_GROWTH = 4
"""The largest allowed ratio of the safetensors copy's size to that of the storages.

The copy can be larger because tensors that share a storage are written separately.
"""


@dataclass(frozen=True, slots=True)
class PickleFile:
    """A pickle that was read completely and contains nothing but tensors and plain values."""

    named: PickledTensors = field(repr=False)
    header: Header = field(repr=False)
    """The header of a safetensors file with the same contents."""
    places: Mapping[str, Member] = field(repr=False)
    """Maps the key of each storage to the position of its bytes in the file."""


def read_pickle(path: Path) -> PickleFile:
    """Read the names, shapes and types of the tensors in the file at `path`, and check that they match its storages.

    Raises: Refused (`pickle`): the file could run code; the message says what and in which part of the file.
    InvalidModelFile: the file is broken, or torch.save did not write it. StoreError: the file cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            return _read(_reader(file.fileno(), size), size)
    except OSError as error:
        raise store_error(error, path) from error


def read_pickle_bytes(data: bytes) -> PickleFile:
    """Read the names, shapes and types of the tensors in the bytes of a torch.save file, as `read_pickle` does.

    Raises: Refused, InvalidModelFile.
    """
    return _read(lambda start, count: data[start : start + count], len(data))


def looks_like_pickle(path: Path) -> bool:
    """Whether the file at `path` looks like a pickle, by its first bytes or, if these are unclear, by its suffix.

    Raises: StoreError.
    """
    content, is_named_so = sniff(read_first(path)), path.suffix.lower() in PICKLE_SUFFIXES
    return content is Sniffed.PICKLE or (is_named_so and content in (Sniffed.ZIP, Sniffed.UNKNOWN))


def read_or_refusal(path: Path, name: str) -> PickleFile | CivmanError:
    """Return the contents of the pickle at `path`, or the error that explains why civman refuses it.

    `name`: the file's name for the error message. Raises: StoreError: the file cannot be read from disk.
    """
    try:
        return read_pickle(path)
    except (Refused, IntegrityError) as error:
        error.message = f"`{name}`: {error.message}"
        error.facts["name"] = name
        return error


def require_readable(path: Path, name: str) -> None:
    """Check that loading a file with a pickle's suffix cannot run code, whichever program loads it.

    Raises: Refused (`pickle`): the file could run code, or civman cannot read it and so cannot rule that out.
    StoreError.
    """
    if sniff(read_first(path)) in (Sniffed.SAFETENSORS, Sniffed.GGUF):
        return
    found = read_or_refusal(path, name)
    if isinstance(found, CivmanError):
        raise Refused(
            f"{found.message}",
            code=Cause.PICKLE,
            hint="pass --allow-pickle to store the file anyway; civman never runs it",
            **found.facts,
        )


def read_pickled_numbers(path: Path, pickle: PickleFile, names: Iterable[str]) -> dict[str, float]:
    """Return the values of the named tensors that have one element; leave out the others. Raises: StoreError."""
    found: dict[str, float] = {}
    with _Source(path, pickle) as source:
        for name in names:
            tensor = pickle.named.tensors[name]
            value = number_of(tensor.dtype, source.bytes_of(tensor)) if tensor.count == 1 else None
            if value is not None:
                found[name] = value
    return found


def write_safetensors(path: Path, pickle: PickleFile, target: IO[bytes], origin: Mapping[str, str]) -> int:
    """Write the tensors of the pickle at `path` to `target` as a safetensors file. Returns the number of bytes.

    `origin` is added to the file's metadata. Raises: InvalidModelFile: a storage is damaged. StoreError.
    """
    head = pickle.named.header_bytes(origin)
    written = target.write(head)
    with _Source(path, pickle) as source:
        for tensor in pickle.named.tensors.values():
            for piece in source.pieces(tensor):
                written += target.write(piece)
    return written


def _reader(descriptor: int, size: int) -> ReadAt:
    def read(start: int, count: int) -> bytes:
        data = bytearray(max(0, min(count, size - start)))
        view, done = memoryview(data), 0
        while done < len(data):
            got = read_at(descriptor, view[done:], start + done)
            if not got:
                raise StoreError("the file became shorter while it was read")
            done += got
        return bytes(data)

    return read


def _read(read: ReadAt, size: int) -> PickleFile:
    if read(0, 4) == _ZIP_START:
        value, places, loaded = _read_archive(read, size)
    else:
        value, places, loaded = _read_sequence(read, size)
    named = name_tensors(value)
    for tensor in named.tensors.values():
        _check_place(tensor.storage, places)
    header = named.header()
    if header.file_size > max(_PIECE_BYTES, _MAX_GROWTH * loaded):
        refuse(
            "the tensors in the pickle share their storages so often that a copy of it would be too large",
            cause="bad-layout",
        )
    return PickleFile(named, header, places)


def _check_place(storage: Storage, places: Mapping[str, Member]) -> None:
    place = places.get(storage.key)
    if place is None:
        refuse("the pickle refers to a storage that is not in the file", cause="bad-layout")
    if storage.count * (BITS[storage.dtype] // 8 if storage.dtype else 1) != place.size_bytes:
        refuse(
            f"storage {storage.key} should contain {storage.count} elements ({storage.dtype or 'bytes'}), but it has "
            f"{place.size_bytes} bytes in the file", cause="bad-size",
        )  # fmt: skip


def _read_archive(read: ReadAt, size: int) -> tuple[Any, dict[str, Member], int]:
    members = read_directory(read, size)
    if "data.pkl" not in members:
        refuse("the archive has no data.pkl, so torch.save did not write it", cause="is-zip")
    if "byteorder" in members and _unpacked(read, members["byteorder"], 64) != b"little":
        refuse("the numbers in the archive are big-endian", cause="byte-order")
    data = _unpacked(read, members["data.pkl"], MAX_PICKLE_BYTES)
    found = _run(data, "data.pkl")
    if found.end != len(data):
        refuse("data.pkl contains more bytes after the end of the pickle", cause="trailing-bytes")
    places = {name.removeprefix("data/"): member for name, member in members.items() if name.startswith("data/")}
    return found.value, places, sum(place.size_bytes for place in places.values())


def _run(data: bytes, member: str) -> Unpickled:
    try:
        return pickle_machine.run(data, member=member)
    except NeedsMore:
        refuse(f"truncated: {member} has no end", cause="truncated", hint="download the file again")


def _unpacked(read: ReadAt, member: Member, limit: int) -> bytes:
    """Read the contents of a small member of the zip archive and check them against its CRC-32."""
    if member.size_bytes > limit:
        refuse(f"`{member.name}` in the archive has {member.size_bytes:,} bytes, more than any real model has",
               cause="too-long-pickle")  # fmt: skip
    data = read(member.start, member.packed_bytes)
    if member.is_deflated:
        data = _inflated(data, member)
    if len(data) != member.size_bytes or zlib.crc32(data) != member.crc32:
        refuse(f"`{member.name}` in the archive is damaged", cause="bad-zip")
    return data


def _inflated(data: bytes | memoryview, member: Member) -> bytes:
    inflater = zlib.decompressobj(-15)
    try:
        found = inflater.decompress(data, member.size_bytes + 1)
    except zlib.error:
        refuse(f"`{member.name}` in the archive is damaged", cause="bad-zip")
    if len(found) != member.size_bytes or not inflater.eof:
        refuse(f"`{member.name}` does not have the size that the archive's directory lists", cause="bad-size")
    return found


def _read_sequence(read: ReadAt, size: int) -> tuple[Any, dict[str, Member], int]:
    """Read a file that torch.save before 1.6 wrote: five pickles, then each storage as its length and its bytes."""
    stream = _Sequence(read, size)
    magic = stream.next("the first pickle")
    if magic != _MAGIC:
        refuse("the file is a pickle, but torch.save did not write it", cause="not-torch")
    if stream.next("the second pickle") != _PROTOCOL:
        refuse("the file was written by a version of torch.save that civman does not support", cause="not-torch")
    system = stream.next("the third pickle")
    if isinstance(system, Pairs) and system.by_name().get("little_endian") is False:
        refuse("the numbers in the file are big-endian", cause="byte-order")
    found = stream.read("the main pickle")
    keys = stream.next("the list of storages")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
        refuse("the file's list of storages is not valid", cause="bad-pickle")
    places, at = {}, stream.at
    for key in keys:
        raw, storage = read(at, 8), found.storages.get(key)
        if len(raw) < 8:
            refuse(
                "truncated: a storage is missing at the file's end", cause="truncated", hint="download the file again"
            )
        if storage is None:
            refuse(f"storage {key[:20]!r} belongs to no tensor, so its size is unknown", cause="bad-layout")
        count = struct.unpack("<q", raw)[0]
        length = count * (BITS[storage.dtype] // 8 if storage.dtype else 1)
        if count != storage.count or at + 8 + length > size:
            refuse(
                "truncated: a storage is shorter than its tensors need",
                cause="truncated",
                hint="download the file again",
            )
        places[key] = Member(key, at + 8, length, length, is_deflated=False, crc32=0)
        at += 8 + length
    if at != size:
        refuse(f"the file contains {size - at} more bytes after the last storage", cause="trailing-bytes")
    return found.value, places, sum(place.size_bytes for place in places.values())


class _Sequence:
    """Reads consecutive pickles in pieces of growing size, because the file does not state their lengths."""

    def __init__(self, read: ReadAt, size: int) -> None:
        self._read, self._size = read, size
        self.at = 0

    def next(self, member: str) -> Any:
        """Read the next pickle and return its value."""
        return self.read(member).value

    def read(self, member: str) -> Unpickled:
        """Read and return the next pickle of the file, without running it."""
        count = _FIRST_BYTES
        while True:
            data = self._read(self.at, count)
            try:
                found = pickle_machine.run(data, member=member)
            except NeedsMore:
                if len(data) < count:
                    refuse(f"truncated: {member} has no end", cause="truncated", hint="download the file again")
                if count >= MAX_PICKLE_BYTES:
                    refuse(f"{member} is longer than in any real model", cause="too-long-pickle")
                count = min(count * 8, MAX_PICKLE_BYTES)
                continue
            self.at += found.end
            return found


class _Source:
    """The bytes of a pickle's storages: the memory map of the file, or a decompressed copy."""

    def __init__(self, path: Path, pickle: PickleFile) -> None:
        self._path, self._places = path, pickle.places
        self._inflated: tuple[str, bytes] = ("", b"")

    def __enter__(self) -> "_Source":
        try:
            file = self._path.open("rb")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise store_error(error if isinstance(error, OSError) else OSError(str(error)), self._path) from error
        self._file: io.BufferedReader = file
        self._view = memoryview(self._map)
        return self

    def __exit__(self, *_: object) -> None:
        self._view.release()
        self._map.close()
        self._file.close()

    def bytes_of(self, tensor: StoredTensor) -> bytes:
        """All bytes of a tensor, in the order of its elements."""
        return b"".join(map(bytes, self.pieces(tensor)))

    def pieces(self, tensor: StoredTensor) -> Iterator[bytes | memoryview]:
        """Iterate over a tensor's bytes, in the order of its elements, in pieces of a few megabytes."""
        width, count = tensor.item_bytes, tensor.count
        if not count:
            return
        with self._storage(tensor.storage) as storage:
            if tensor.is_contiguous:
                begin, end = tensor.offset * width, (tensor.offset + count) * width
                for at in range(begin, end, _PIECE_BYTES):
                    with storage[at : min(end, at + _PIECE_BYTES)] as piece:
                        yield piece
                return
            yield from _rows(storage, tensor)

    def _storage(self, storage: Storage) -> memoryview:
        place = self._places[storage.key]
        packed = self._view[place.start : place.start + place.packed_bytes]
        if not place.is_deflated:
            return packed
        if self._inflated[0] != storage.key:
            with packed:
                if place.size_bytes > _MAX_DEFLATED:
                    refuse(f"storage {storage.key} is compressed and too large to read", cause="decompression-bomb")
                data = _inflated(packed, place)
            if zlib.crc32(data) != place.crc32:
                refuse(f"`{place.name}` in the archive is damaged", cause="bad-zip")
            self._inflated = (storage.key, data)
        return memoryview(self._inflated[1])


_FORMS: Final[dict[int, Literal["B", "H", "I", "Q"]]] = {1: "B", 2: "H", 4: "I", 8: "Q"}


def _rows(storage: memoryview, tensor: StoredTensor) -> Iterator[bytes]:
    """Yield the bytes of a tensor that is not contiguous, row by row along its last axis, in pieces."""
    width = tensor.item_bytes
    length = len(storage) // width * width
    *outer, size = tensor.shape
    *jumps, stride = tensor.strides
    buffer = bytearray()
    with storage[:length] as whole, whole.cast(_FORMS[width]) as items:
        for numbers in product(*(range(each) for each in outer)):
            at = tensor.offset + sum(number * jump for number, jump in zip(numbers, jumps, strict=True))
            # the stride of an axis with one element does not matter and may be 0, which is invalid as a slice's step
            step = stride or 1
            buffer += items[at : at + (size - 1) * step + 1 : step].tobytes()
            if len(buffer) >= _PIECE_BYTES:
                yield bytes(buffer)
                buffer.clear()
    yield bytes(buffer)
