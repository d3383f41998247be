"""Headers of real model files, as headers and as sparse files of full size.

There are two collections. The project's own lies in `fixtures/headers.json.xz`: `fixtures/make_headers.py` makes it
with the libraries that define the models. The other was recorded from published files and is not part of the
repository; tests over it are skipped where it is absent. `NAME` is a recorded case, `own/NAME` one of the project's.
"""

import json
import lzma
import struct
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from civman.domain.files.header import BITS, Header, parse

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
FOLDER = SHARED / "fixtures" / "headers"
OWN_FILE = Path(__file__).resolve().parent / "fixtures" / "headers.json.xz"

RECORDED = sorted(path.stem for path in FOLDER.glob("*.json") if path.stem != "index") if FOLDER.is_dir() else []

OTHER_NAMES = {
    "lora-sd1-kohya": "kohya-sd1-lora",
    "lora-flux-kohya": "kohya-flux-dev-lora",
    "lora-qwen-peft": "peft-qwen-image-lora", "orig-qwen-image": "qwen-image-diffusers",
    "lokr-sdxl-lycoris": "kohya-sdxl-lokr-unet-only", "glora-sd1-lycoris": "kohya-sd1-glora",
    "kohya-sdxl-oft": "kohya-sdxl-oft-unet-only",
    "controlnet-flux-instantx": "controlnet-flux-diffusers", "lora-flux-xlabs": "peft-flux-dev-lora",
}  # fmt: skip
"""What the project's own collection has in the place of a recorded case of another name."""


@cache
def own_headers() -> dict[str, Any]:
    return json.loads(lzma.decompress(OWN_FILE.read_bytes()))["headers"]


@cache
def own_names() -> list[str]:
    return [f"own/{name}" for name in own_headers()]


def case(name: str) -> dict[str, Any]:
    """The case of that name; skips the test where a recorded one is not at hand."""
    if name.startswith("own/"):
        wanted = name.removeprefix("own/")
        found = own_headers()[OTHER_NAMES.get(wanted, wanted)]
        return {
            "metadata": {},
            **found,
            "tensors": {key: _typed(key, shape) for key, shape in found["tensors"].items()},
        }
    if name not in RECORDED:
        pytest.skip("the recorded headers are not here")
    return json.loads((FOLDER / f"{name}.json").read_text())


def _typed(key: str, shape: list[int]) -> tuple[str, list[int]]:
    return ("I64" if key.endswith("position_ids") else "F16", shape)


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
    """The header of a case."""
    data = case(name)
    head, size = prefix({key: tuple(value) for key, value in data["tensors"].items()}, data["metadata"] or None)
    return parse(head, file_size=size)


def write_sparse(name: str, path: Path) -> Path:
    """Writes the case as a file of its real size whose weights are a hole."""
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
