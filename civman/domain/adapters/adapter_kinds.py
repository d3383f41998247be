"""Defines the kinds of adapters: the tensors that each kind consists of, and the shapes of the weights that it fits.

The kind is recognised by the parts of a change (such as "down" and "up") that the file contains for a module. The
formulas themselves are in `civman.diffusion.adapter_formulas`. What they require of the shapes is checked here, so that
a file's header is enough to decide whether an adapter fits.

Source: LoRA (Hu et al. 2021, 4.1), LoHa (Hyeon-Woo et al. 2022, FedPara, 2), LoKr and the file layouts (Yeh et al.
    2024, LyCORIS, 3), OFT (Qiu et al. 2023, 3), BOFT (Liu et al. 2024, 4), GLoRA (Chavan et al. 2023, eq. 9),
    IA3 (Liu et al. 2022, 3.3), DoRA (Liu et al. 2024, eq. 5).
"""

from collections.abc import Callable, Collection, Mapping
from functools import cache
from math import isqrt, prod
from typing import NamedTuple

from civman.domain.architecture import Adapter

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
"""Maps each part of a change, such as "down", to the shape of its tensor."""


class MisfitError(ValueError):
    """The tensors contradict each other or cannot be applied to a weight; the message gives the reason."""


class Described(NamedTuple):
    """The shape of the weight that a module's tensors were made for, as far as the tensors show it.

    `shape` is (out, in, *kernel); (out, in·kernel) if a convolution is stored as a matrix; (out,) for a norm; empty if
    the tensors show only one of the two widths. `sides` then contains the possible values of this width.
    """

    shape: Shape = ()
    sides: tuple[int, ...] = ()
    rank: int | None = None


class Layout(NamedTuple):
    """One way to store a change in a file: the required parts and the optional parts."""

    kind: Adapter
    needs: frozenset[str]
    allows: frozenset[str]


_BIAS = frozenset({"diff_b"})
_SCALED = _BIAS | {"alpha", "dora_scale", "magnitude"}
_LOKR = _SCALED | {f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t1", "t2")}
_LOHA = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})

LAYOUTS = (
    Layout(Adapter.LORA, frozenset({"down", "up"}), _SCALED | {"mid", "up_bias"}),
    Layout(Adapter.LOHA, _LOHA, _SCALED | {"hada_t1", "hada_t2"}),
    Layout(Adapter.LOKR, frozenset({"lokr_w1"}), _LOKR),
    Layout(Adapter.LOKR, frozenset({"lokr_w1_a", "lokr_w1_b"}), _LOKR),
    Layout(Adapter.OFT, frozenset({"oft_blocks"}), _BIAS | {"alpha", "rescale"}),
    Layout(Adapter.OFT, frozenset({"oft_diag"}), _BIAS | {"alpha", "rescale"}),
    Layout(Adapter.GLORA, frozenset({"a1", "a2", "b1", "b2"}), _BIAS | {"alpha", "bm"}),
    Layout(Adapter.OFT, frozenset({"oft_r"}), frozenset()),
    Layout(Adapter.BOFT, frozenset({"boft_r"}), frozenset({"boft_s"})),
    Layout(Adapter.IA3, frozenset({"factor", "on_input"}), frozenset()),
    Layout(Adapter.IA3, frozenset({"ia3_l"}), frozenset()),
    Layout(Adapter.FULL, frozenset({"diff"}), _BIAS | {"alpha"}),
    Layout(Adapter.FULL, frozenset({"set_weight"}), _BIAS | {"alpha"}),
    Layout(Adapter.FULL, _BIAS, frozenset({"alpha"})),
)

_SHOWS = {
    "down": Adapter.LORA, "up": Adapter.LORA, "mid": Adapter.LORA, "up_bias": Adapter.LORA, "on_input": Adapter.IA3,
    "a1": Adapter.GLORA, "a2": Adapter.GLORA, "b1": Adapter.GLORA, "b2": Adapter.GLORA, "bm": Adapter.GLORA,
    "oft_blocks": Adapter.OFT, "oft_diag": Adapter.OFT, "diff": Adapter.FULL, "set_weight": Adapter.FULL,
    "diff_b": Adapter.FULL, "oft_r": Adapter.OFT, "boft_r": Adapter.BOFT, "boft_s": Adapter.BOFT,
    "ia3_l": Adapter.IA3,
}  # fmt: skip


