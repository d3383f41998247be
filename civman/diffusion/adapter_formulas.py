"""The formulas: what the tensors of each kind of adapter make of one weight.

Formulas: LoRA (Hu et al. 2021, 4.1), LoHa (Hyeon-Woo et al. 2022, FedPara, 2), LoKr and the file layouts (Yeh et al.
2024, LyCORIS, 3), OFT (Qiu et al. 2023, 3), BOFT (Liu et al. 2024, 4), GLoRA (Chavan et al. 2023, eq. 9), IA3 (Liu et
al. 2022, 3.3). `alpha` missing or 0 means rank: both large trainers write it so.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Parts = Mapping[str, Tensor]


class MisfitError(ValueError):
    """The tensors cannot act on this weight; the text says why."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to store a change of a weight.

    `extent` gives the (rows, columns) of the change the tensors describe for a weight of some shape, kernel positions
    counted as columns; `change` the change itself.
    """

    name: str
    needs: frozenset[str]
    allows: frozenset[str]
    extent: Callable[[Shapes, Shape], tuple[int, int]]
    change: Callable[[Parts, Tensor], Tensor]


def matrix(shape: Shape) -> tuple[int, int]:
    """Rows and columns of a weight, kernel positions counted as columns."""
    return shape[0], math.prod(shape[1:])


def times(shape: Shape) -> str:
    """A shape as text: `320x768`."""
    return "x".join(map(str, shape))


def strength(parts: Parts, rank: int) -> float:
    """Alpha / rank."""
    alpha = float(parts["alpha"].reshape(-1)[0]) if "alpha" in parts else 0.0
    return (alpha or rank) / rank


def _same_rank(first: int, second: int) -> None:
    if first != second:
        raise MisfitError(f"ranks {first} and {second} of its factors differ")


def _two_axes(shape: Shape) -> Shape:
    if len(shape) < 2:
        raise MisfitError(f"a factor of shape {times(shape) or 'scalar'} is no matrix")
    return shape


def _tucker(core: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Core (r, r, kh, kw) with up (out, r) and down (r, in) → (out, in, kh, kw)."""
    return torch.einsum("rs...,or,si->oi...", core, up, down)


# --- LoRA, LoCon, and their Tucker form


def _lora_extent(shapes: Shapes, _weight: Shape) -> tuple[int, int]:
    up, down = _two_axes(shapes["up"]), _two_axes(shapes["down"])
    if "mid" in shapes:
        mid = _two_axes(shapes["mid"])
        _same_rank(mid[0], matrix(up)[1])
        _same_rank(mid[1], down[0])
        return up[0], matrix(down)[1] * math.prod(mid[2:])
    _same_rank(matrix(up)[1], down[0])
    return up[0], matrix(down)[1]


def _lora(parts: Parts, _weight: Tensor) -> Tensor:
    up, down = parts["up"].flatten(1), parts["down"].flatten(1)
    delta = _tucker(parts["mid"], up, down) if "mid" in parts else up @ down
    return delta * strength(parts, parts["down"].shape[0])


# --- LoHa: the Hadamard product of two low-rank matrices


def _loha_extent(shapes: Shapes, _weight: Shape) -> tuple[int, int]:
    tucker = "hada_t1" in shapes
    extents = set()
    for half, core in (("hada_w1", "hada_t1"), ("hada_w2", "hada_t2")):
        a, b = _two_axes(shapes[f"{half}_a"]), _two_axes(shapes[f"{half}_b"])
        if not tucker:
            _same_rank(matrix(a)[1], b[0])
            extents.add((a[0], matrix(b)[1]))
            continue
        if core not in shapes:
            raise MisfitError(f"{core} is missing")
        _same_rank(shapes[core][0], a[0])
        _same_rank(shapes[core][1], b[0])
        extents.add((matrix(a)[1], matrix(b)[1] * math.prod(shapes[core][2:])))
    if len(extents) != 1:
        raise MisfitError("its two halves have different shapes")
    return extents.pop()


def _loha(parts: Parts, _weight: Tensor) -> Tensor:
    def half(name: str, core: str) -> Tensor:
        a, b = parts[f"{name}_a"], parts[f"{name}_b"]
        return _tucker(parts[core], a.T, b) if core in parts else a @ b.flatten(1)

    rank = parts["hada_w1_b"].shape[0]
    return half("hada_w1", "hada_t1") * half("hada_w2", "hada_t2") * strength(parts, rank)


# --- LoKr: the Kronecker product of two factors, each whole or low-rank


