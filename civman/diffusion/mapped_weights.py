"""Opens a safetensors or GGUF file for reading: names, shapes, metadata, and tensors as views of a memory map.

A tokenizer file can also be opened: it is presented as a single tensor with all of the file's bytes.

Packed weights (8-bit with a scale, 4-bit, GGUF's blocks) are listed with the name and shape that the model expects, and
are unpacked to float32 when they are read. Rows in llama.cpp's order are copied in the order that the model expects.
Every other tensor is a view of the file.
"""

from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import BinaryIO, Final

import torch
from torch import Tensor

from civman.diffusion import dequantise
from civman.diffusion.component_layouts import Source
from civman.domain.files.gguf import MAGIC, NeedsMore, parse_gguf
from civman.domain.files.header import Header, needed_bytes, parse, tokenizer_header
from civman.domain.files.header import Tensor as Entry
from civman.domain.files.packed_weights import Packed, is_packed_type, packed_weights, plain_tensors
from civman.domain.files.weight_forms import WeightForm, weight_form
from civman.errors import InvalidModelFile
from civman.system.file_io import forget_mapped, map_privately

_DTYPES: Final = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
_PACKED_TYPES = frozenset({"I8", "U8"})
"""Dtypes that only packed weights have; their values mean nothing without the weight's helper tensors."""


_FIRST_BYTES, _FIRST_GGUF_BYTES = 512, 1 << 20


