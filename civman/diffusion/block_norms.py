"""Measures how much an adapter changes each block of a model, without merging the adapter.

The norm of a plain LoRA's change is computed from its two factors. For other kinds, the whole change of one weight at a
time is computed in memory.
"""

import math
from collections import defaultdict
from dataclasses import dataclass

import torch

from civman.diffusion.adapter_change import read_change
from civman.diffusion.loader import LoadedModel
from civman.diffusion.match_adapter import Adapter, match_file, weights_of
from civman.diffusion.merge_adapters import full_precision
from civman.diffusion.tensor_files import open_tensors
from civman.domain.adapters.block_weights import block_name, block_order


@dataclass(frozen=True, slots=True)
class BlockNorm:
    """The Frobenius norms of an adapter's change to one block (`norm`) and of the block's changed weights (`base`)."""

    block: str
    """The name of the block as used in block weights, see `block_weights.block_name`."""
    weights: int
    """The number of weights and biases of the block that the adapter changes."""
    norm: float
    base: float
    share: float
    """`norm` divided by `base`; 0 if all weights are 0."""


def block_norms(model: LoadedModel, adapter: Adapter) -> tuple[BlockNorm, ...]:
    """Measure how much an adapter changes each block of a model, at the adapter's scales.

    The model's weights need not be loaded from its file. Modules of the adapter that do not fit the model are ignored.
    Raises: InvalidModelFile, Refused: the adapter cannot be read.
    """
    components = {name: component for name, component in model.components.items() if name != "vae"}
    counts: defaultdict[str, int] = defaultdict(int)
    changes: defaultdict[str, float] = defaultdict(float)
    bases: defaultdict[str, float] = defaultdict(float)
    index = weights_of(components, model.unused_layers, model.sources)
    with open_tensors(adapter.path) as file, torch.no_grad(), full_precision():
        plan = match_file(adapter, file, index)
        for place in plan.acts:
            block, weight = block_name(*place), model.base_tensor(*place).float()
            counts[block] += 1
            changes[block] += read_change(plan, place, torch.device("cpu"), model.base_tensor).square(weight)
            bases[block] += float(torch.linalg.vector_norm(weight, dtype=torch.float64)) ** 2
            model.forget(*place)
    return tuple(
        BlockNorm(
            block, counts[block], math.sqrt(changes[block]), math.sqrt(bases[block]),
            math.sqrt(changes[block] / bases[block]) if bases[block] else 0.0,
        )
        for block in sorted(counts, key=block_order)
    )  # fmt: skip
