"""Parse the JSON text of a safetensors header without building general JSON values.

This module defines the accepted grammar and its limits. Parsing stops at the first entry that is not a tensor, so deep
nesting, huge numbers and endless lists cost nothing, and the limits below bound the memory used. Entries in the form
that common programs write are parsed by a regular expression in one pass; a scanner parses all others, and its error
messages say what is wrong. The tensors' offsets are checked in `civman.domain.files.header`.

Source: the safetensors format description (8 bytes little-endian length, JSON header, tensors end to end).
"""

import json
import math
import re
from typing import NamedTuple, NoReturn, TypeGuard

from civman.errors import InvalidModelFile

MAX_TENSORS = 250_000
"""civman's limit on the number of tensors. The largest image and video models have about 10,000."""
MAX_METADATA_BYTES = 32 << 20
"""civman's limit on the size of the metadata. A thumbnail and a list of tags take a few megabytes at most."""
MAX_METADATA_ENTRIES = 20_000
"""civman's limit on the number of metadata entries. Trainers write about a hundred."""
_MAX_ENTRY_BYTES = 1 << 16
_MAX_DIMS = 64
_MAX_AT_ONCE = 4 << 20
"""The longest text that is parsed in one pass, which briefly needs ten times its size in memory. 10,000 tensors take
1.5 MB.
"""

BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
"""The number of bits per element for every data type of the format. Source: safetensors 0.8."""


class Tensor(NamedTuple):
    """A tensor's type, shape (outermost dimension first) and location: bytes `start` to `end` after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_text(data: bytes, end: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Parse `data[8:end]`, the JSON text, into tensors and metadata. Raises: InvalidModelFile."""
    return _Scanner(data, end).document()


def refuse(message: str, *, cause: str, hint: str | None = None) -> NoReturn:
    """Raise InvalidModelFile with `cause` in its facts."""
    raise InvalidModelFile(message, hint=hint, cause=cause)


def short(text: str) -> str:
    """Make untrusted text safe for a message: at most 80 printable characters."""
    plain = "".join(char if char.isprintable() else "?" for char in text[:80])
    return plain if len(text) <= 80 else f"{plain}…"


_N = "(?:0|[1-9][0-9]{0,19}+)"
_USUAL = re.compile(
    (
        r'( ?"([^"\\\x00-\x1f]*+)": ?\{"dtype": ?"([A-Za-z0-9_]++", ?"shape": ?\[(?:N(?:, ?N){0,63}+)?+)\], ?'
        r'"data_offsets": ?\[(N), ?(N)\]\}(?:,|\}[ \t\r\n]*+\Z))'
    ).replace("N", _N)
)
"""Matches one tensor entry as common programs write it. Groups: whole entry, name, type and shape, start, end.

At most one space is allowed between tokens, because retrying at every space of a long run would take quadratic time.
"""


def _all_at_once(text: str) -> dict[str, Tensor] | None:
    """Parse `text`, the tensor entries up to the header's closing brace, in one pass.

    Returns None if an entry is invalid or in an unusual form; `_Scanner` then has to parse the header.
    """
    entries: list[tuple[str, str, str, str, str]] = _USUAL.findall(text)
    if sum(len(entry[0]) for entry in entries) != len(text) or not text.rstrip().endswith("}"):
        return None  # part of the text is not an entry in the usual form
    # a cache of parsed types and shapes, because a file has only a few dozen combinations of them
    kinds: dict[str, tuple[str, tuple[int, ...], int]] = {}
    tensors: dict[str, Tensor] = {}
    # calling tuple.__new__ directly takes a third of the time of the NamedTuple's constructor
    new = tuple.__new__
    for _, name, kind, begin, stop in entries:
        known = kinds.get(kind)
        if known is None:
            dtype, _, rest = kind.partition('"')
            dims = rest.partition("[")[2]
            shape = tuple(map(int, dims.split(","))) if dims else ()
            bits = BITS.get(dtype)
            if bits is None or _wrong_size(shape, bits):
                return None
            known = kinds[kind] = dtype, shape, math.prod(shape) * bits
        start, end = int(begin), int(stop)
        if known[2] != (end - start) * 8:
            return None
        tensors[name] = new(Tensor, (known[0], known[1], start, end))
    whole = len(tensors) == len(entries) <= MAX_TENSORS and "__metadata__" not in tensors
    return tensors if whole else None


def _wrong_size(shape: tuple[int, ...], bits: int) -> bool:
    """Whether the shape is impossible because it is too large."""
    size = math.prod(shape) * bits
    return size > 1 << 66 or (size == 0 and math.prod(dim for dim in shape if dim) >= 1 << 63)


_W = rb"[ \t\n\r]*+"
_STRING = re.compile(rb'"([^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+)"', re.DOTALL)
_SPACE = re.compile(_W)
_ENTRY = re.compile(
    (
        rb'\s*+"([^"\\\x00-\x1f]*+)"\s*+:\s*+\{\s*+"dtype"\s*+:\s*+"([A-Za-z0-9_]++)"\s*+,\s*+'
        rb'"shape"\s*+:\s*+\[\s*+((?:N(?:\s*+,\s*+N){0,63}+)?+)\s*+\]\s*+,\s*+"data_offsets"\s*+:\s*+'
        rb"\[\s*+(N)\s*+,\s*+(N)\s*+\]\s*+\}\s*+([,}])"
    ).replace(rb"\s*+", _W).replace(b"N", _N.encode())
)  # fmt: skip
"""Matches one tensor entry with its fields in the usual order and any white space."""


