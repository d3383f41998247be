"""Open a safetensors file for reading: names, shapes, metadata, and tensors as views of the memory-mapped file.

A weight stored as 8-bit floats with a separate scale (`X.weight` with `X.scale_weight` or `X.weight_scale`) is read as
their product in float32; every other tensor is a view of the file.
"""

import mmap
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from civman.diffusion.component_layouts import Source
from civman.domain.files.header import Tensor as Entry
from civman.domain.files.header import needed_bytes, parse
from civman.domain.files.weight_forms import WeightForm, scale_names, weight_form
from civman.errors import InvalidModelFile
from civman.system.file_io import forget_mapped

_DTYPES: Final = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip


class Weights:
    """One open safetensors file. Its tensors share the memory map: nothing is copied until one is converted or moved.

    Writing to such a tensor changes this process's private copy of the page, never the file. Do not do it: `read` would
    return the changed page again.
    """

    __slots__ = ("_begin", "_entries", "_map", "_scales", "dtypes", "form", "metadata", "path", "shapes")

    def __init__(self, path: Path) -> None:
        """Open and memory-map a file. Raises: InvalidModelFile: it is not a readable safetensors file."""
        self.path = path
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                first = file.read(512)
                rest = file.read(needed_bytes(first, size) - len(first))
                # private and writable, because torch warns about read-only buffers
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise InvalidModelFile(f"cannot read `{path.name}`: {error}") from error
        header = parse(first + rest, file_size=size)
        self._entries = header.tensors
        self._begin = header.header_bytes
        self.metadata: dict[str, str] = dict(header.metadata)
        self.shapes: dict[str, tuple[int, ...]] = header.shapes
        self.dtypes: dict[str, str] = {name: entry.dtype for name, entry in header.tensors.items()}
        self.form: WeightForm = weight_form(header.tensors)
        self._scales = scale_names(header.tensors) if self.form.quantisation is not None else {}

    def read(self, source: Source) -> Tensor:
        """Read a parameter: a view of the memory map in the file's dtype, or float32 if the weight has a scale.

        Raises: KeyError. InvalidModelFile: a dtype that torch does not support, or a scale of the wrong shape.
        """
        tensor = self._tensor(self._entries[source.name])
        if source.name in self._scales:
            tensor = self._scaled(tensor, self._scales[source.name])
        if source.third is not None:
            rows = tensor.shape[0] // 3
            tensor = tensor[source.third * rows : (source.third + 1) * rows]
        return tensor.T if source.is_transposed else tensor

    def _scaled(self, tensor: Tensor, name: str) -> Tensor:
        """Multiply the weight by its scale, which is a single number or one per row."""
        scale = self._tensor(self._entries[name]).to(torch.float32)
        if scale.numel() not in (1, tensor.shape[0] if tensor.ndim else 1):
            raise InvalidModelFile(
                f"`{name}` has shape {list(scale.shape)}, which does not fit a weight of shape {list(tensor.shape)}",
                tensor=name,
            )
        return tensor.to(torch.float32) * scale.reshape(-1, *[1] * (tensor.ndim - 1))

    def forget(self, name: str) -> None:
        """Release the memory of a tensor that has been copied elsewhere; it can be read again."""
        entry = self._entries[name]
        forget_mapped(self._map, self._begin + entry.start, self._begin + entry.end)

    def dtype_of(self, names: Iterable[str]) -> torch.dtype:
        """Return the dtype of most of the elements in these tensors."""
        counts: dict[str, int] = {}
        for name in names:
            counts[self.dtypes[name]] = counts.get(self.dtypes[name], 0) + prod(self.shapes[name])
        return self._dtype(max(counts, key=lambda key: counts[key]))

    def _dtype(self, name: str) -> torch.dtype:
        if name not in _DTYPES:
            raise InvalidModelFile(f"`{self.path.name}` contains a number type that civman cannot compute with: {name}")
        return _DTYPES[name]

    def _tensor(self, entry: Entry) -> Tensor:
        dtype, count = self._dtype(entry.dtype), prod(entry.shape)
        if count == 0:
            return torch.empty(entry.shape, dtype=dtype)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=self._begin + entry.start).view(entry.shape)
