"""Reads the header of a model file on disk (safetensors or GGUF), without torch and without reading the weights."""

import os
import struct
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from civman.domain.files.gguf import GgufHeader, NeedsMore, parse_gguf
from civman.domain.files.header import Header, needed_bytes, parse, tokenizer_header
from civman.domain.files.packed_weights import packed_weights, plain_tensors
from civman.domain.files.tokenizer_files import TOKENS, token_count
from civman.errors import InvalidModelFile, StoreError
from civman.store.partial import store_error
from civman.system.file_io import read_at

_FIRST_BYTES = 512
_FIRST_GGUF_BYTES = 1 << 18
"""How many bytes of a GGUF file are read at first.

A diffusion model's header takes about 100 kB; a language model's, with its vocabulary, some megabytes.
"""
_MAX_GGUF_BYTES = 256 << 20
_MAX_TOKENIZER_BYTES = 128 << 20
"""The limit on the size of a tokenizer file; the largest published ones have about 35 MB."""


def read_header(path: Path) -> Header:
    """Read and validate the header of the file at `path`.

    This takes two reads and a few milliseconds, whatever the file's size.

    Raises: InvalidModelFile: not a complete safetensors file. StoreError: the file cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            first = _exactly(file.fileno(), min(_FIRST_BYTES, size))
            rest = _exactly(file.fileno(), max(0, needed_bytes(first, size) - len(first)))
    except OSError as error:
        raise store_error(error, path) from error
    return parse(first + rest, file_size=size)


def plain_header(path: Path, header: Header) -> Header:
    """Return the header as if packed (quantised) weights were unpacked; their scales are left out.

    Raises: CannotRender (`quantised-weights`): civman cannot unpack this format. InvalidModelFile: helper tensors, such
    as scales, do not match their weights. StoreError: the file cannot be read.
    """

    def read(name: str) -> bytes:
        tensor = header.tensors[name]
        data = memoryview(bytearray(tensor.end - tensor.start))
        try:
            with path.open("rb", buffering=0) as file:
                count = read_at(file.fileno(), data, header.header_bytes + tensor.start)
        except OSError as error:
            raise store_error(error, path) from error
        return bytes(data[:count])

    packed = packed_weights(header, read, path.name)
    if not packed:
        return header
    return replace(header, tensors=plain_tensors(header.tensors, packed), notes={})


def read_numbers(path: Path, header: Header, names: Iterable[str]) -> dict[str, float]:
    """Return the values of the named tensors that have one element and a supported type; leave out the others.

    Raises: StoreError: the file cannot be read.
    """
    found: dict[str, float] = {}
    try:
        with path.open("rb", buffering=0) as file:
            for name in names:
                tensor = header.tensors[name]
                form = _FORMS.get(tensor.dtype)
                if form is not None and tensor.end - tensor.start == struct.calcsize(form):
                    data = memoryview(bytearray(tensor.end - tensor.start))
                    count = read_at(file.fileno(), data, header.header_bytes + tensor.start)
                    found[name] = _number(form, bytes(data[:count]))
    except (OSError, struct.error) as error:
        raise store_error(error if isinstance(error, OSError) else OSError(str(error)), path) from error
    return found


_FORMS = {
    "F64": "<d", "F32": "<f", "F16": "<e", "BF16": "<H", "I64": "<q", "I32": "<i", "I16": "<h", "I8": "<b", "U8": "<B",
    "BOOL": "<?",
}  # fmt: skip
_BF16 = "<H"


def number_of(dtype: str, data: bytes) -> float | None:
    """The value of a tensor with one element; None if it has several elements or a type that civman does not read."""
    form = _FORMS.get(dtype)
    return _number(form, data) if form is not None and len(data) == struct.calcsize(form) else None


def _number(form: str, data: bytes) -> float:
    if form == _BF16:  # a bfloat16 is the upper half of a float32
        return float(struct.unpack("<f", b"\0\0" + data)[0])
    return float(struct.unpack(form, data)[0])


def read_gguf(path: Path) -> GgufHeader:
    """Read the header of the GGUF file at `path`. Raises: InvalidModelFile: the header is invalid. StoreError."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise store_error(error, path) from error
    count = min(size, _FIRST_GGUF_BYTES)
    while True:
        try:
            whole = count >= size or count >= _MAX_GGUF_BYTES
            return parse_gguf(read_first(path, count), is_whole=whole, file_size=size)
        except NeedsMore:
            count = min(size, count * 8, _MAX_GGUF_BYTES)


def read_tokenizer(path: Path) -> Header:
    """Read a tokenizer file. The header presents the file as one tensor; the metadata has the number of token ids.

    Raises: InvalidModelFile: not a tokenizer file, or a damaged or unsupported one. StoreError.
    """
    data = read_first(path, _MAX_TOKENIZER_BYTES + 1)
    header = tokenizer_header(data, len(data), {}) if len(data) <= _MAX_TOKENIZER_BYTES else None
    if header is None:
        raise InvalidModelFile(f"`{path.name}` is not a tokenizer")
    tokens = token_count(next(iter(header.tensors)), data)
    return replace(header, metadata={TOKENS: str(tokens)}, notes={})


def read_first(path: Path, count: int = _FIRST_BYTES) -> bytes:
    """Read the first `count` bytes of a file, or the whole file if it is shorter. Raises: StoreError."""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise store_error(error, path) from error


def _exactly(descriptor: int, count: int) -> bytes:
    parts = []
    while count > 0:
        part = os.read(descriptor, count)
        if not part:
            raise StoreError("the file became shorter while it was read")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
