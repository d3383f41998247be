"""What an adapter file changes: its tensors grouped by the module they belong to.

Owns: `Deltas`, all changes of a file, read from tensor names and shapes by the tables in
`civman.domain.adapters.spellings` and `civman.domain.adapters.adapter_kinds`. Refuses to do: finding the weights
(`civman.domain.adapters.module_fit`), arithmetic on weights.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from civman.domain.adapters import adapter_kinds
from civman.domain.adapters.adapter_kinds import Described, MisfitError
from civman.domain.adapters.spellings import BUNDLED, MARKS, locate, split_name
from civman.domain.architecture import Adapter
from civman.domain.files.header import Header

Shape = tuple[int, ...]

_PACKED = ("b", "<")


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
    problem: str = ""
    """Why the module's tensors make no change of any weight: one is missing, or they contradict each other."""
    parts: Mapping[str, str] = {}
    """Part of the change → name of its tensor in the file."""
    shapes: Mapping[str, Shape] = {}
    """Part of the change → shape of its tensor."""

    @property
    def is_whole(self) -> bool:
        """False where a needed tensor is missing or the tensors contradict each other."""
        return not self.problem

    @property
    def width_in(self) -> int | None:
        """Width of the module's input; None where it does not show."""
        return self.shape[1] if len(self.shape) > 1 else None

    @property
    def is_conv(self) -> bool:
        """Whether it changes a convolution wider than one pixel."""
        return len(self.shape) > 2 and any(size != 1 for size in self.shape[2:])

    def misfit(self, weight: Shape, bias: Shape | None, *, on_input: bool | None = None) -> str | None:
        """Why it cannot change a weight of this shape; None: it can. See `adapter_kinds.misfit`."""
        if self.problem:
            return self.problem
        found = Described(self.shape, self.sides, self.rank)
        return adapter_kinds.misfit(self.kind, self.shapes, found, weight, bias, on_input=on_input)


@dataclass(frozen=True, slots=True)
class Deltas:
    """All changes in a file, and the names that belong to none."""

    modules: tuple[Delta, ...] = ()
    loose: tuple[str, ...] = ()
    """Tensors, or modules, of no kind of adapter that is known."""
    bundled: tuple[str, ...] = ()
    """Names of embeddings packed along."""
    twice: Mapping[str, str] = field(default_factory=dict)
    """Tensors that say the same as another one of the file → that other one. All of them are in `loose`."""


def read_deltas(shapes: Mapping[str, Shape]) -> Deltas:
    """The changes that the tensors make; `Deltas()` with everything loose where it is no adapter."""
    names = "\n".join(shapes) + "\n"
    if not any(mark in names for mark in MARKS):  # a checkpoint: 2,515 names need not be taken apart
        return Deltas(loose=tuple(shapes))
    groups: dict[str, dict[str, str]] = {}
    loose: list[str] = []
    bundled: dict[str, None] = {}
    twice: dict[str, str] = {}
    for name, shape in shapes.items():
        if name[:1] in _PACKED and (packed := bundled_name(name, shape)):
            bundled[packed] = None
            continue
        module, part = split_name(name)
        if not part:
            loose.append(name)
        elif (other := groups.setdefault(module, {}).setdefault(part, name)) is not name:
            loose.append(name)
            twice[name] = other
    deltas: list[Delta] = []
    for module, parts in groups.items():
        kind = adapter_kinds.kind_of(frozenset(parts))
        if kind is None:
            loose.append(module)
        else:
            deltas.append(_delta(module, kind, parts, {part: shapes[name] for part, name in parts.items()}))
    return Deltas(tuple(deltas), tuple(loose), tuple(sorted(bundled)), twice)


def deltas_of(header: Header) -> Deltas:
    """As `read_deltas`, worked out once for a header: identification and the check of modules both ask."""
    found: Deltas = header.notes.get("deltas") or read_deltas(header.shapes)
    header.notes["deltas"] = found
    return found


def bundled_name(name: str, shape: Shape) -> str:
    """What prompts call the embedding that this tensor of an adapter's file is a part of; "" where it is none."""
    if name.startswith(BUNDLED):
        return name[len(BUNDLED) :].partition(".")[0]
    # cloneofsimo's first layout has vectors under their token's own name
    return name if name.startswith("<") and name.endswith(">") and 1 <= len(shape) <= 2 else ""


def _delta(module: str, kind: Adapter, parts: Mapping[str, str], shapes: Mapping[str, Shape]) -> Delta:
    try:
        shape, sides, rank = adapter_kinds.describe(kind, shapes)
        problem = ""
        if len(shape) > 1 and (scale := shapes.get("dora_scale")):
            sizes = (shape[0], shape[1], math.prod(shape[1:]))
            problem = "" if max(scale) in sizes else f"dora_scale of shape {adapter_kinds.times(scale)}"
    except MisfitError as reason:
        (shape, sides, rank), problem = Described(), str(reason)
    if kind is Adapter.OFT and len(shapes.get("oft_blocks", ())) == 4:
        kind = Adapter.BOFT
    if kind is Adapter.LORA and ("dora_scale" in shapes or "magnitude" in shapes):
        kind = Adapter.DORA
    return Delta(module, *locate(module), kind, shape, sides, rank, problem, parts, shapes)


class StatedAlphas:
    """Alphas that a file says in its metadata instead of in tensors, as diffusers does since 0.35."""

    _KEY = "lora_adapter_metadata"
    _COMPONENTS: ClassVar[Mapping[str, str]] = {
        "unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2", "te3": "text_encoder_3",
    }  # fmt: skip

    def __init__(self, metadata: Mapping[str, str]) -> None:
        """`metadata`: the file's. Raises: ValueError: its entry is not JSON."""
        said = json.loads(metadata.get(self._KEY) or "{}")
        self._said = said if isinstance(said, dict) else {}

    def of(self, delta: Delta) -> float | None:
        """Alpha for one module such that alpha / rank is its scale; None where the file says none, or has a tensor."""
        if not self._said or "down" not in delta.parts or "alpha" in delta.parts or not delta.rank:
            return None
        component = self._COMPONENTS[delta.part]
        alpha = self._said.get(f"{component}.lora_alpha")
        pattern = self._said.get(f"{component}.alpha_pattern")
        for key, value in pattern.items() if isinstance(pattern, dict) else ():
            if f"_{delta.path}".endswith(f"_{str(key).replace('.', '_').removeprefix('text_model_')}"):
                alpha = value
                break
        if not isinstance(alpha, (int, float)):
            return None
        # rank-stabilised LoRA divides by √rank
        return alpha * math.sqrt(delta.rank) if self._said.get(f"{component}.use_rslora") else float(alpha)