def _lokr_factor_extent(shapes: Shapes, name: str) -> tuple[int, int]:
    a, b, core = f"{name}_a", f"{name}_b", "lokr_t2"
    if name in shapes:
        return matrix(_two_axes(shapes[name]))
    if a not in shapes or b not in shapes:
        raise MisfitError(f"{name} is missing")
    rows, columns = _two_axes(shapes[a]), _two_axes(shapes[b])
    if name == "lokr_w2" and core in shapes:
        _same_rank(shapes[core][0], rows[0])
        _same_rank(shapes[core][1], columns[0])
        return rows[1], columns[1] * math.prod(shapes[core][2:])
    _same_rank(rows[1], columns[0])
    return rows[0], matrix(columns)[1]


def _lokr_extent(shapes: Shapes, weight: Shape) -> tuple[int, int]:
    first, second = _lokr_factor_extent(shapes, "lokr_w1"), _lokr_factor_extent(shapes, "lokr_w2")
    if second[1] % math.prod(weight[2:]):
        raise MisfitError(f"{second[1]} columns do not divide into kernels of {times(weight[2:])}")
    return first[0] * second[0], first[1] * second[1]


def _lokr(parts: Parts, weight: Tensor) -> Tensor:
    def factor(name: str) -> Tensor:
        if name in parts:
            return parts[name].flatten(1)
        a, b = parts[f"{name}_a"], parts[f"{name}_b"]
        if name == "lokr_w2" and "lokr_t2" in parts:
            return _tucker(parts["lokr_t2"], a.T, b).flatten(1)
        return a @ b.flatten(1)

    first, second = factor("lokr_w1"), factor("lokr_w2")
    kernel = weight.shape[2:]
    ones = (1,) * len(kernel)
    product = torch.kron(first.reshape(*first.shape, *ones), second.reshape(second.shape[0], -1, *kernel).contiguous())
    thin = [parts[name] for name in ("lokr_w1_b", "lokr_w2_b") if name in parts]
    return product * strength(parts, thin[0].shape[0]) if thin else product  # two whole factors have no rank


# --- OFT and BOFT: rotations of the output rows


def _rotations(parts: Parts, rows: int) -> Tensor:
    """Cayley transforms of the blocks (…, b, b); alpha bounds the norm of what is turned by, in units of rows."""
    blocks = parts["oft_blocks"]
    skew = blocks - blocks.mT
    bound = float(parts["alpha"].reshape(-1)[0]) * rows if "alpha" in parts else 0.0
    if bound > 0:
        length = torch.linalg.vector_norm(skew) + 1e-8
        skew = skew * torch.clamp(bound / length, max=1.0)
    eye = torch.eye(blocks.shape[-1], device=blocks.device)
    turn: Tensor = torch.linalg.solve(eye - skew, eye + skew, left=False)
    return turn


def _rescaled(rows: Tensor, parts: Parts, weight: Tensor) -> Tensor:
    rows = rows.reshape(weight.shape)
    if "rescale" in parts:
        rows = rows * parts["rescale"].reshape(-1, *(1,) * (weight.ndim - 1))
    return rows - weight


def _rotation_extent(shapes: Shapes, weight: Shape) -> tuple[int, int]:
    *stages, blocks, size, other = (1, *shapes["oft_blocks"])[-4:]
    if size != other or len(shapes["oft_blocks"]) not in (3, 4):
        raise MisfitError(f"oft_blocks of shape {times(shapes['oft_blocks'])} are no square blocks")
    if "rescale" in shapes and math.prod(shapes["rescale"]) != weight[0]:
        raise MisfitError(f"rescale of shape {times(shapes['rescale'])} against {weight[0]} rows")
    if len(shapes["oft_blocks"]) == 4 and (size % 2 or blocks % 2 ** (stages[0] - 1)):
        raise MisfitError(f"{stages[0]} butterfly stages do not fit {blocks} blocks of {size}")
    return blocks * size, matrix(weight)[1]


def _oft(parts: Parts, weight: Tensor) -> Tensor:
    turn = _rotations(parts, weight.shape[0])
    if turn.ndim == 4:
        return _boft(turn, parts, weight)
    blocks, size, _ = turn.shape
    return _rescaled(turn.mT @ weight.reshape(blocks, size, -1), parts, weight)