@cache
def kind_of(parts: frozenset[str]) -> Adapter | None:
    """Determine an adapter's kind from the parts of its changes, even if some are missing; None if no kind matches.

    An adapter of any kind may also change biases.
    """
    hints = [kind for part in sorted(parts) if (kind := _hint(part)) is not None]
    return next((kind for kind in hints if kind is not Adapter.FULL), hints[0] if hints else None)


def _hint(part: str) -> Adapter | None:
    if part.startswith("hada_"):
        return Adapter.LOHA
    return Adapter.LOKR if part.startswith("lokr_") else _SHOWS.get(part)


def describe(kind: Adapter, shapes: Shapes) -> Described:
    """Determine the shape of the weight that the tensors were made for.

    Raises: MisfitError: a part is missing, unexpected, or has a wrong shape.
    """
    if problem := _why_no_layout(kind, frozenset(shapes)):
        raise MisfitError(problem)
    for shape in shapes.values():
        if 0 in shape:
            raise MisfitError("the module's tensors are empty")
    found = _DESCRIBERS[kind](shapes)
    if "up_bias" in shapes and shapes["up_bias"] != found.shape[:1]:
        shown = shape_text(shapes["up_bias"])
        raise MisfitError(f"the adapter's bias has the shape {shown}, but its `up` tensor has {found.shape[0]} rows")
    return found


@cache  # cached, because a file has about a thousand modules but only one or two different sets of parts
def _why_no_layout(kind: Adapter, have: frozenset[str]) -> str:
    if any(layout.needs <= have <= layout.needs | layout.allows for layout in LAYOUTS):
        return ""
    wanted = [
        layout.needs - have
        for layout in LAYOUTS
        if layout.kind is kind and have & layout.needs and have <= layout.needs | layout.allows
    ]
    missing = min(wanted, key=len, default=frozenset())
    if missing:
        return f"the {kind} is incomplete, because it lacks {', '.join(sorted(missing))}"
    return f"no known kind of adapter consists of the tensors {', '.join(sorted(have))}"


def misfit(
    kind: Adapter, shapes: Shapes, found: Described, weight: Shape, bias: Shape | None, *, on_input: bool | None = None
) -> str | None:
    """Return why tensors that describe `found` cannot be applied to a weight of shape `weight`; None if they can.

    `bias`: the shape of the module's bias; None if the module has none. `on_input`: whether an IA3 adapter scales the
    inputs, according to a flag in its file; None if unknown.
    """
    if "up_bias" in shapes and bias is None:
        return f"the adapter has a bias of shape {shape_text(shapes['up_bias'])}, but the layer has no bias"
    if "diff_b" in shapes and shapes["diff_b"] != bias:
        changed = shape_text(shapes["diff_b"])
        if not bias:
            return f"the adapter changes a bias of shape {changed}, but the layer has no bias"
        return f"the adapter changes a bias of shape {changed}, but the layer's bias has the shape {shape_text(bias)}"
    if kind is Adapter.FULL and not found.shape:
        return None
    if "oft_r" in shapes or "boft_r" in shapes:
        return _PEFT_ROTATION
    if len(weight) < 2 and kind is not Adapter.FULL:
        return f"{kind} cannot change a weight with only one axis"
    try:
        _FITTERS.get(kind, _fit_shape)(shapes, found, weight)
        if kind is Adapter.IA3:
            _fit_factors(shapes, weight, on_input)
        dora_axis(shapes, weight)
    except MisfitError as reason:
        return str(reason)
    return None


_PEFT_ROTATION = (
    "versions of PEFT compute different rotations from OFT and BOFT tensors, and the file does not state its version"
)
"""The reason why OFT and BOFT adapters made with PEFT are not applied."""


def input_width(shapes: Shapes) -> int | None:
    """Return the input width of the weight that PEFT's OFT, BOFT or IA3 was made for; None for every other kind."""
    if "oft_r" in shapes and len(shapes["oft_r"]) == 2:
        return shapes["oft_r"][0] * _block_size(shapes["oft_r"][1])
    if "boft_r" in shapes and len(shapes["boft_r"]) == 4:
        return shapes["boft_r"][1] * shapes["boft_r"][2]
    return shapes["ia3_l"][1] if factors_on_input(shapes) else None


