"""Parse the header of a GGUF file: architecture, quantisation, and the names, types and shapes of its tensors.

Parses bytes that the caller has read, within limits, and rejects anything that is not a well-formed GGUF header. Does
no I/O and never reads weights.

Source: the GGUF specification of ggml (version 2 and 3): magic, counts, key-value pairs, tensor infos, little-endian.
"""

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from civman.domain.files.header import Header
from civman.domain.files.header_text import Tensor, refuse, short

MAGIC = b"GGUF"
MAX_ENTRIES = 100_000
"""civman's limit on the number of keys and of tensors; the largest models have a few thousand."""
MAX_STRING_BYTES = 16 << 20
MAX_ARRAY_ITEMS = 4_000_000
"""civman's limit on the length of arrays; a language model's vocabulary has about 300,000 words."""

_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class NeedsMore(Exception):
    """The header is longer than the bytes given: read more of the file and parse again."""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A complete GGUF header.

    Shapes are outermost dimension first, as in safetensors (the file stores them reversed).
    """

    version: int
    architecture: str
    """The value of `general.architecture`, such as "flux" or "sd3"; empty if the file has none."""
    quantisation: str
    """The type of most weights, such as "Q4_K"."""
    tensors: Mapping[str, tuple[str, tuple[int, ...]]] = field(repr=False)
    """Tensor name → its type and shape."""
    metadata: Mapping[str, str] = field(repr=False)
    """The file's metadata entries that are numbers or short strings."""

    @property
    def words(self) -> str:
        """A description for people, such as "GGUF, flux, Q4_K, 780 tensors"."""
        parts = ["GGUF", self.architecture, self.quantisation, f"{len(self.tensors)} tensors"]
        return ", ".join(part for part in parts if part)

    @property
    def as_header(self) -> Header:
        """The same tensors and metadata in the form in which safetensors headers are read; offsets are left out."""
        tensors = {name: Tensor(kind, shape, 0, 0) for name, (kind, shape) in self.tensors.items()}
        return Header(tensors=tensors, metadata=self.metadata, header_bytes=0, file_size=0)


def parse_gguf(prefix: bytes, *, is_whole: bool = False) -> GgufHeader:
    """Parse the header of a file that starts with `prefix`; `is_whole` means that `prefix` is the complete file.

    Raises: NeedsMore: the header is longer than `prefix`. InvalidModelFile: it is not a valid GGUF header.
    """
    reader = _Reader(prefix)
    try:
        return _parse(reader)
    except NeedsMore:
        if is_whole:
            refuse("truncated: the file ends within the GGUF header", cause="truncated")
        raise


def _parse(reader: "_Reader") -> GgufHeader:
    if reader.take(4) != MAGIC:
        refuse("the file is not GGUF: it does not start with the GGUF magic bytes", cause="no-header")
    version = reader.number("I")
    if version not in (2, 3):
        refuse(f"GGUF version {version}, which civman does not read", cause="bad-header")
    tensor_count, key_count = reader.number("Q"), reader.number("Q")
    if max(tensor_count, key_count) > MAX_ENTRIES:
        refuse(f"the GGUF header lists more than {MAX_ENTRIES} entries", cause="too-many-tensors")
    metadata: dict[str, str] = {}
    for _ in range(key_count):
        key = reader.text()
        value = reader.value(reader.number("I"))
        if value is not None and len(value) <= 1000:
            metadata[key] = value
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for _ in range(tensor_count):
        name = reader.text()
        axes = reader.number("I")
        if axes > 8:
            refuse(f"`{short(name)}` has {axes} axes", cause="bad-shape")
        shape = tuple(reader.number("Q") for _ in range(axes))[::-1]
        kind = reader.number("I")
        reader.number("Q")
        if name in tensors:
            refuse(f"the header lists `{short(name)}` twice", cause="duplicate-name")
        tensors[name] = (_TYPES.get(kind, f"type {kind}"), shape)
    weights: Counter[str] = Counter()
    for kind_name, shape in tensors.values():
        weights[kind_name] += min(prod(shape), 1 << 62)
    most = max(weights, key=lambda name: (weights[name], name), default="")
    return GgufHeader(version, metadata.get("general.architecture", ""), most, tensors, metadata)


class _Reader:
    """Reads numbers, strings and arrays in sequence, rejecting any that exceed the limits."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        if self._at + count > len(self._data):
            raise NeedsMore
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, form: str) -> int:
        return int(struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0])

    def text(self) -> str:
        length = self.number("Q")
        if length > MAX_STRING_BYTES:
            refuse("the GGUF header contains a longer string than any real file", cause="bad-text")
        return self.take(length).decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> str | None:
        """Read one value as a string; arrays are skipped, and None is returned for them."""
        if kind == _STRING:
            return self.text()
        if kind in _NUMBERS:
            form = _NUMBERS[kind]
            return str(struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0])
        if kind != _ARRAY or depth > 2:
            refuse(f"the GGUF header contains a value of unknown type {kind}", cause="bad-header")
        inner, count = self.number("I"), self.number("Q")
        if count > MAX_ARRAY_ITEMS:
            refuse("the GGUF header contains a longer array than any real file", cause="bad-header")
        if inner in _NUMBERS:
            self.take(count * struct.calcsize(f"<{_NUMBERS[inner]}"))
        else:
            for _ in range(count):
                self.value(inner, depth + 1)
        return None
