"""Parse the header of a GGUF file: architecture, quantisation, and the names, types and shapes of its tensors.

Parses bytes that the caller has read, enforces limits, and rejects anything that is not a well-formed GGUF header. Does
no I/O and never reads weights.

Source: the GGUF specification of ggml (versions 2 and 3): magic, counts, key-value pairs, tensor infos, little-endian.
"""

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from civman.domain.files.gguf_names import author_names
from civman.domain.files.gguf_rows import heads_with_paired_rows
from civman.domain.files.gguf_types import BLOCKS, TYPES
from civman.domain.files.header import Header
from civman.domain.files.header_text import Tensor, refuse, short

MAGIC = b"GGUF"
MAX_ENTRIES = 100_000
"""civman's limit on the number of keys and of tensors. The largest models have a few thousand."""
MAX_STRING_BYTES = 16 << 20
MAX_ARRAY_ITEMS = 4_000_000
"""civman's limit on the length of arrays. A language model's vocabulary has about 300,000 tokens."""

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_WHOLE = frozenset({0, 1, 2, 3, 4, 5, 10, 11})
_STRING, _ARRAY, _ALIGNMENT = 8, 9, 32
_STATED_SHAPE = "comfy.gguf.orig_shape."
"""The prefix of a metadata key whose value is the true shape of a tensor that is stored with a different row width.

The rest of the key is the tensor's name. City96's converter writes these keys for convolutions.
"""


Shape = tuple[int, ...]


class NeedsMore(Exception):
    """The header is longer than the bytes given. The caller must read more of the file and parse again."""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A complete GGUF header.

    Shapes start with the outermost dimension, as in safetensors (the file stores them reversed).
    """

    version: int
    architecture: str
    """The value of `general.architecture`, such as "flux" or "sd3"; empty if there is none."""
    quantisation: str
    """The type of most weights, such as "Q4_K"."""
    tensors: Mapping[str, tuple[str, tuple[int, ...]]] = field(repr=False)
    """Maps each tensor's name to its type and shape."""
    metadata: Mapping[str, str] = field(repr=False)
    """The file's metadata entries that are numbers or short strings."""
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict, repr=False)
    """Maps each tensor's name to its first byte and the byte after its last, counted from `data_start`.

    The two are equal if the size of the tensor's type is unknown.
    """
    data_start: int = 0
    """The offset of the first tensor in the file."""
    file_size: int = 0

    @property
    def words(self) -> str:
        """A description for users, such as "GGUF, flux, Q4_K, 780 tensors"."""
        parts = ["GGUF", self.architecture, self.quantisation, f"{len(self.tensors)} tensors"]
        return ", ".join(part for part in parts if part)

    @property
    def cut_words(self) -> str:
        """The error message if the file ends before its last tensor, else ""."""
        end = self.data_start + max((end for _, end in self.places.values()), default=0)
        if end <= self.file_size:
            return ""
        return f"truncated: according to its header the file should have {end} bytes, but it has {self.file_size}"

    def require_complete(self) -> None:
        """Check that the file contains all of its tensors. Raises: InvalidModelFile."""
        if self.cut_words:
            refuse(self.cut_words, cause="truncated", hint="download the file again")

    @property
    def as_header(self) -> Header:
        """The same tensors and metadata in the form of a safetensors header.

        The tensors of a text encoder have the original authors' names (see `gguf_names`); their shapes and places are
        those in the file.
        """
        names = author_names(self.architecture, self.tensors)
        if len(set(names.values())) < len(names):
            refuse("two tensor names in the GGUF file mean the same tensor of the model", cause="duplicate-name")
        tensors = {names[name]: Tensor(kind, shape, *self.places[name]) for name, (kind, shape) in self.tensors.items()}
        heads = heads_with_paired_rows(self.architecture, self.metadata, self.tensors)
        return Header(
            tensors=tensors, metadata=self.metadata, header_bytes=self.data_start, file_size=self.file_size,
            paired_rows={names[name]: count for name, count in heads.items()},
        )  # fmt: skip


def parse_gguf(prefix: bytes, *, is_whole: bool = False, file_size: int = 0) -> GgufHeader:
    """Parse the header of a file that starts with `prefix`; `is_whole` means that `prefix` is the complete file.

    The file, of `file_size` bytes, may end before its last tensor; `GgufHeader.require_complete` checks that.

    Raises: NeedsMore: the header is longer than `prefix`. InvalidModelFile: it is not a valid GGUF header.
    """
    reader = _Reader(prefix)
    try:
        return _parse(reader, file_size)
    except NeedsMore:
        if is_whole:
            refuse("truncated: the file ends within the GGUF header", cause="truncated")
        raise