def factors_on_input(shapes: Shapes) -> bool | None:
    """Whether PEFT's IA3 scales the inputs of a linear layer; None if the shape of its factors does not show it."""
    shape = shapes.get("ia3_l", ())
    return shape[0] == 1 if len(shape) == 2 and shape[0] != shape[1] and 1 in shape else None


def _block_size(count: int) -> int:
    """Compute the number of rows of a skew-symmetric matrix from the number of elements above its diagonal."""
    return (1 + isqrt(1 + 8 * count)) // 2


def has_strength(shapes: Collection[str]) -> bool:
    """Whether an alpha of 0 disables the change.

    It does not disable an OFT, because its alpha limits the rotation, or a LoKr with two full factors, because that has
    no rank.
    """
    if {"dora_scale", "magnitude", "diff_b"} & set(shapes):
        # magnitudes and a changed bias have an effect even if alpha is 0
        return False
    return bool({"down", "a1", "hada_w1_a", "lokr_w1_a", "lokr_w2_a"} & set(shapes))


def label(kind: Adapter, parts: Collection[str]) -> str:
    """Name the kind of adapter for reports: `lora`, `lokr`, `dora`, `loha+dora` and so on."""
    decomposed = kind is not Adapter.DORA and bool({"dora_scale", "magnitude"} & set(parts))
    return f"{kind}+dora" if decomposed else str(kind)


def matrix(shape: Shape) -> tuple[int, int]:
    """Convert the shape of a weight to rows and columns; kernel positions are counted as columns."""
    return shape[0], prod(shape[1:])


def shape_text(shape: Shape) -> str:
    """Format a shape as text, such as `320x768`."""
    return "x".join(map(str, shape))


def dora_axis(shapes: Shapes, weight: Shape) -> int | None:
    """Return the axis along which DoRA's magnitudes are stored.

    0: one magnitude for each output row. 1: one for each input column. None: there are no magnitudes.

    Raises: MisfitError: the number of magnitudes matches neither the rows nor the columns.
    """
    # PEFT's format always has one magnitude for each output, whatever shape PEFT stores for convolutions
    if "magnitude" in shapes:
        if prod(shapes["magnitude"]) != weight[0]:
            count = prod(shapes["magnitude"])
            raise MisfitError(f"the adapter has {count} magnitudes, but the weight has {weight[0]} rows")
        return 0
    if "dora_scale" not in shapes:
        return None
    shape = shapes["dora_scale"]
    if prod(shape) == weight[0] and shape[0] == weight[0]:
        return 0
    if prod(shape) == weight[1] and (len(shape) == 1 or shape[1] == weight[1]):
        return 1
    raise MisfitError(f"a dora_scale of shape {shape_text(shape)} does not fit a weight of shape {shape_text(weight)}")


def glora_parts(shapes: Shapes, weight: Shape) -> tuple[str, str, str, str]:
    """Return the names of GLoRA's four tensors in the order in→r, r→in, out←r, r←in, as their shapes show.

    Older files swap the two names of each pair.
    """
    now = (shapes["a1"][0], matrix(shapes["a2"])[1], shapes["b1"][0]) == (weight[1], weight[1], weight[0])
    return ("a1", "a2", "b1", "b2") if now else ("a2", "a1", "b2", "b1")


# --- functions that determine the weight that the tensors of each kind were made for


def _same_rank(first: int, second: int) -> None:
    if first != second:
        raise MisfitError(f"the adapter's factors have different ranks: {first} and {second}")


def _two_axes(shape: Shape) -> Shape:
    if len(shape) < 2:
        raise MisfitError(f"a factor of the adapter is not a matrix, but has the shape {shape_text(shape) or 'scalar'}")
    return shape


def _lora(shapes: Shapes) -> Described:
    up, down = _two_axes(shapes["up"]), _two_axes(shapes["down"])
    rank = down[0]
    if "mid" not in shapes:
        _same_rank(matrix(up)[1], rank)
        return Described((up[0], down[1], *down[2:]), rank=rank)
    mid = _two_axes(shapes["mid"])
    _same_rank(mid[0], matrix(up)[1])
    _same_rank(mid[1], rank)
    return Described((up[0], matrix(down)[1], *mid[2:]), rank=rank)


