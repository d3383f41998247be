"""The arithmetic that dequantises weights: scaled 8-bit weights, 4-bit tables, GGUF's blocks.

Everything is computed in float32. `civman.domain.files.packed_weights` decides which tensors belong to a weight;
`civman.diffusion.mapped_weights` reads them.

Sources: ComfyUI's scaled fp8 and int8 formats; stable-diffusion.cpp, for the rotation of these weights; bitsandbytes'
4-bit format (Dettmers et al. 2023, QLoRA, 3). GGUF's blocks are dequantised by the package `gguf`.
"""

import importlib
from functools import cache
from typing import Any

import torch
from torch import Tensor

from civman.domain.files.gguf_types import BLOCKS

_PIECE = 1 << 20
"""The number of weights to dequantise at a time, which limits the memory for intermediate values."""
_ROTATION = ((1, 1, 1, -1), (1, 1, -1, 1), (1, -1, 1, 1), (-1, 1, 1, 1))


def scaled(values: Tensor, scale: Tensor, rotation: int = 0) -> Tensor:
    """Multiply a weight by its scale, and undo its rotation.

    Args:
        values: the stored numbers, with rows first: 8-bit floats or integers, or any wider type.
        scale: one number, or one for each row.
        rotation: the number of inputs in each rotated group (a power of four); 0 if the weight is not rotated.
    """
    result = values.to(torch.float32, copy=True)
    result.mul_(scale.to(torch.float32).reshape(-1, *[1] * (values.ndim - 1)) if values.ndim else scale.reshape(()))
    if not rotation:
        return result
    groups = result.view(result.shape[0], -1, rotation)
    return torch.matmul(groups, _hadamard(rotation)).view(result.shape)


@cache
def _hadamard(size: int) -> Tensor:
    """Build the normalised regular Hadamard matrix of this size (a power of four), which is its own inverse."""
    base = torch.tensor(_ROTATION, dtype=torch.float32) / 2
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.kron(matrix, base)
    return matrix


def four_bit(codes: Tensor, table: Tensor, absmax: Tensor, block: int, shape: tuple[int, ...]) -> Tensor:
    """Dequantise 4-bit codes: look up each code in a table, and multiply each block by its maximum.

    Args:
        codes: bytes, in any shape, each with two codes; the first one is in the upper half.
        table: the value of each of the 16 codes.
        absmax: the largest absolute value of each block.
        block: the number of weights in a block.
        shape: the weight's shape.
    """
    packed = codes.reshape(-1).to(torch.int32)
    positions = torch.stack((packed >> 4, packed & 15), dim=1).reshape(-1)
    return by_block(positions, table, absmax, block, shape)


def by_block(positions: Tensor, table: Tensor, factors: Tensor, block: int, shape: tuple[int, ...]) -> Tensor:
    """Look up each code of `positions` in `table`, and multiply each block of values by its factor."""
    count = 1
    for size in shape:
        count *= size
    values = table.to(torch.float32)[positions.reshape(-1)[:count].to(torch.int64)]
    whole = count // block * block
    values[:whole].view(-1, block).mul_(factors[: whole // block].to(torch.float32).unsqueeze(1))
    if whole < count:
        values[whole:].mul_(factors[whole // block].to(torch.float32))
    return values.view(shape)


def gguf_blocks(stored: Tensor, kind: str, shape: tuple[int, ...]) -> Tensor:
    """Dequantise the bytes of a GGUF tensor of type `kind`, such as "Q4_K", to float32."""
    # imported here, because only GGUF files need this package
    constants: Any = importlib.import_module("gguf.constants")
    quants: Any = importlib.import_module("gguf.quants")
    block, size = BLOCKS[kind]
    blocks = stored.numpy().reshape(-1, size)
    result = torch.empty(len(blocks), block, dtype=torch.float32)
    # dequantise in pieces, because the package needs several times the memory of its result
    for start in range(0, len(blocks), step := max(1, _PIECE // block)):
        piece = quants.dequantize(blocks[start : start + step], constants.GGMLQuantizationType[kind])
        result[start : start + step] = torch.from_numpy(piece).view(-1, block)
    return result.view(shape)
