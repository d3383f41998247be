"""A safetensors header as a value: names, types, shapes and places of the tensors, and the file's metadata.

Owns: reading the bytes that somebody else fetched (from disk or over a ranged request) and refusing whatever is not
a whole, well-formed safetensors file. Refuses to do: any input or output, any look at the weights themselves.

The scanner never builds general JSON: an entry that is not a tensor ends it, so that nesting, huge numbers and
endless lists cost nothing. Its memory is bounded by the limits below.

Source: the safetensors format description (8 bytes little-endian length, JSON header, tensors end to end).
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, NoReturn, TypeGuard

from civman.errors import InvalidModelFile

MAX_HEADER_BYTES = 100_000_000
"""The reference implementation's limit."""
MAX_TENSORS = 250_000
"""Ours: the largest image and video models have about 10,000."""
MAX_METADATA_BYTES = 32 << 20
"""Ours: a thumbnail and a tag list take a few megabytes at most."""
MAX_METADATA_ENTRIES = 20_000
"""Ours: trainers write about a hundred."""
_MAX_ENTRY_BYTES = 1 << 16
_MAX_DIMS = 64

BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
"""Bits of one element, for every type the format knows. Source: safetensors 0.8."""


class Sniffed(StrEnum):
    """What the first bytes of a file look like."""

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
    EMPTY = "empty"
    UNKNOWN = "unknown"


_SAID = {
    Sniffed.HTML: "an HTML page, not a model (a login or error page?)",
    Sniffed.JSON: "JSON text, not a model (an error message?)",
    Sniffed.XML: "XML text, not a model (a storage error message?)",
    Sniffed.PICKLE: "a pickle, not safetensors: opening it could run code",
    Sniffed.ZIP: "a ZIP archive, not safetensors",
    Sniffed.GGUF: "a GGUF file, not safetensors",
    Sniffed.PNG: "a PNG picture, not a model",
    Sniffed.JPEG: "a JPEG picture, not a model",
    Sniffed.GZIP: "gzip data, not safetensors",
    Sniffed.SEVEN_ZIP: "a 7z archive, not safetensors",
    Sniffed.GIT_LFS: "a Git LFS pointer, not the file itself",
    Sniffed.EMPTY: "empty",
}

_MAGIC = (
    (b"GGUF", Sniffed.GGUF), (b"\x89PNG", Sniffed.PNG), (b"\xff\xd8\xff", Sniffed.JPEG), (b"\x1f\x8b", Sniffed.GZIP),
    (b"7z\xbc\xaf", Sniffed.SEVEN_ZIP), (b"version https://git-lfs", Sniffed.GIT_LFS),
)  # fmt: skip


class Tensor(NamedTuple):
    """One tensor's type, shape (outermost first) and place: bytes `start` to `end` after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A whole, checked safetensors header. `tensors` keeps the header's own order."""

    tensors: Mapping[str, Tensor] = field(repr=False)
    metadata: Mapping[str, str] = field(repr=False)
    header_bytes: int
    """Bytes before the first tensor: eight for the length, then the JSON text."""
    file_size: int
    notes: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """What others worked out from these tensors and need again; never anything else."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def parameter_count(self) -> int:
        """Elements of all tensors together."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())


def sniff(first: bytes) -> Sniffed:
    """What a file beginning with `first` looks like; 512 bytes are plenty, eight give a first guess."""
    if not first:
        return Sniffed.EMPTY
    # A header's length may begin with the bytes of another format's mark, so the brace behind it is asked first.
    plausible = len(first) >= 8 and 2 <= int.from_bytes(first[:8], "little") <= MAX_HEADER_BYTES
    if plausible and first[8:].lstrip(b" \t\r\n")[:1] in (b"{", b""):
        return Sniffed.SAFETENSORS
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
    """How many bytes from the start `parse` wants, read off the first eight (more give better messages).

    Raises: InvalidModelFile: it cannot be a safetensors file of `file_size` bytes.
    """
    found = sniff(first)
    if found in _SAID:
        _refuse(f"the file is {_SAID[found]}", cause=f"is-{found.value}")
    if len(first) < 8 or file_size < 8:
        _refuse(f"the file is too short to be a model: {file_size} bytes", cause="truncated")
    length = int.from_bytes(first[:8], "little")
    if length > MAX_HEADER_BYTES or length < 2 or found is not Sniffed.SAFETENSORS:
        _refuse("the file is not safetensors: it does not begin with a header", cause="no-header")
    if 8 + length > file_size:
        _refuse(f"truncated: the header alone takes {8 + length} bytes, the file has {file_size}", cause="truncated")
    return 8 + length


