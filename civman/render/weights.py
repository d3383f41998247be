"""A safetensors file opened for reading: names, shapes, metadata, and tensors as views of a read-only mapping."""

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from civman.errors import InvalidModelFile
from civman.render.layouts import Source

_DTYPES: Final = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip


class Weights:
    """One open file. Its tensors share the mapping: no byte is copied until somebody converts or moves them.

    Writing into such a tensor changes this process's private page, never the file; nobody should, since
    `read` gives that page again.
    """

    __slots__ = ("_file", "dtypes", "metadata", "path", "shapes")

    def __init__(self, path: Path) -> None:
        self.path = path
        header = _read_header(path)
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(entry["shape"]) for name, entry in header.items()}
        self.dtypes: dict[str, str] = {name: entry["dtype"] for name, entry in header.items()}
        try:
            self._file: Any = safe_open(path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise InvalidModelFile(f"cannot read `{path.name}`: {error}") from error

    def read(self, source: Source) -> Tensor:
        """The values behind `source`, still a view of the mapping, in the file's dtype. Raises: KeyError."""
        tensor: Tensor = self._file.get_tensor(source.name)
        if source.third is not None:
            rows = tensor.shape[0] // 3
            tensor = tensor[source.third * rows : (source.third + 1) * rows]
        return tensor.T if source.is_transposed else tensor

    def dtype_of(self, names: Iterable[str]) -> torch.dtype:
        """The dtype that most bytes of these tensors have."""
        counts: dict[str, int] = {}
        for name in names:
            size = 1
            for length in self.shapes[name]:
                size *= length
            counts[self.dtypes[name]] = counts.get(self.dtypes[name], 0) + size
        most = max(counts, key=lambda key: counts[key])
        if most not in _DTYPES:
            raise InvalidModelFile(f"`{self.path.name}` holds numbers of a kind civman cannot compute with: {most}")
        return _DTYPES[most]


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise InvalidModelFile(f"`{path.name}` ends inside its header")
            header: dict[str, Any] = json.loads(file.read(length))
    except (OSError, ValueError, struct.error) as error:
        raise InvalidModelFile(f"`{path.name}` has no safetensors header: {error}") from error
    return header