class _Scanner:
    """Parses `{"name": {tensor}, …, "__metadata__": {…}}` from `data[8:end]` in one pass from left to right."""

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
            if not tensors and (usual := self._rest()) is not None:
                return usual, metadata or {}
            if entry := match_entry(data, self._at, end):
                raw, dtype, shape, start, stop, closing = entry.groups()
                self._at = entry.end()
                name = self._text(raw)
                if name == "__metadata__":
                    refuse("the metadata contains entries that are not strings", cause="bad-metadata")
                tensor = self._tensor(
                    name, dtype.decode(), tuple(map(int, shape.split(b","))) if shape else (), int(start), int(stop)
                )
                more = closing == b","
            else:
                name = self._string()
                self._expect(b":")
                if name == "__metadata__":
                    if metadata is not None:
                        refuse("the header contains `__metadata__` twice", cause="duplicate-name")
                    metadata = self._metadata()
                    more = self._more()
                    continue
                tensor = self._odd_entry(name)
                more = self._more()
            if name in tensors:
                refuse(f"the header lists `{short(name)}` twice", cause="duplicate-name")
            tensors[name] = tensor
            if len(tensors) > MAX_TENSORS:
                refuse(f"the header lists more than {MAX_TENSORS} tensors", cause="too-many-tensors")
        if data[self._at : end].strip(b" \t\r\n"):
            refuse("the header's JSON text is followed by other text", cause="bad-header")
        return tensors, metadata or {}

    def _rest(self) -> dict[str, Tensor] | None:
        """Parse all remaining tensors in one pass; None if they are not in the form that common programs write."""
        if self._end - self._skip() > _MAX_AT_ONCE or self._data.startswith(b'"__metadata__"', self._at):
            return None
        try:
            return _all_at_once(self._data[self._at : self._end].decode())
        except UnicodeDecodeError:
            return None

    def _tensor(self, name: str, dtype: str, shape: tuple[int, ...], start: int, end: int) -> Tensor:
        bits = BITS.get(dtype)
        if bits is None:
            refuse(f"`{short(name)}` has an unknown type: {short(dtype)}", cause="unknown-dtype")
        if _wrong_size(shape, bits):
            refuse(f"`{short(name)}` has an impossible shape: {_shape(shape)}", cause="bad-shape")
        size = math.prod(shape) * bits
        if size != (end - start) * 8:
            refuse(
                f"`{short(name)}` should take {-(-size // 8)} bytes ({dtype} {_shape(shape)}), but takes {end - start} "
                "according to the header", cause="bad-size",
            )  # fmt: skip
        return Tensor(dtype, shape, start, end)

    def _odd_entry(self, name: str) -> Tensor:
        """Parse an entry whose fields are in another order or that has additional fields, within a size limit."""
        self._skip()
        window = self._data[self._at : min(self._end, self._at + _MAX_ENTRY_BYTES)]
        text = window.decode("utf-8", errors="replace")
        try:
            value, used = _decoder.raw_decode(text)
        except (ValueError, RecursionError) as error:
            refuse(f"the header's entry `{short(name)}` is not valid JSON", cause="bad-header", hint=_hint(error))
        if not isinstance(value, dict):
            refuse(f"the header's entry `{short(name)}` is not a tensor", cause="bad-header")
        if "\ufffd" in text[:used]:
            refuse("the header contains text that is not UTF-8", cause="bad-text")
        self._at += len(text[:used].encode())
        dtype, shape, places = value.get("dtype"), value.get("shape"), value.get("data_offsets")
        if not isinstance(dtype, str) or not _naturals(shape) or not _naturals(places) or len(places) != 2:
            refuse(f"the header's entry `{short(name)}` is not a tensor", cause="bad-header")
        if len(shape) > _MAX_DIMS or max(places) >= 1 << 64:
            refuse(f"the tensor `{short(name)}` has an impossible shape or position", cause="bad-shape")
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
                refuse(f"the metadata entry `{short(key)}` is not a string", cause="bad-metadata")
            value = self._string()
            if key in found:
                refuse(f"the metadata contains `{short(key)}` twice", cause="duplicate-name")
            found[key] = value
            if self._at - begin > MAX_METADATA_BYTES or len(found) > MAX_METADATA_ENTRIES:
                refuse("the metadata is larger than that of any real file", cause="bad-metadata")
            more = self._more()
        return found

    def _string(self) -> str:
        self._skip()
        found = _STRING.match(self._data, self._at, min(self._end, self._at + MAX_METADATA_BYTES))
        if found is None:
            refuse(f"the header is not valid JSON at byte {self._at}", cause="bad-header")
        self._at = found.end()
        return self._text(found.group(1))

    def _text(self, raw: bytes) -> str:
        try:
            text = raw.decode()
            if "\\" in text:
                text = json.loads(f'"{text}"')
                text.encode()  # JSON may contain a lone surrogate, which cannot be encoded as UTF-8
        except ValueError:
            refuse("the header contains text that is not UTF-8", cause="bad-text")
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
            refuse(f"the header is not valid JSON at byte {self._at}", cause="bad-header")

    def _more(self) -> bool:
        if self._accept(b","):
            return True
        self._expect(b"}")
        return False


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"`{text[:20]}` is not an integer")


_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_no_number, parse_constant=_no_number)


def _naturals(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 64 for item in value)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape[:8])) + ("…" if len(shape) > 8 else "") if shape else "scalar"


def _hint(error: Exception) -> str:
    return "the JSON text is nested too deeply" if isinstance(error, RecursionError) else short(str(error))
