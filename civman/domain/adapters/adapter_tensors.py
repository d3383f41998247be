"""What an adapter file changes: its tensors grouped by the module they belong to.

Owns: the endings that trainers write behind a module's name, and the shape of the weight that a group of tensors
would change. Refuses to do: finding that weight (`civman.domain.adapters.module_names`), arithmetic on weights.

Source: key names and shapes as kohya's scripts, LyCORIS, PEFT and diffusers write them; formulas of the kinds as in
the LyCORIS paper (Yeh et al. 2023, section 4).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from civman.domain.adapters.module_names import locate
from civman.domain.architecture import Adapter
from civman.domain.files.header import Header

Shape = tuple[int, ...]

_ENDINGS: dict[str, tuple[Adapter | None, str]] = {
    "alpha": (None, "alpha"), "dora_scale": (None, "dora"), "lora_magnitude_vector": (None, "dora"),
    "lora_magnitude_vector.weight": (None, "dora"), "bias": (None, "bias"), "weight": (None, "weight"),
    "lora_down.weight": (Adapter.LORA, "down"), "lora_up.weight": (Adapter.LORA, "up"),
    "lora_down": (Adapter.LORA, "down"), "lora_up": (Adapter.LORA, "up"),
    "lora_mid.weight": (Adapter.LORA, "mid"), "lora_up.bias": (Adapter.LORA, "bias"),
    "lora_A.weight": (Adapter.LORA, "down"), "lora_B.weight": (Adapter.LORA, "up"),
    "lora_A": (Adapter.LORA, "down"), "lora_B": (Adapter.LORA, "up"), "lora_B.bias": (Adapter.LORA, "bias"),
    "lora_A.default.weight": (Adapter.LORA, "down"), "lora_B.default.weight": (Adapter.LORA, "up"),
    "lora.down.weight": (Adapter.LORA, "down"), "lora.up.weight": (Adapter.LORA, "up"),
    "lora_linear_layer.down.weight": (Adapter.LORA, "down"), "lora_linear_layer.up.weight": (Adapter.LORA, "up"),
    "down.weight": (Adapter.LORA, "down"), "up.weight": (Adapter.LORA, "up"),
    "hada_w1_a": (Adapter.LOHA, "w1a"), "hada_w1_b": (Adapter.LOHA, "w1b"), "hada_w2_a": (Adapter.LOHA, "w2a"),
    "hada_w2_b": (Adapter.LOHA, "w2b"), "hada_t1": (Adapter.LOHA, "t1"), "hada_t2": (Adapter.LOHA, "t2"),
    "lokr_w1": (Adapter.LOKR, "w1"), "lokr_w1_a": (Adapter.LOKR, "w1a"), "lokr_w1_b": (Adapter.LOKR, "w1b"),
    "lokr_w2": (Adapter.LOKR, "w2"), "lokr_w2_a": (Adapter.LOKR, "w2a"), "lokr_w2_b": (Adapter.LOKR, "w2b"),
    "lokr_t2": (Adapter.LOKR, "t2"), "lokr_t1": (Adapter.LOKR, "t1"),
    "oft_blocks": (Adapter.OFT, "blocks"), "oft_diag": (Adapter.OFT, "blocks"), "rescale": (None, "rescale"),
    "a1.weight": (Adapter.GLORA, "a1"), "a2.weight": (Adapter.GLORA, "a2"), "b1.weight": (Adapter.GLORA, "b1"),
    "b2.weight": (Adapter.GLORA, "b2"), "bm.weight": (Adapter.GLORA, "bm"),
    "diff": (Adapter.FULL, "diff"), "diff_b": (Adapter.FULL, "diff_b"), "set_weight": (Adapter.FULL, "diff"),
    "w_norm": (Adapter.FULL, "diff"), "b_norm": (Adapter.FULL, "diff_b"),
    "on_input": (Adapter.IA3, "on_input"),
}  # fmt: skip
"""Ending → whose it is (None: goes with any) and its part."""

_XLABS = {
    "qkv_lora1": "img_attn.qkv", "qkv_lora2": "txt_attn.qkv", "proj_lora1": "img_attn.proj",
    "proj_lora2": "txt_attn.proj", "qkv_lora": "linear1", "proj_lora": "linear2",
}  # fmt: skip
_BARE_SIDES = ("down.weight", "up.weight")
_MARKS = (
    "lora", "hada_w", "lokr_w", "oft_", ".diff\n", ".diff_b\n", ".set_weight", ".a1.weight", ".on_input", "_norm\n",
    "magnitude_vector",
)  # fmt: skip
_BUNDLED = "bundle_emb."


class Delta(NamedTuple):
    """The change of one module's weight; a tuple, since a LoRA has a thousand and a frozen dataclass costs thrice that.

    `shape` is the weight's (out, in, *kernel) as far as the change shows it: (out, in·kernel) where a convolution was
    written flat, (out,) for a norm, empty where only one side shows; then `sides` holds the widths that the weight
    may have on either side.
    """

    module: str
    part: str
    """"unet", "te1", "te2" or "te3"."""
    path: str
    """The module's path in that part, written with underscores."""
    kind: Adapter
    shape: Shape = ()
    sides: tuple[int, ...] = ()
    rank: int | None = None
    is_whole: bool = True
    """False where a needed tensor is missing or the parts contradict each other."""

    @property
    def width_in(self) -> int | None:
        """Width of the module's input; None where it does not show."""
        return self.shape[1] if len(self.shape) > 1 else None

    @property
    def is_conv(self) -> bool:
        """Whether it changes a convolution wider than one pixel."""
        return len(self.shape) > 2 and any(size != 1 for size in self.shape[2:])