def _loha(shapes: Shapes) -> Described:
    tucker = "hada_t1" in shapes or "hada_t2" in shapes
    found = set()
    for half, core in (("hada_w1", "hada_t1"), ("hada_w2", "hada_t2")):
        a, b = _two_axes(shapes[f"{half}_a"]), _two_axes(shapes[f"{half}_b"])
        if not tucker:
            _same_rank(matrix(a)[1], b[0])
            found.add((a[0], *b[1:]))
            continue
        if core not in shapes:
            raise MisfitError(f"{core} is missing")
        _same_rank(_two_axes(shapes[core])[0], a[0])
        _same_rank(shapes[core][1], b[0])
        found.add((matrix(a)[1], matrix(b)[1], *shapes[core][2:]))
    if len(found) != 1:
        raise MisfitError("hada_w1 and hada_w2 have different shapes")
    return Described(found.pop(), rank=shapes["hada_w1_b"][0])


def _lokr(shapes: Shapes) -> Described:
    left, right = _factor(shapes, "lokr_w1", "lokr_t1"), _factor(shapes, "lokr_w2", "lokr_t2")
    if any(size != 1 for size in left[2:]) and any(size != 1 for size in right[2:]):
        raise MisfitError("both factors of the LoKr have a convolution kernel, but only one of them may")
    ranks = [shapes[name][0] for name in ("lokr_w1_b", "lokr_w2_b") if name in shapes]
    kernel = left[2:] if any(size != 1 for size in left[2:]) else right[2:]
    return Described((left[0] * right[0], left[1] * right[1], *kernel), rank=min(ranks, default=None))


def _factor(shapes: Shapes, name: str, core: str) -> Shape:
    a, b = f"{name}_a", f"{name}_b"
    if name in shapes:
        return _two_axes(shapes[name])
    if a not in shapes or b not in shapes:
        raise MisfitError(f"the lokr is incomplete, because it lacks {name}")
    rows, columns = _two_axes(shapes[a]), _two_axes(shapes[b])
    if core in shapes:
        _same_rank(_two_axes(shapes[core])[0], rows[0])
        _same_rank(shapes[core][1], columns[0])
        return (rows[1], columns[1], *shapes[core][2:])
    _same_rank(rows[1], columns[0])
    return (rows[0], *columns[1:])


def _oft(shapes: Shapes) -> Described:
    if "oft_r" in shapes:
        if len(shapes["oft_r"]) != 2:
            raise MisfitError(
                f"oft_R must have one row for each block, but has the shape {shape_text(shapes['oft_r'])}"
            )
        return Described(sides=(input_width(shapes) or 0,), rank=_block_size(shapes["oft_r"][1]))
    name = "oft_blocks" if "oft_blocks" in shapes else "oft_diag"
    blocks = shapes[name]
    if blocks[-1:] != blocks[-2:-1] or len(blocks) not in ((3, 4) if name == "oft_blocks" else (3,)):
        raise MisfitError(f"{name} must consist of square blocks, but has the shape {shape_text(blocks)}")
    stages, count, size, _ = (1, *blocks)[-4:]
    if len(blocks) == 4 and (size % 2 or count % 2 ** (stages - 1)):
        raise MisfitError(f"{count} blocks of size {size} cannot be used in {stages} butterfly stages")
    return Described(sides=(count * size,), rank=size)


def _boft(shapes: Shapes) -> Described:
    blocks = shapes["boft_r"]
    if len(blocks) != 4 or blocks[2] != blocks[3]:
        raise MisfitError(f"boft_R must consist of square blocks, but has the shape {shape_text(blocks)}")
    return Described(sides=(blocks[1] * blocks[2],), rank=blocks[2])


def _glora(shapes: Shapes) -> Described:
    b1, b2 = _two_axes(shapes["b1"]), _two_axes(shapes["b2"])
    for name in ("a1", "a2"):
        _two_axes(shapes[name])
    up, down = (b1, b2) if b1[0] >= b1[1] else (b2, b1)
    kernel = shapes["bm"][2:] if "bm" in shapes else down[2:]
    return Described((up[0], down[1], *kernel), rank=down[0])


def _full(shapes: Shapes) -> Described:
    whole = shapes.get("diff") or shapes.get("set_weight")
    return Described(whole) if whole else Described(sides=shapes.get("diff_b", ()))


