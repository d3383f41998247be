"""Layers that the face models have in common; each takes its weights by name from a published file's tensors."""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

Tensors = Mapping[str, Tensor]
_NORM: Final = 1e-5


def conv(x: Tensor, tensors: Tensors, name: str, *, stride: int = 1, padding: int | None = None) -> Tensor:
    """Apply a convolution; without `padding`, the size stays the same (divided by the stride)."""
    weight = tensors[f"{name}.weight"]
    around = weight.shape[-1] // 2 if padding is None else padding
    return functional.conv2d(x, weight, tensors.get(f"{name}.bias"), stride, around)


def batch_norm(x: Tensor, tensors: Tensors, name: str) -> Tensor:
    """Apply batch norm with the stored mean and variance."""
    mean, variance = tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"]
    return functional.batch_norm(x, mean, variance, tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps=_NORM)


def linear(x: Tensor, tensors: Tensors, name: str) -> Tensor:
    """Apply a linear layer."""
    return functional.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))


def layer_norm(x: Tensor, tensors: Tensors, name: str) -> Tensor:
    """Apply layer norm over the last axis."""
    weight = tensors[f"{name}.weight"]
    return functional.layer_norm(x, tuple(weight.shape), weight, tensors[f"{name}.bias"], _NORM)


def numbered(tensors: Tensors, prefix: str) -> int:
    """Count the numbered parts under a name: 3 if there are `prefix.0` to `prefix.2`."""
    found = {
        int(name[len(prefix) + 1 :].partition(".")[0])
        for name in tensors
        if name.startswith(f"{prefix}.") and name[len(prefix) + 1 :].partition(".")[0].isdecimal()
    }
    return max(found) + 1 if found else 0


def doubled(x: Tensor, mode: str = "bilinear") -> Tensor:
    """Double the width and height of a feature map."""
    corners = False if mode == "bilinear" else None
    return functional.interpolate(x, scale_factor=2, mode=mode, align_corners=corners)


def unwrapped(tensors: Tensors) -> dict[str, Tensor]:
    """Remove training programs' prefixes from all names; if the file also has averaged (EMA) weights, use those."""
    for prefix in ("params_ema.", "params.", "state_dict.", "module."):
        if any(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def swish(x: Tensor) -> Tensor:
    """Compute x · sigmoid(x)."""
    return x * torch.sigmoid(x)