@dataclass(frozen=True, slots=True)
class Deltas:
    """All changes in a file, and the names that belong to none."""

    modules: tuple[Delta, ...] = ()
    loose: tuple[str, ...] = ()
    bundled: tuple[str, ...] = ()
    """Names of embeddings packed along."""


def split_name(name: str) -> tuple[str, str]:
    """A tensor's module and ending; ending "" where no trainer writes such a name.

    >>> split_name("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight")
    ('lora_unet_mid_block_attentions_0_proj_in', 'lora_down.weight')
    """
    module, _, ending = name.partition(".")
    if ending in _ENDINGS and ending not in _BARE_SIDES:
        return module, ending  # kohya's names have no other dot; no ending is longer than what follows the first
    last = name.rfind(".")
    middle = name.rfind(".", 0, max(last, 0))
    for dot in (name.rfind(".", 0, max(middle, 0)), middle, last):
        if dot >= 0 and (ending := name[dot + 1 :]) in _ENDINGS:
            module = name[:dot]
            if ending not in _BARE_SIDES or module.rpartition(".")[2] in _XLABS:
                return module, ending
            if not module.endswith("_lora"):
                return name, ""
            # diffusers' first attention processors: "attn1.processor.to_out_lora.down.weight"
            stem = module.removesuffix("_lora").replace(".processor.", ".")
            return f"{stem}.0" if stem.endswith(".to_out") else stem, ending
    return name, ""


def read_deltas(shapes: Mapping[str, Shape]) -> Deltas:
    """The changes that the tensors make; `Deltas()` with everything loose where it is no adapter."""
    names = "\n".join(shapes) + "\n"
    if not any(mark in names for mark in _MARKS):  # a checkpoint: 2,515 names need not be taken apart
        return Deltas(loose=tuple(shapes))
    groups: dict[str, dict[str, Shape]] = {}
    kinds: dict[str, Adapter] = {}
    loose: list[str] = []
    bundled: set[str] = set()
    for name, shape in shapes.items():
        if name.startswith(_BUNDLED):
            bundled.add(name[len(_BUNDLED) :].split(".")[0])
            continue
        module, ending = split_name(name)
        if not ending:
            loose.append(name)
            continue
        kind, part = _ENDINGS[ending]
        if ending in _BARE_SIDES:
            module = _xlabs_module(module)
        groups.setdefault(module, {})[part] = shape
        if kind is not None and (kind is not Adapter.FULL or module not in kinds):
            kinds[module] = kind  # a changed bias may come along with any kind
    deltas = tuple(_delta(module, kinds[module], parts) for module, parts in groups.items() if module in kinds)
    loose.extend(module for module in groups if module not in kinds)
    return Deltas(modules=deltas, loose=tuple(loose), bundled=tuple(sorted(bundled)))


def deltas_of(header: Header) -> Deltas:
    """As `read_deltas`, worked out once for a header: identification and the check of modules both ask."""
    found: Deltas = header.notes.get("deltas") or read_deltas(header.shapes)
    header.notes["deltas"] = found
    return found