def _boft(turn: Tensor, parts: Parts, weight: Tensor) -> Tensor:
    """Stage i pairs rows 2^i · b/2 apart, so that after the last stage every row has met every other."""
    stages, blocks, size, _ = turn.shape
    rows = weight.flatten(1)
    columns = rows.shape[1]
    for stage in range(stages):
        reach = 2**stage * (size // 2)
        pairs = rows.reshape(-1, 2, reach, columns).transpose(1, 2).reshape(blocks, size, columns)
        turned = turn[stage] @ pairs
        rows = turned.reshape(-1, reach, 2, columns).transpose(1, 2).reshape(-1, columns)
    return _rescaled(rows, parts, weight)


# --- GLoRA, IA3, whole differences


def _glora_parts(shapes: Shapes, weight: Shape) -> tuple[str, str, str, str]:
    """Names of (in→r, r→in, out←r, r←in); older files name each pair the other way round."""
    now = (shapes["a1"][0], matrix(shapes["a2"])[1], shapes["b1"][0]) == (weight[1], weight[1], weight[0])
    return ("a1", "a2", "b1", "b2") if now else ("a2", "a1", "b2", "b1")


def _glora_extent(shapes: Shapes, weight: Shape) -> tuple[int, int]:
    narrow, widen, out, inner = (_two_axes(shapes[name]) for name in _glora_parts(shapes, weight))
    _same_rank(matrix(narrow)[1], widen[0])
    if (narrow[0], matrix(widen)[1]) != (weight[1], weight[1]):
        raise MisfitError(f"input factors {times(narrow)} and {times(widen)} against {weight[1]} inputs")
    if "bm" in shapes:
        _same_rank(shapes["bm"][0], matrix(out)[1])
        _same_rank(shapes["bm"][1], inner[0])
        return out[0], matrix(inner)[1] * math.prod(shapes["bm"][2:])
    _same_rank(matrix(out)[1], inner[0])
    return out[0], matrix(inner)[1]


def _glora(parts: Parts, weight: Tensor) -> Tensor:
    names = _glora_parts({name: tuple(part.shape) for name, part in parts.items()}, tuple(weight.shape))
    narrow, widen, out, inner = (parts[name].flatten(1) for name in names)
    through = torch.einsum("oi...,ir,rj->oj...", weight, narrow, widen)
    added = _tucker(parts["bm"], out, inner) if "bm" in parts else out @ inner
    return (through + added.reshape(weight.shape)) * strength(parts, widen.shape[0])


def _ia3_axis(parts: Collection[str]) -> int:
    return 1 if "on_input" in parts else 0


def _ia3_extent(shapes: Shapes, weight: Shape) -> tuple[int, int]:
    axis, count = _ia3_axis(shapes.keys()), math.prod(shapes["factor"])
    if count != weight[axis]:
        raise MisfitError(f"{count} factors against {weight[axis]} {'inputs' if axis else 'outputs'}")
    return matrix(weight)


def _ia3(parts: Parts, weight: Tensor) -> Tensor:
    axis = _ia3_axis(parts.keys())
    return weight * parts["factor"].reshape([-1 if dim == axis else 1 for dim in range(weight.ndim)])


def _whole_extent(shapes: Shapes, _weight: Shape) -> tuple[int, int]:
    return matrix(shapes["diff"])


def _whole(parts: Parts, _weight: Tensor) -> Tensor:
    return parts["diff"]


_ALPHA = frozenset({"alpha"})
_SCALED = frozenset({"alpha", "dora_scale", "magnitude"})
_LOKR = _SCALED | {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"}

KINDS: tuple[Kind, ...] = (
    Kind("lora", frozenset({"down", "up"}), _SCALED | {"mid", "diff_b"}, _lora_extent, _lora),
    Kind(
        "loha",
        frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),
        _SCALED | {"hada_t1", "hada_t2"},
        _loha_extent,
        _loha,
    ),
    Kind("lokr", frozenset({"lokr_w1"}), _LOKR, _lokr_extent, _lokr),
    Kind("lokr", frozenset({"lokr_w1_a", "lokr_w1_b"}), _LOKR, _lokr_extent, _lokr),
    Kind("oft", frozenset({"oft_blocks"}), _ALPHA | {"rescale"}, _rotation_extent, _oft),
    Kind("glora", frozenset({"a1", "a2", "b1", "b2"}), _ALPHA | {"bm"}, _glora_extent, _glora),
    Kind("ia3", frozenset({"factor", "on_input"}), frozenset(), _ia3_extent, _ia3),
    Kind("ia3", frozenset({"factor", "on_output"}), frozenset(), _ia3_extent, _ia3),
    Kind("full", frozenset({"diff"}), _ALPHA | {"diff_b"}, _whole_extent, _whole),
)
