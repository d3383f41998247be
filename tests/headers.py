"""The recorded headers of real model files, as headers and as sparse files of full size."""

import json
import struct
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from civman.domain.files.header import BITS, Header, parse

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
FOLDER = SHARED / "fixtures" / "headers"

NAMES = sorted(path.stem for path in FOLDER.glob("*.json") if path.stem != "index") if FOLDER.is_dir() else []


def case(name: str) -> dict[str, Any]:
    """The recorded case as it lies there; skips the test where the recordings are not at hand."""
    if name not in NAMES:
        pytest.skip("the recorded headers are not here")
    return json.loads((FOLDER / f"{name}.json").read_text())


def entries(tensors: dict[str, tuple[str, list[int]]]) -> tuple[dict[str, Any], int]:
    """Tensor entries laid end to end, and the bytes that they take."""
    at, found = 0, {}
    for name, (dtype, shape) in tensors.items():
        size = BITS[dtype]
        for dim in shape:
            size *= dim
        found[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size // 8]}
        at += size // 8
    return found, at


def prefix(tensors: dict[str, tuple[str, list[int]]], metadata: dict[str, str] | None = None) -> tuple[bytes, int]:
    """The first bytes of such a file, header included, and the size of the whole file."""
    found, size = entries(tensors)
    document = {"__metadata__": metadata, **found} if metadata else found
    text = json.dumps(document, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text, 8 + len(text) + size


def made(tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> Header:
    """A header with these tensors; a bare shape stands for F16."""
    full = {
        name: (what[0], list(what[1])) if len(what) == 2 and isinstance(what[0], str) else ("F16", list(what))
        for name, what in tensors.items()
    }
    head, size = prefix(full, metadata)
    return parse(head, file_size=size)


@cache
def recorded(name: str) -> Header:
    """The header of a recorded case."""
    data = case(name)
    head, size = prefix({key: tuple(value) for key, value in data["tensors"].items()}, data["metadata"] or None)
    return parse(head, file_size=size)


def write_sparse(name: str, path: Path) -> Path:
    """Writes the recorded case as a file of its real size whose weights are a hole."""
    data = case(name)
    head, size = prefix({key: tuple(value) for key, value in data["tensors"].items()}, data["metadata"] or None)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    return path


def of_file(path: Path) -> Header:
    """The header of a file on disk."""
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        file.seek(0)
        return parse(file.read(8 + length), file_size=size)