class Weights:
    """One open file. Its tensors share the memory map: a tensor is copied only if it is converted, moved or unpacked.

    `shapes` and `dtypes` list the tensors as the model sees them; the dtype of a packed weight is the stored one, such
    as "F8_E4M3" or "Q4_K". Never write to a tensor: this would change the process's private copy of the page (not the
    file), and `read` would return the changed values.
    """

    __slots__ = ("_begin", "_entries", "_map", "_packed", "_paired", "dtypes", "form", "metadata", "path", "shapes")

    def __init__(self, path: Path) -> None:
        """Open and memory-map a file.

        Raises:
            InvalidModelFile: the file is not a readable safetensors, GGUF or tokenizer file.
            CannotRender (`quantised-weights`): the file's weights are packed in a format that civman cannot unpack.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                header = _header(file, path.stat().st_size)
                self._map = map_privately(file.fileno())
        except OSError as error:
            raise InvalidModelFile(f"cannot read `{path.name}`: {error}") from error
        self._entries = header.tensors
        self._begin = header.header_bytes
        self._paired = header.paired_rows
        self.metadata: dict[str, str] = dict(header.metadata)
        self.form: WeightForm = weight_form(header.tensors)
        self._packed: dict[str, Packed] = packed_weights(header, self._stored, path.name)
        seen = plain_tensors(header.tensors, self._packed)
        self.shapes: dict[str, tuple[int, ...]] = {name: entry.shape for name, entry in seen.items()}
        self.dtypes: dict[str, str] = {name: entry.dtype for name, entry in seen.items()}

    def read(self, source: Source) -> Tensor:
        """Read a parameter: a view of the memory map in the file's dtype, or float32 if the weight is packed.

        If the file has the rows in another order than the model, they are copied.

        Raises: KeyError: there is no such tensor. InvalidModelFile: torch does not support the dtype.
        """
        rows = source.rows
        if source.third is not None:
            third = self._entries[source.name].shape[0] // 3
            rows = (source.third * third, third)
        tensor = self._values(source.name, rows)
        if source.swaps_halves:
            half = tensor.shape[0] // 2
            tensor = torch.cat([tensor[half:], tensor[:half]])
        return tensor.T if source.is_transposed else tensor

    def is_packed(self, name: str) -> bool:
        """Whether this tensor is unpacked or reordered when it is read, so that the result is no view of the file."""
        return name in self._packed or name in self._paired or is_packed_type(self._entries[name].dtype)

    def _values(self, name: str, rows: tuple[int, int] | None) -> Tensor:
        """Read a tensor. With `rows` (first row, number of rows), only these rows are unpacked and returned."""
        entry = self._entries[name]
        packed = self._packed.get(name)
        chosen = self._chosen(name, rows)
        if is_packed_type(entry.dtype):
            count = entry.end - entry.start
            stored = torch.frombuffer(self._map, dtype=torch.uint8, count=count, offset=self._begin + entry.start)
            if chosen is None:
                return dequantise.gguf_blocks(stored, entry.dtype, entry.shape)
            part = stored.view(entry.shape[0], -1)[chosen]
            return dequantise.gguf_blocks(part.reshape(-1), entry.dtype, (len(part), *entry.shape[1:]))
        if packed is None:
            return _rows(self._tensor(entry), chosen)
        if packed.scale:
            stored = _rows(self._tensor(entry._replace(dtype=packed.dtype or entry.dtype)), chosen)
            scale = self._tensor(self._entries[packed.scale]).reshape(-1)
            return dequantise.scaled(stored, _rows(scale, chosen) if len(scale) > 1 else scale, packed.rotation)
        return _rows(self._four_bit(entry, packed), chosen)

    def _chosen(self, name: str, rows: tuple[int, int] | None) -> slice | Tensor | None:
        """Return where the rows to read are in the file: a range or, if their order differs, each one's number.

        None: all rows, in the file's order.
        """
        part = None if rows is None else slice(rows[0], rows[0] + rows[1])
        heads = self._paired.get(name)
        if heads is None:
            return part
        # in the file, the rows of a pair are neighbours; for the model, they are half a head apart
        numbers = torch.arange(self._entries[name].shape[0]).view(heads, -1, 2).transpose(1, 2).flatten()
        return numbers if part is None else numbers[part]

    def _four_bit(self, entry: Entry, packed: Packed) -> Tensor:
        absmax = self._tensor(self._entries[packed.absmax])
        if packed.nested_table:
            table = self._tensor(self._entries[packed.nested_table])
            factors = self._tensor(self._entries[packed.nested_absmax])
            absmax = dequantise.by_block(absmax, table, factors, packed.nested_block, (absmax.numel(),))
            absmax = absmax + packed.nested_offset
        table = self._tensor(self._entries[packed.table])
        return dequantise.four_bit(self._tensor(entry), table, absmax, packed.block, packed.shape)

    def _stored(self, name: str) -> bytes:
        entry = self._entries[name]
        return bytes(self._map[self._begin + entry.start : self._begin + entry.end])

    def forget(self, name: str) -> None:
        """Release the memory of a tensor that has been copied elsewhere. The tensor can be read again."""
        entry = self._entries[name]
        forget_mapped(self._map, self._begin + entry.start, self._begin + entry.end)

    def dtype_of(self, names: Iterable[str]) -> torch.dtype:
        """Return the dtype that most elements of these tensors have; float16 for packed weights."""
        counts: dict[str, int] = {}
        for name in names:
            counts[self.dtypes[name]] = counts.get(self.dtypes[name], 0) + prod(self.shapes[name])
        most = max(counts, key=lambda key: counts[key])
        return torch.float16 if is_packed_type(most) or most in _PACKED_TYPES else self._dtype(most)

    def _dtype(self, name: str) -> torch.dtype:
        if name not in _DTYPES:
            raise InvalidModelFile(f"`{self.path.name}` has tensors of type {name}, which civman cannot compute with")
        return _DTYPES[name]

    def _tensor(self, entry: Entry) -> Tensor:
        dtype, count = self._dtype(entry.dtype), prod(entry.shape)
        if count == 0:
            return torch.empty(entry.shape, dtype=dtype)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=self._begin + entry.start).view(entry.shape)


def _rows(tensor: Tensor, chosen: slice | Tensor | None) -> Tensor:
    return tensor if chosen is None else tensor[chosen]


def _header(file: BinaryIO, size: int) -> Header:
    first = file.read(_FIRST_BYTES)
    if (tokenizer := tokenizer_header(first, size, {})) is not None:
        return tokenizer
    if not first.startswith(MAGIC):
        return parse(first + file.read(max(0, needed_bytes(first, size) - len(first))), file_size=size)
    while True:
        first += file.read(max(_FIRST_GGUF_BYTES, 7 * len(first)))
        try:
            found = parse_gguf(first, is_whole=len(first) >= size, file_size=size)
        except NeedsMore:
            continue
        found.require_complete()
        return found.as_header
