"""Read the safetensors header of a file on disk, without torch and without reading the weights."""

import os
from pathlib import Path

from civman.domain.files.header import Header, needed_bytes, parse
from civman.errors import StoreError
from civman.store.partial import store_error

_FIRST_BYTES = 512


def read_header(path: Path) -> Header:
    """The validated header of the file at `path`: two reads, milliseconds whatever the file's size.

    Raises: InvalidModelFile: not a complete safetensors file. StoreError: it cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            first = _exactly(file.fileno(), min(_FIRST_BYTES, size))
            rest = _exactly(file.fileno(), max(0, needed_bytes(first, size) - len(first)))
    except OSError as error:
        raise store_error(error, path) from error
    return parse(first + rest, file_size=size)


def read_first(path: Path, count: int = _FIRST_BYTES) -> bytes:
    """The first `count` bytes of a file, or the whole file if it is shorter. Raises: StoreError."""
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
