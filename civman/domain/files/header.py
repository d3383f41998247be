"""Parse a safetensors header: names, types, shapes and offsets of the tensors, and the file's metadata.

Parses bytes that the caller has read from disk or downloaded with a range request, and rejects anything that is not a
complete, well-formed safetensors file. Does no I/O and never reads weights. The JSON text itself is parsed in
`civman.domain.files.header_text`.

Source: the safetensors format description (8 bytes little-endian length, JSON header, tensors end to end).
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from operator import itemgetter
from typing import Any

from civman.domain.files.header_text import BITS, Tensor, read_text, refuse, short
from civman.domain.files.tokenizer_files import tokenizer_tensor

__all__ = [
    "BITS", "MAX_HEADER_BYTES", "Header", "Sniffed", "Tensor", "needed_bytes", "parse", "sniff", "tokenizer_header",
]  # fmt: skip

MAX_HEADER_BYTES = 100_000_000
"""The limit on the length of a header, as in safetensors' reference implementation."""


class Sniffed(StrEnum):
    """The file type that a file's first bytes indicate."""

    SAFETENSORS = "safetensors"
    HTML = "html"
    JSON = "json"
    XML = "xml"
    PICKLE = "pickle"
    ZIP = "zip"
    GGUF = "gguf"
    PNG = "png"
    JPEG = "jpeg"
    GZIP = "gzip"
    SEVEN_ZIP = "7z"
    GIT_LFS = "git-lfs"
    TOKENIZER = "tokenizer"
    EMPTY = "empty"
    UNKNOWN = "unknown"


_DESCRIPTIONS = {
    Sniffed.HTML: "an HTML page, not a model (a login or error page?)",
    Sniffed.JSON: "JSON, not a model (an error message?)",
    Sniffed.XML: "XML, not a model (a storage error message?)",
    Sniffed.PICKLE: "a pickle, not safetensors: opening it could run code",
    Sniffed.ZIP: "a ZIP archive, not safetensors",
    Sniffed.GGUF: "a GGUF file, not safetensors",
    Sniffed.PNG: "a PNG image, not a model",
    Sniffed.JPEG: "a JPEG image, not a model",
    Sniffed.GZIP: "gzip data, not safetensors",
    Sniffed.SEVEN_ZIP: "a 7z archive, not safetensors",
    Sniffed.GIT_LFS: "a Git LFS pointer, not the file itself",
    Sniffed.TOKENIZER: "a tokenizer, not safetensors",
    Sniffed.EMPTY: "empty",
}

