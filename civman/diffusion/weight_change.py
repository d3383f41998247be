"""Computes how an adapter changes one weight: the difference W' - W at scale 1, in float32.

`dora_scale` contains a magnitude for each output row or for each input column, which is applied on top of LoRA, LoHa or
LoKr (DoRA, Liu et al. 2024, eq. 5). Its shape shows which of the two it is.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from civman.diffusion.adapter_formulas import FORMULAS, Parts, strength
from civman.domain.adapters.adapter_kinds import dora_axis
from civman.domain.architecture import Adapter


def low_rank(kind: Adapter, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, float] | None:
    """Return (up (out, r), down (r, columns), scale) if the change is a low-rank product, else None.

    The change is scale · up @ down.
    """
    if kind is not Adapter.LORA or "mid" in parts:
        return None
    return parts["up"].flatten(1), parts["down"].flatten(1), strength(parts, parts["down"].shape[0])


def ignores_weight(kind: Adapter, parts: Mapping[str, Tensor]) -> bool:
    """Whether `change` depends only on the weight's shape, not on its values."""
    is_sum = kind in (Adapter.LORA, Adapter.LOHA, Adapter.LOKR) or "diff" in parts
    return is_sum and not {"dora_scale", "magnitude"} & parts.keys()


def change(kind: Adapter, parts: Parts, weight: Tensor) -> Tensor:
    """Compute W' - W at scale 1, float32, in the shape of the weight.

    `parts` and `weight` are float32 on one device.
    """
    delta = FORMULAS[kind](parts, weight).reshape(weight.shape)
    axis = dora_axis({name: tuple(part.shape) for name, part in parts.items()}, tuple(weight.shape))
    if axis is None:
        return delta
    turned = weight + delta
    others = [dim for dim in range(weight.ndim) if dim != axis]
    length = torch.linalg.vector_norm(turned, dim=others, keepdim=True) + torch.finfo(torch.float32).eps
    magnitude = parts["dora_scale"] if "dora_scale" in parts else parts["magnitude"]
    decomposed: Tensor = turned * (magnitude.reshape(length.shape) / length)
    return decomposed - weight