def _ia3(shapes: Shapes) -> Described:
    factor = shapes["ia3_l"] if "ia3_l" in shapes else shapes["factor"]
    if not factor or prod(factor) != max(factor):
        raise MisfitError(f"the IA3 factors must be a vector, but have the shape {shape_text(factor) or 'scalar'}")
    return Described(sides=(max(factor),))


_DESCRIBERS: dict[Adapter, Callable[[Shapes], Described]] = {
    Adapter.LORA: _lora, Adapter.LOHA: _loha, Adapter.LOKR: _lokr, Adapter.OFT: _oft, Adapter.GLORA: _glora,
    Adapter.FULL: _full, Adapter.IA3: _ia3, Adapter.BOFT: _boft,
}  # fmt: skip


# --- functions that check whether the tensors of each kind can be applied to a weight


def _fit_shape(_shapes: Shapes, found: Described, weight: Shape) -> None:
    wanted, actual = matrix(found.shape), matrix(weight)
    if wanted != actual:
        raise MisfitError(f"made for the shape {shape_text(wanted)}, but the weight has {shape_text(actual)}")


def _fit_lokr(shapes: Shapes, found: Described, weight: Shape) -> None:
    _fit_shape(shapes, found, weight)
    kernel = prod(weight[2:])
    right = _factor(shapes, "lokr_w2", "lokr_t2")
    if kernel != 1 and prod(found.shape[2:]) not in (1, kernel):
        shown = shape_text(found.shape[2:])
        raise MisfitError(f"the adapter's kernel is {shown}, but the layer's kernel is {shape_text(weight[2:])}")
    if prod(found.shape[2:]) == 1 and matrix(right)[1] % kernel:
        columns = matrix(right)[1]
        raise MisfitError(f"the LoKr's {columns} columns cannot be divided into kernels of {shape_text(weight[2:])}")


def _fit_rotation(shapes: Shapes, found: Described, weight: Shape) -> None:
    if found.sides != weight[:1]:
        raise MisfitError(f"the adapter's blocks are for {found.sides[0]} outputs, but the weight has {weight[0]}")
    if "rescale" in shapes and prod(shapes["rescale"]) != weight[0]:
        raise MisfitError(f"rescale has the shape {shape_text(shapes['rescale'])}, but the weight has {weight[0]} rows")


def _fit_glora(shapes: Shapes, _found: Described, weight: Shape) -> None:
    narrow, widen, out, inner = (_two_axes(shapes[name]) for name in glora_parts(shapes, weight))
    _same_rank(matrix(narrow)[1], widen[0])
    if (narrow[0], matrix(widen)[1]) != (weight[1], weight[1]):
        shown = f"{shape_text(narrow)} and {shape_text(widen)}"
        raise MisfitError(f"the input factors have the shapes {shown}, but the weight has {weight[1]} inputs")
    columns = matrix(inner)[1]
    if "bm" in shapes:
        _same_rank(_two_axes(shapes["bm"])[0], matrix(out)[1])
        _same_rank(shapes["bm"][1], inner[0])
        columns *= prod(shapes["bm"][2:])
    else:
        _same_rank(matrix(out)[1], inner[0])
    _fit_shape(shapes, Described((out[0], columns)), weight)


def _fit_factors(shapes: Shapes, weight: Shape, on_input: bool | None) -> None:
    if "ia3_l" in shapes:
        on_input = factors_on_input(shapes)
        if on_input is None:
            shown = shape_text(shapes["ia3_l"])
            raise MisfitError(f"the shape of the IA3 factors, {shown}, does not show if they scale inputs or outputs")
    count = prod(shapes["ia3_l"] if "ia3_l" in shapes else shapes["factor"])
    sides = weight[:2] if on_input is None else weight[1:2] if on_input else weight[:1]
    if count not in sides:
        inputs, outputs = f"{weight[1]} inputs", f"{weight[0]} outputs"
        expected = f"{inputs} and {outputs}" if on_input is None else inputs if on_input else outputs
        raise MisfitError(f"the adapter has {count} factors, but the layer has {expected}")


_FITTERS: dict[Adapter, Callable[[Shapes, Described, Shape], None]] = {
    Adapter.LOKR: _fit_lokr, Adapter.OFT: _fit_rotation, Adapter.BOFT: _fit_rotation, Adapter.GLORA: _fit_glora,
    Adapter.IA3: lambda _shapes, _found, _weight: None,
}  # fmt: skip