_MAGIC = (
    (b"GGUF", Sniffed.GGUF), (b"\x89PNG", Sniffed.PNG), (b"\xff\xd8\xff", Sniffed.JPEG), (b"\x1f\x8b", Sniffed.GZIP),
    (b"7z\xbc\xaf", Sniffed.SEVEN_ZIP), (b"version https://git-lfs", Sniffed.GIT_LFS),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Header:
    """A complete, validated safetensors header. `tensors` has the order of the header."""

    tensors: Mapping[str, Tensor] = field(repr=False)
    metadata: Mapping[str, str] = field(repr=False)
    header_bytes: int
    """The number of bytes before the first tensor: eight for the length, then the JSON text."""
    file_size: int
    paired_rows: Mapping[str, int] = field(default_factory=dict, repr=False)
    """Maps each tensor whose rows are in llama.cpp's order (see `gguf_rows`) to its number of attention heads."""
    notes: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """A cache for values that other modules compute from this header alone."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Maps each tensor's name to its shape. Cached, so callers must not modify it."""
        if "shapes" not in self.notes:
            self.notes["shapes"] = {name: tensor.shape for name, tensor in self.tensors.items()}
        found: dict[str, tuple[int, ...]] = self.notes["shapes"]
        return found

    @property
    def elements(self) -> dict[str, int]:
        """Maps each data type to the number of elements of all tensors with that type.

        Tensors without dimensions (scalars) are not counted.
        """
        found: dict[str, int] = {}
        for (dtype, shape), count in Counter(map(itemgetter(0, 1), self.tensors.values())).items():
            if shape:
                found[dtype] = found.get(dtype, 0) + math.prod(shape) * count
        return found

    @property
    def parameter_count(self) -> int:
        """The number of elements of all tensors together."""
        return sum(map(math.prod, self.shapes.values()))


def sniff(first: bytes) -> Sniffed:
    """Return the file type that a file's first bytes indicate. 512 bytes are enough; 8 bytes give a first guess."""
    if not first:
        return Sniffed.EMPTY
    # first look for the brace that follows the length, because the length's bytes may equal another format's signature
    plausible = len(first) >= 8 and 2 <= int.from_bytes(first[:8], "little") <= MAX_HEADER_BYTES
    if plausible and first[8:].lstrip(b" \t\r\n")[:1] in (b"{", b""):
        return Sniffed.SAFETENSORS
    if tokenizer_tensor(first) is not None:
        return Sniffed.TOKENIZER
    for magic, said in _MAGIC:
        if first.startswith(magic):
            return said
    if first.startswith(b"PK\x03\x04"):
        return Sniffed.PICKLE if b"data.pkl" in first[:512] else Sniffed.ZIP
    if first[0] == 0x80 and first[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return Sniffed.PICKLE
    text = first[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<?xml"):
        return Sniffed.XML
    if text.startswith((b"<!doc", b"<html", b"<head", b"<body", b"<script", b"<!--")):
        return Sniffed.HTML
    return Sniffed.JSON if text.startswith((b"{", b"[")) else Sniffed.UNKNOWN


def needed_bytes(first: bytes, file_size: int) -> int:
    """Return how many bytes from the start of the file `parse` needs. `first` must have at least eight bytes.

    The error messages are more exact if `first` has 512 bytes.

    Raises: InvalidModelFile: it cannot be a safetensors file of `file_size` bytes.
    """
    found = sniff(first)
    if found in _DESCRIPTIONS:
        refuse(f"the file is {_DESCRIPTIONS[found]}", cause=f"is-{found.value}")
    if len(first) < 8 or file_size < 8:
        refuse(f"the file is too short to be a model: {file_size} bytes", cause="truncated")
    length = int.from_bytes(first[:8], "little")
    if length > MAX_HEADER_BYTES or length < 2 or found is not Sniffed.SAFETENSORS:
        refuse("the file is not safetensors: it does not begin with a header", cause="no-header")
    if 8 + length > file_size:
        refuse(f"truncated: the header alone takes {8 + length} bytes, but the file has {file_size}", cause="truncated")
    return 8 + length


def parse(prefix: bytes, *, file_size: int) -> Header:
    """Parse the header of a file of `file_size` bytes that starts with `prefix` (`needed_bytes` returns its length).

    Checks the types and shapes, and that the tensors have different names and lie end to end from the header to the
    last byte of the file.

    Raises: InvalidModelFile: a check fails; the cause is in the message and in `facts["cause"]`.
    """
    needed = needed_bytes(prefix[:512], file_size)
    if len(prefix) < needed:
        refuse(f"truncated: the header takes {needed} bytes, but only {len(prefix)} were read", cause="truncated")
    tensors, metadata = read_text(prefix, needed)
    _check_places(tensors, data_bytes=file_size - needed, header_bytes=needed)
    return Header(tensors=tensors, metadata=metadata, header_bytes=needed, file_size=file_size)


def tokenizer_header(first: bytes, file_size: int, metadata: Mapping[str, str]) -> Header | None:
    """Return a header that presents a tokenizer file as a single tensor with all of its bytes; None for other files.

    `first`: the file's first 512 bytes.
    """
    name = tokenizer_tensor(first[:512])
    if name is None:
        return None
    return Header({name: Tensor("U8", (file_size,), 0, file_size)}, metadata, 0, file_size)


def _check_places(tensors: Mapping[str, Tensor], *, data_bytes: int, header_bytes: int) -> None:
    at = 0
    for tensor in sorted(tensors.values(), key=itemgetter(2, 3)):  # sort by start offset, then by end offset
        if tensor.start != at:
            name = next(name for name, each in tensors.items() if each is tensor)
            problem = "it overlaps another tensor" if tensor.start < at else "there is a gap before it"
            refuse(f"`{short(name)}` is at byte {tensor.start} instead of {at}, so {problem}", cause="bad-layout")
        at = tensor.end
    if at > data_bytes:
        refuse(
            f"truncated: according to its header the file should have {header_bytes + at} bytes, but it has "
            f"{header_bytes + data_bytes}",
            cause="truncated",
            hint="download the file again",
        )
    if at < data_bytes:
        refuse(f"the file continues for {data_bytes - at} bytes after its last tensor", cause="trailing-bytes")