def _xlabs_module(module: str) -> str:
    stem, dot, tail = module.rpartition(".processor.")
    return f"{stem}.{_XLABS[tail]}" if dot and tail in _XLABS else module


def _delta(module: str, kind: Adapter, parts: Mapping[str, Shape]) -> Delta:
    shape, sides, rank, whole = _READERS[kind](parts)
    if kind is Adapter.OFT and len(parts.get("blocks", ())) == 4:
        kind = Adapter.BOFT
    if "dora" in parts and kind is Adapter.LORA:
        kind = Adapter.DORA
    if (scale := parts.get("dora")) and len(shape) > 1:
        whole = whole and max(scale) in (shape[0], shape[1], math.prod(shape[1:]))
    return Delta(module, *locate(module), kind, shape, sides, rank, whole)


_Read = tuple[Shape, tuple[int, ...], int | None, bool]
_BROKEN: _Read = ((), (), None, False)


def _lora(parts: Mapping[str, Shape]) -> _Read:
    down, up, mid = parts.get("down"), parts.get("up"), parts.get("mid")
    if not down or not up or len(down) < 2 or len(up) < 2:
        return _BROKEN
    rank = down[0]
    kernel = mid[2:] if mid else down[2:]
    fits = up[1] == rank and (not mid or mid[:2] == (rank, rank))
    return (up[0], down[1], *kernel), (), rank, fits


def _loha(parts: Mapping[str, Shape]) -> _Read:
    first, second = (parts.get("w1a"), parts.get("w1b")), (parts.get("w2a"), parts.get("w2b"))
    (a, b), (c, d) = first, second
    if not a or not b or not c or not d or min(map(len, (a, b, c, d))) < 2:
        return _BROKEN
    if core := parts.get("t1"):
        return (a[1], b[1], *core[2:]), (), b[0], a[0] == b[0] == core[0]
    return (a[0], *b[1:]), (), b[0], a[1] == b[0] and c[1] == d[0] and (a[0], b[1]) == (c[0], d[1])


def _lokr(parts: Mapping[str, Shape]) -> _Read:
    left, right = _factor(parts, "w1"), _factor(parts, "w2")
    if left is None or right is None:
        return _BROKEN
    ranks = [parts[name][0] for name in ("w1b", "w2b") if parts.get(name)]
    shape = (left[0] * right[0], left[1] * right[1], *right[2:])
    return shape, (), min(ranks) if ranks else None, True


def _factor(parts: Mapping[str, Shape], name: str) -> Shape | None:
    whole = parts.get(name)
    if whole:
        return whole if len(whole) > 1 else None
    a, b = parts.get(f"{name}a"), parts.get(f"{name}b")
    if not a or not b or len(a) < 2 or len(b) < 2:
        return None
    if core := parts.get("t2" if name == "w2" else "t1"):
        return (a[1], b[1], *core[2:])
    return (a[0], *b[1:]) if a[1] == b[0] else None


def _oft(parts: Mapping[str, Shape]) -> _Read:
    blocks = parts.get("blocks", ())
    if len(blocks) not in (3, 4):
        return _BROKEN
    return (), (blocks[-3] * blocks[-2],), blocks[-1], blocks[-1] == blocks[-2]


def _glora(parts: Mapping[str, Shape]) -> _Read:
    """W·a1·a2 + b1·b2; older files swap the numbers, so the tall one of a pair goes left."""
    b1, b2 = parts.get("b1"), parts.get("b2")
    if not b1 or not b2 or len(b1) < 2 or len(b2) < 2 or "a1" not in parts or "a2" not in parts:
        return _BROKEN
    up, down = (b1, b2) if b1[0] >= b1[1] else (b2, b1)
    return (up[0], *down[1:]), (), down[0], up[1] == down[0]


def _full(parts: Mapping[str, Shape]) -> _Read:
    if "diff" in parts:
        return parts["diff"], (), None, True
    return (), parts.get("diff_b", ()), None, "diff_b" in parts


def _ia3(parts: Mapping[str, Shape]) -> _Read:
    weight = parts.get("weight", ())
    return (), tuple(size for size in weight if size != 1)[:1] or weight[:1], None, bool(weight)


_READERS = {
    Adapter.LORA: _lora, Adapter.LOHA: _loha, Adapter.LOKR: _lokr, Adapter.OFT: _oft, Adapter.GLORA: _glora,
    Adapter.FULL: _full, Adapter.IA3: _ia3,
}  # fmt: skip
