"""Files with packed weights, written for tests: GGUF by the package `gguf`, scaled 8-bit weights by their formulas."""

import json
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

QUANTISED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
"""The block types that the package can write."""


def random_blocks(kind: str, rows: int, width: int, seed: int) -> np.ndarray:
    """Random bytes of one block type, whose 16-bit scales are ordinary numbers."""
    block, size = gguf.GGML_QUANT_SIZES[Kind[kind]]
    drawn = np.random.default_rng(seed)
    data = drawn.integers(0, 256, (rows * width // block, size), dtype=np.uint8)
    for at in SCALES[kind]:
        scale = drawn.uniform(-0.05, 0.05, len(data)).astype(np.float16)
        data[:, at : at + 2] = scale.view(np.uint8).reshape(-1, 2)
    return data.reshape(rows, -1)


SCALES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip
"""Block type → where its 16-bit floating-point numbers are."""


def write_gguf(
    path: Path,
    tensors: dict[str, tuple[np.ndarray, str]],
    metadata: Mapping[str, str | int] | None = None,
    *,
    architecture: str = "test",
) -> Path:
    """Write a GGUF file. `tensors`: name → (values, or bytes of blocks; type)."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (metadata or {}).items():
        if isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=Kind[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantised(tensors: dict[str, Tensor], kind: str) -> tuple[dict[str, tuple[np.ndarray, str]], dict[str, Tensor]]:
    """Quantise every matrix whose width allows it; returns what a GGUF file stores, and the numbers that it means."""
    stored: dict[str, tuple[np.ndarray, str]] = {}
    meant: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        values = tensor.float().numpy()
        if tensor.ndim == 2 and tensor.shape[1] % gguf.GGML_QUANT_SIZES[Kind[kind]][0] == 0:
            data = gguf.quants.quantize(values, Kind[kind])
            stored[name] = (data, kind)
            meant[name] = torch.from_numpy(gguf.quants.dequantize(data, Kind[kind]).reshape(values.shape).copy())
        else:
            stored[name] = (values, "F32")
            meant[name] = tensor.float()
    return stored, meant


def neighbours(values: np.ndarray, heads: int) -> np.ndarray:
    """Put the two rows that a head's position embedding turns together next to each other, as llama.cpp does."""
    width = len(values) // heads
    order = [head * width + half * (width // 2) + pair
             for head in range(heads) for pair in range(width // 2) for half in range(2)]  # fmt: skip
    return values[order]


def llama_cpp(
    path: Path, tensors: dict[str, Tensor], kind: str, *, architecture: str = "llama", heads: int = 2, keys: int = 1,
) -> tuple[Path, dict[str, Tensor]]:  # fmt: skip
    """Write a text encoder of Llama or Mistral as llama.cpp does; returns the file, and the numbers that it means.

    `tensors`: by the names that transformers gives them, behind `model.`.
    """
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 40)
    counts = {".q_proj.": heads, ".k_proj.": keys}
    moved = dict(tensors)
    for name, tensor in tensors.items():
        for side, count in counts.items():
            if side in name:
                moved[name] = torch.from_numpy(neighbours(tensor.float().numpy(), count))
    stored, _ = quantised(moved, kind)
    _, meant = quantised(tensors, kind)
    packed = {table.get_name(name, try_suffixes=(".weight", ".bias")): each for name, each in stored.items()}
    # a tensor that llama.cpp adds to files of Llama 3.1, and that is in no other file
    packed["rope_freqs.weight"] = (np.ones(64, np.float32), "F32")
    said: dict[str, str | int] = {
        f"{architecture}.attention.head_count": heads, f"{architecture}.attention.head_count_kv": keys,
        f"{architecture}.rope.dimension_count": 128,
    }  # fmt: skip
    return write_gguf(path, packed, said, architecture=architecture), meant


def rotation(size: int) -> np.ndarray:
    """The regular Hadamard matrix, entry by entry: a product over the digits of row and column in base four."""
    base = np.array([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]) / 2
    matrix = np.ones((size, size))
    for row in range(size):
        for column in range(size):
            left, right, step = row, column, size
            while step > 1:
                matrix[row, column] *= base[left % 4, right % 4]
                left, right, step = left // 4, right // 4, step // 4
    return matrix


def int8(weight: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise to int8 for each row, rotated in groups of inputs (0: not); returns numbers, scales, and the meaning."""
    turned = weight.double()
    block = torch.from_numpy(rotation(group)) if group else None
    if block is not None:
        turned = (turned.reshape(len(weight), -1, group) @ block).reshape(weight.shape)
    scale = (turned.abs().amax(1) / 127).float()
    codes = (turned / scale.double()[:, None]).round().clamp(-127, 127)
    meant = codes * scale.double()[:, None]
    if block is not None:
        meant = (meant.reshape(len(weight), -1, group) @ block.T).reshape(weight.shape)
    return codes.to(torch.int8), scale, meant


def settings(**said: object) -> Tensor:
    """ComfyUI's settings of one layer, as the bytes of JSON."""
    return torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