def _parse(reader: "_Reader", file_size: int) -> GgufHeader:
    if reader.take(4) != MAGIC:
        refuse("the file is not GGUF: it does not start with the GGUF magic bytes", cause="no-header")
    version = reader.number("I")
    if version not in (2, 3):
        refuse(f"the file has GGUF version {version}, but civman reads only 2 and 3", cause="bad-header")
    tensor_count, key_count = reader.number("Q"), reader.number("Q")
    if max(tensor_count, key_count) > MAX_ENTRIES:
        refuse(f"the GGUF header lists more than {MAX_ENTRIES} entries", cause="too-many-tensors")
    metadata: dict[str, str] = {}
    stated: dict[str, Shape] = {}
    for _ in range(key_count):
        key, kind = reader.text(), reader.number("I")
        if key.startswith(_STATED_SHAPE) and kind == _ARRAY:
            stated[key.removeprefix(_STATED_SHAPE)] = reader.shape()
            continue
        value = reader.value(kind)
        if value is not None and len(value) <= 1000:
            metadata[key] = value
    tensors: dict[str, tuple[str, Shape]] = {}
    places: dict[str, tuple[int, int]] = {}
    for _ in range(tensor_count):
        name, kind_name, shape, start = reader.tensor()
        if name in tensors:
            refuse(f"the header lists `{short(name)}` twice", cause="duplicate-name")
        tensors[name] = (kind_name, _true_shape(name, shape, stated))
        places[name] = (start, start + _stored_bytes(name, kind_name, shape))
    alignment = int(metadata.get("general.alignment") or _ALIGNMENT) if _is_size(metadata) else 0
    if not 0 < alignment <= 1 << 20:
        refuse("the GGUF header states an impossible alignment", cause="bad-header")
    data_start = -(-reader.position // alignment) * alignment
    weights: Counter[str] = Counter()
    for kind_name, shape in tensors.values():
        weights[kind_name] += min(prod(shape), 1 << 62)
    most = max(weights, key=lambda name: (weights[name], name), default="")
    architecture = metadata.get("general.architecture", "")
    return GgufHeader(version, architecture, most, tensors, metadata, places, data_start, file_size)


def _is_size(metadata: Mapping[str, str]) -> bool:
    return metadata.get("general.alignment", "0").isdecimal()


def _true_shape(name: str, shape: Shape, stated: Mapping[str, Shape]) -> Shape:
    true = stated.get(name)
    if true is None:
        return shape
    if prod(true) != prod(shape):
        refuse(f"the metadata gives `{short(name)}` a shape with a different number of elements", cause="bad-shape")
    return true


def _stored_bytes(name: str, kind: str, shape: Shape) -> int:
    if kind not in BLOCKS:
        return 0
    block, size = BLOCKS[kind]
    if (shape[-1] if shape else 1) % block:
        refuse(f"the width of `{short(name)}` is not a multiple of {block}, as {kind} needs", cause="bad-shape")
    return prod(shape) // block * size


class _Reader:
    """Reads numbers, strings and arrays in sequence, and rejects values that exceed the limits."""

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

    @property
    def position(self) -> int:
        """The number of bytes read."""
        return self._at

    def tensor(self) -> tuple[str, str, Shape, int]:
        """Read one entry of the list of tensors: name, type, shape, offset of the first byte."""
        name = self.text()
        axes = self.number("I")
        if axes > 8:
            refuse(f"the tensor `{short(name)}` has {axes} axes, more than any model needs", cause="bad-shape")
        shape = tuple(self.number("Q") for _ in range(axes))[::-1]
        kind = self.number("I")
        return name, TYPES.get(kind, f"type {kind}"), shape, self.number("Q")

    def shape(self) -> Shape:
        """Read an array of integers as a shape."""
        inner, count = self.number("I"), self.number("Q")
        if inner not in _WHOLE or count > 8:
            refuse("a shape in the GGUF header is not a list of up to eight integers", cause="bad-header")
        sizes = tuple(self.number(_NUMBERS[inner]) for _ in range(count))
        if min(sizes, default=0) < 0:
            refuse("a shape in the GGUF header contains a negative size", cause="bad-header")
        return sizes

    def text(self) -> str:
        length = self.number("Q")
        if length > MAX_STRING_BYTES:
            refuse("the GGUF header contains a longer string than any real file", cause="bad-text")
        return self.take(length).decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> str | None:
        """Read one value as a string. An array is skipped and None is returned."""
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
