"""What each kind of adapter does to one weight: the change W' - W at scale 1, in float32.

A kind is known by the tensors a module has in the file. `dora_scale` is a magnitude per output row or per input column
on top of LoRA, LoHa or LoKr (DoRA, Liu et al. 2024, eq. 5); which of the two, its shape tells.
"""

from collections.abc import Collection, Mapping
from math import prod

import torch
from torch import Tensor

from civman.diffusion.adapter_formulas import KINDS, Kind, MisfitError, Parts, Shape, Shapes, matrix, strength, times

SUFFIXES: Mapping[str, str] = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_mid.weight": "mid",
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_A.default.weight": "down",
    "lora_B.default.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "down.weight": "down",
    "up.weight": "up",
    "alpha": "alpha",
    "dora_scale": "dora_scale",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "lora_magnitude_vector.default.weight": "magnitude",
    **{f"hada_{part}": f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{part}": f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    "oft_blocks": "oft_blocks",
    "rescale": "rescale",
    **{f"{part}.weight": part for part in ("a1", "a2", "b1", "b2", "bm")},
    "weight": "factor",
    "on_input": "on_input",
    "diff": "diff",
    "diff_b": "diff_b",
    "w_norm": "diff",
    "b_norm": "diff_b",
}
"""How a tensor's name ends in a file → the part it plays here. `on_input` is a flag: where it is false, call it
`on_output`."""


def kind_of(parts: Collection[str]) -> Kind | None:
    """The kind whose tensors these are; None when they are no kind we know, or a kind with a tensor too many or few."""
    have = frozenset(parts)
    return next((kind for kind in KINDS if kind.needs <= have <= kind.needs | kind.allows), None)


def label(kind: Kind, parts: Collection[str]) -> str:
    """What to call it in a report: `lora`, `lokr`, `dora`, `loha+dora` and so on."""
    if not {"dora_scale", "magnitude"} & set(parts):
        return kind.name
    return "dora" if kind.name == "lora" else f"{kind.name}+dora"


def misfit(kind: Kind, shapes: Shapes, weight: Shape) -> str | None:
    """Why the tensors do not fit a weight of this shape; None when they do. Reads shapes only."""
    if len(weight) < 2 and kind.name != "full":
        return f"a {kind.name} against a weight of one axis"
    try:
        described = kind.extent(shapes, weight)
        if described != matrix(weight):
            return f"shape {times(described)} against {times(matrix(weight))}"
        _dora_axis(shapes, weight)
    except MisfitError as reason:
        return str(reason)
    return None


def low_rank(kind: Kind, parts: Parts) -> tuple[Tensor, Tensor, float] | None:
    """(up (out, r), down (r, columns), scale) when the change is just scale · up @ down, so need not be formed."""
    if kind.name != "lora" or {"mid", "dora_scale", "magnitude"} & parts.keys():
        return None
    return parts["up"].flatten(1), parts["down"].flatten(1), strength(parts, parts["down"].shape[0])


def change(kind: Kind, parts: Parts, weight: Tensor) -> Tensor:
    """W' - W at scale 1, float32, of the weight's shape. `parts` and `weight` are float32 on one device."""
    delta = kind.change(parts, weight).reshape(weight.shape)
    axis = _dora_axis({name: tuple(part.shape) for name, part in parts.items()}, tuple(weight.shape))
    if axis is None:
        return delta
    turned = weight + delta
    others = [dim for dim in range(weight.ndim) if dim != axis]
    length = torch.linalg.vector_norm(turned, dim=others, keepdim=True) + torch.finfo(torch.float32).eps
    magnitude = parts["dora_scale"] if "dora_scale" in parts else parts["magnitude"]
    decomposed: Tensor = turned * (magnitude.reshape(length.shape) / length)
    return decomposed - weight


def _dora_axis(shapes: Shapes, weight: Shape) -> int | None:
    """0: a magnitude per output row; 1: per input column; None: there is none."""
    if "magnitude" in shapes:  # PEFT's own name: always per output, whichever axis its convolutions put it on
        if prod(shapes["magnitude"]) != weight[0]:
            raise MisfitError(f"magnitude of shape {times(shapes['magnitude'])} against {weight[0]} rows")
        return 0
    if "dora_scale" not in shapes:
        return None
    shape = shapes["dora_scale"]
    if prod(shape) == weight[0] and shape[0] == weight[0]:
        return 0
    if prod(shape) == weight[1] and (len(shape) == 1 or shape[1] == weight[1]):
        return 1
    raise MisfitError(f"dora_scale of shape {times(shape)} against {times(weight)}")