def parse(prefix: bytes, *, file_size: int) -> Header:
    """The header of a file of `file_size` bytes that begins with `prefix` (see `needed_bytes` for how much).

    Checked: types, shapes, that the tensors lie end to end from the header to the file's last byte, that no name
    occurs twice.

    Raises: InvalidModelFile: anything else, with the cause in words and in `facts["cause"]`.
    """
    needed = needed_bytes(prefix[:512], file_size)
    if len(prefix) < needed:
        _refuse(f"truncated: the header takes {needed} bytes, {len(prefix)} were read", cause="truncated")
    tensors, metadata = _Scanner(prefix, needed).document()
    _check_places(tensors, data_bytes=file_size - needed, header_bytes=needed)
    return Header(tensors=tensors, metadata=metadata, header_bytes=needed, file_size=file_size)


def _refuse(message: str, *, cause: str, hint: str | None = None) -> NoReturn:
    raise InvalidModelFile(message, hint=hint, cause=cause)


_W = rb"[ \t\n\r]*+"
_N = rb"(?:0|[1-9][0-9]{0,19}+)"
_STRING = re.compile(rb'"([^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+)"', re.DOTALL)
_SPACE = re.compile(_W)
_DIMS = rb"((?:" + _N + rb"(?:\s*+,\s*+" + _N + rb"){0,63}+)?+)"
_ENTRY = re.compile(
    (
        rb'\s*+"([^"\\\x00-\x1f]*+)"\s*+:\s*+\{\s*+"dtype"\s*+:\s*+"([A-Za-z0-9_]++)"\s*+,\s*+'
        rb'"shape"\s*+:\s*+\[\s*+' + _DIMS + rb'\s*+\]\s*+,\s*+"data_offsets"\s*+:\s*+'
        rb"\[\s*+(" + _N + rb")\s*+,\s*+(" + _N + rb")\s*+\]\s*+\}\s*+([,}])"
    ).replace(rb"\s*+", _W)
)
"""One tensor as every known writer writes it."""


class _Scanner:
    """Reads `{"name": {tensor}, …, "__metadata__": {…}}` from `data[8:end]`, once, from left to right."""

    def __init__(self, data: bytes, end: int) -> None:
        self._data = data
        self._end = end
        self._at = 8

    def document(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        tensors: dict[str, Tensor] = {}
        metadata: dict[str, str] | None = None
        self._expect(b"{")
        more = not self._accept(b"}")
        match_entry, data, end = _ENTRY.match, self._data, self._end
        while more:
            if entry := match_entry(data, self._at, end):
                raw, dtype, shape, start, stop, closing = entry.groups()
                self._at = entry.end()
                name = self._text(raw)
                if name == "__metadata__":
                    _refuse("the metadata is not text", cause="bad-metadata")
                tensor = self._tensor(
                    name, dtype.decode(), tuple(map(int, shape.split(b","))) if shape else (), int(start), int(stop)
                )
                more = closing == b","
            else:
                name = self._string()
                self._expect(b":")
                if name == "__metadata__":
                    if metadata is not None:
                        _refuse("the header holds `__metadata__` twice", cause="duplicate-name")
                    metadata = self._metadata()
                    more = self._more()
                    continue
                tensor = self._odd_entry(name)
                more = self._more()
            if name in tensors:
                _refuse(f"the header names `{_short(name)}` twice", cause="duplicate-name")
            tensors[name] = tensor
            if len(tensors) > MAX_TENSORS:
                _refuse(f"the header lists more than {MAX_TENSORS} tensors", cause="too-many-tensors")
        if data[self._at : end].strip(b" \t\r\n"):
            _refuse("the header goes on after its end", cause="bad-header")
        return tensors, metadata or {}

    def _tensor(self, name: str, dtype: str, shape: tuple[int, ...], start: int, end: int) -> Tensor:
        bits = BITS.get(dtype)
        if bits is None:
            _refuse(f"`{_short(name)}` has a type civman does not know: {_short(dtype)}", cause="unknown-dtype")
        size = math.prod(shape) * bits
        if size > 1 << 66 or (size == 0 and math.prod(dim for dim in shape if dim) >= 1 << 63):
            _refuse(f"`{_short(name)}` has an impossible shape: {_shape(shape)}", cause="bad-shape")
        if size != (end - start) * 8:
            _refuse(
                f"`{_short(name)}` should take {-(-size // 8)} bytes ({dtype} {_shape(shape)}), the header gives "
                f"{end - start}", cause="bad-size",
            )  # fmt: skip
        return Tensor(dtype, shape, start, end)

    def _odd_entry(self, name: str) -> Tensor:
        """An entry whose fields come in another order, or with more of them; still small."""
        self._skip()
        window = self._data[self._at : min(self._end, self._at + _MAX_ENTRY_BYTES)]
        text = window.decode("utf-8", errors="replace")
        try:
            value, used = _decoder.raw_decode(text)
        except (ValueError, RecursionError) as error:
            _refuse(f"the header's entry `{_short(name)}` is not readable", cause="bad-header", hint=_hint(error))
        if not isinstance(value, dict):
            _refuse(f"the header's entry `{_short(name)}` is not a tensor", cause="bad-header")
        if "\ufffd" in text[:used]:
            _refuse("the header holds text that is not UTF-8", cause="bad-text")
        self._at += len(text[:used].encode())
        dtype, shape, places = value.get("dtype"), value.get("shape"), value.get("data_offsets")
        if not isinstance(dtype, str) or not _naturals(shape) or not _naturals(places) or len(places) != 2:
            _refuse(f"the header's entry `{_short(name)}` is not a tensor", cause="bad-header")
        if len(shape) > _MAX_DIMS or max(places) >= 1 << 64:
            _refuse(f"`{_short(name)}` has an impossible shape or place", cause="bad-shape")
        return self._tensor(name, dtype, tuple(shape), places[0], places[1])

    def _metadata(self) -> dict[str, str]:
        if self._data.startswith(b"null", self._skip()):
            self._at += 4
            return {}
        found: dict[str, str] = {}
        begin = self._at
        self._expect(b"{")
        more = not self._accept(b"}")
        while more:
            key = self._string()
            self._expect(b":")
            if not self._data.startswith(b'"', self._skip()):
                _refuse(f"the metadata `{_short(key)}` is not text", cause="bad-metadata")
            value = self._string()
            if key in found:
                _refuse(f"the metadata names `{_short(key)}` twice", cause="duplicate-name")
            found[key] = value
            if self._at - begin > MAX_METADATA_BYTES or len(found) > MAX_METADATA_ENTRIES:
                _refuse("the metadata is larger than any real file's", cause="bad-metadata")
            more = self._more()
        return found

    def _string(self) -> str:
        self._skip()
        found = _STRING.match(self._data, self._at, min(self._end, self._at + MAX_METADATA_BYTES))
        if found is None:
            _refuse(f"the header is not readable at byte {self._at}", cause="bad-header")
        self._at = found.end()
        return self._text(found.group(1))

    def _text(self, raw: bytes) -> str:
        try:
            text = raw.decode()
            if "\\" in text:
                text = json.loads(f'"{text}"')
                text.encode()  # a lone surrogate decodes, but nobody can store or show it
        except ValueError:
            _refuse("the header holds text that is not UTF-8", cause="bad-text")
        return text

    def _skip(self) -> int:
        found = _SPACE.match(self._data, self._at, self._end)
        self._at = found.end() if found else self._at
        return self._at

    def _accept(self, char: bytes) -> bool:
        if self._skip() < self._end and self._data.startswith(char, self._at):
            self._at += 1
            return True
        return False

    def _expect(self, char: bytes) -> None:
        if not self._accept(char):
            _refuse(f"the header is not readable at byte {self._at}", cause="bad-header")

    def _more(self) -> bool:
        if self._accept(b","):
            return True
        self._expect(b"}")
        return False


def _check_places(tensors: Mapping[str, Tensor], *, data_bytes: int, header_bytes: int) -> None:
    at = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != at:
            what = "overlaps another tensor" if tensor.start < at else "leaves a hole before it"
            _refuse(f"`{_short(name)}` {what}: at byte {tensor.start}, expected {at}", cause="bad-layout")
        at = tensor.end
    if at > data_bytes:
        _refuse(
            f"truncated: the header promises {header_bytes + at} bytes, the file has {header_bytes + data_bytes}",
            cause="truncated", hint="download it again",
        )  # fmt: skip
    if at < data_bytes:
        _refuse(f"{data_bytes - at} bytes follow the last tensor", cause="trailing-bytes")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"not a whole number: {text[:20]}")


_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_no_number, parse_constant=_no_number)


def _naturals(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 64 for item in value)


def _short(text: str) -> str:
    plain = "".join(char if char.isprintable() else "?" for char in text[:80])
    return plain if len(text) <= 80 else f"{plain}…"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape[:8])) + ("…" if len(shape) > 8 else "") if shape else "scalar"


def _hint(error: Exception) -> str:
    return "it nests too deeply" if isinstance(error, RecursionError) else _short(str(error))
