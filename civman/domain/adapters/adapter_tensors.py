"""The changes in an adapter file: its tensors grouped by the module they belong to.

`Deltas` contains all changes of a file, read from tensor names and shapes with the tables in
`civman.domain.adapters.spellings` and `civman.domain.adapters.adapter_kinds`. `civman.domain.adapters.module_fit` looks
up the model's weights, and `civman.diffusion` does the arithmetic on them.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from civman.domain.adapters import adapter_kinds
from civman.domain.adapters.adapter_kinds import Described, MisfitError
from civman.domain.adapters.spellings import BUNDLED, EXTENDED_MARK, MARKS, WRAPPED, locate, split_name
from civman.domain.architecture import Adapter
from civman.domain.files.header import Header

Shape = tuple[int, ...]

_PACKED = ("b", "<")


class Delta(NamedTuple):
    """The change to one module's weight.

    `shape` is the weight's (out, in, *kernel) as far as the change shows it: (out, in·kernel) if a convolution was
    stored as a matrix, (out,) for a norm, empty if the tensors show only one of the two widths. `sides` then contains
    the possible values of this width.

    This is a NamedTuple, because a LoRA has about a thousand modules and creating frozen dataclasses takes three times
    as long.
    """

    module: str
    part: str
    """The part of the model: "unet", "te1", "te2", "te3" or "te4"."""
    path: str
    """The module's path inside its part of the model, with underscores instead of dots."""
    kind: Adapter
    shape: Shape = ()
    sides: tuple[int, ...] = ()
    rank: int | None = None
    problem: str = ""
    """Why the module's tensors change no weight: a tensor is missing, or they contradict each other.

    Empty if the tensors can be used.
    """
    parts: Mapping[str, str] = {}
    """Maps each part of the change, such as "down", to the name of its tensor in the file."""
    shapes: Mapping[str, Shape] = {}
    """Maps each part of the change, such as "down", to the shape of its tensor."""

    @property
    def is_whole(self) -> bool:
        """Whether all required tensors are present and do not contradict each other."""
        return not self.problem

    @property
    def is_conv(self) -> bool:
        """Whether the changed module is a convolution with a kernel larger than 1x1."""
        return len(self.shape) > 2 and any(size != 1 for size in self.shape[2:])

    def misfit(self, weight: Shape, bias: Shape | None, *, on_input: bool | None = None) -> str | None:
        """Return why this change cannot be applied to a weight of this shape; None if it can.

        The arguments are those of `adapter_kinds.misfit`.
        """
        if self.problem:
            return self.problem
        found = Described(self.shape, self.sides, self.rank)
        return adapter_kinds.misfit(self.kind, self.shapes, found, weight, bias, on_input=on_input)


@dataclass(frozen=True, slots=True)
class Deltas:
    """All changes in an adapter file, and the names of the tensors that belong to no change."""

    modules: tuple[Delta, ...] = ()
    loose: tuple[str, ...] = ()
    """Tensors or modules that belong to no known kind of adapter."""
    bundled: tuple[str, ...] = ()
    """Names of the embeddings bundled in the file."""
    twice: Mapping[str, str] = field(default_factory=dict)
    """Maps the name of each duplicate tensor to the name of the earlier tensor that is used instead.

    A tensor is a duplicate if an earlier tensor contains the same part of the same module. Duplicates are also in
    `loose`.
    """
    of_base: tuple[str, ...] = ()
    """Weights of the base model that PEFT saved with the adapter, because its layers were not unwrapped before saving.

    They are not part of the adapter.
    """


_COMPUTABLE = frozenset(("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"))


def read_deltas(shapes: Mapping[str, Shape], types: Mapping[str, str] | None = None) -> Deltas:
    """Group a file's tensors into changes; if the file is not an adapter, all its names are in `loose`.

    `types`: the tensors' data types as safetensors names them. A module with packed or integer data gets a `problem`.
    """
    names = "\n".join(shapes) + "\n"
    # if none of the MARKS occurs, the file is not an adapter, and its tensor names need not be parsed
    if not any(mark in names for mark in MARKS):
        return Deltas(loose=tuple(shapes))
    groups: dict[str, dict[str, str]] = {}
    loose: list[str] = []
    of_base: list[str] = []
    is_extended = EXTENDED_MARK in names
    unknown = of_base if WRAPPED in names else loose
    bundled: dict[str, None] = {}
    twice: dict[str, str] = {}
    for name, shape in shapes.items():
        if name[:1] in _PACKED and (packed := bundled_name(name, shape)):
            bundled[packed] = None
            continue
        module, part = split_name(name)
        if not part:
            unknown.append(name)
        elif (other := groups.setdefault(module, {}).setdefault(part, name)) is not name:
            loose.append(name)
            twice[name] = other
    deltas: list[Delta] = []
    # cache the results, because all modules of a file have only a few dozen different sets of shapes
    known: dict[tuple[Adapter, tuple[tuple[str, Shape], ...]], _Described] = {}
    odd = {name for name, kind in (types or {}).items() if kind not in _COMPUTABLE and math.prod(shapes[name]) > 1}
    for module, parts in groups.items():
        kind = adapter_kinds.kind_of(frozenset(parts))
        if kind is None:
            unknown.append(module)
        else:
            of_parts = {part: shapes[name] for part, name in parts.items()}
            if odd and (name := next((name for name in parts.values() if name in odd), "")):
                problem = f"civman cannot compute with the data type {(types or {})[name]} of the tensor {name}"
                deltas.append(Delta(module, *locate(module), kind, problem=problem, parts=parts, shapes=of_parts))
                continue
            key = kind, tuple(of_parts.items())
            found = known.get(key)
            if found is None:
                found = known[key] = _described(kind, of_parts)
            where, path = locate(module, is_extended=is_extended)
            deltas.append(Delta(module, where, path, *found, parts, of_parts))
    return Deltas(tuple(deltas), tuple(loose), tuple(sorted(bundled)), twice, tuple(of_base))


def deltas_of(header: Header) -> Deltas:
    """Group the tensors of a header into changes, as `read_deltas` does. The result is computed once per header.

    Identification and the comparison of modules both use it.
    """
    found: Deltas | None = header.notes.get("deltas")
    if found is None:
        # a fast test, which nearly every file passes: all data types are plain number types
        plain = header.elements.keys() <= _COMPUTABLE
        types = None if plain else {name: tensor.dtype for name, tensor in header.tensors.items()}
        found = read_deltas(header.shapes, types)
    header.notes["deltas"] = found
    return found


def bundled_name(name: str, shape: Shape) -> str:
    """Return the prompt word of the bundled embedding that this tensor belongs to; "" for other tensors."""
    if name.startswith(BUNDLED):
        return name[len(BUNDLED) :].partition(".")[0]
    # cloneofsimo's first layout stores an embedding's vectors under the name of their token
    return name if name.startswith("<") and name.endswith(">") and 1 <= len(shape) <= 2 else ""


class _Described(NamedTuple):
    """What the shapes of a module's tensors show. The fields are those of `Delta`, in the same order."""

    kind: Adapter
    shape: Shape
    sides: tuple[int, ...]
    rank: int | None
    problem: str


def _described(kind: Adapter, shapes: Mapping[str, Shape]) -> _Described:
    try:
        shape, sides, rank = adapter_kinds.describe(kind, shapes)
        problem = ""
        if len(shape) > 1 and (scale := shapes.get("dora_scale")):
            sizes = (shape[0], shape[1], math.prod(shape[1:]))
            shown = adapter_kinds.shape_text(scale)
            problem = "" if max(scale) in sizes else f"a dora_scale of shape {shown} does not fit the weight"
    except MisfitError as reason:
        (shape, sides, rank), problem = Described(), str(reason)
    if kind is Adapter.OFT and len(shapes.get("oft_blocks", ())) == 4:
        kind = Adapter.BOFT
    if kind is Adapter.LORA and ("dora_scale" in shapes or "magnitude" in shapes):
        kind = Adapter.DORA
    return _Described(kind, shape, sides, rank, problem)


class StatedAlphas:
    """Alphas that a file contains in its metadata instead of in tensors, as in diffusers since 0.35."""

    _KEY = "lora_adapter_metadata"
    _COMPONENTS: ClassVar[Mapping[str, str]] = {
        "unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2", "te3": "text_encoder_3",
        "te4": "text_encoder_4",
    }  # fmt: skip

    def __init__(self, metadata: Mapping[str, str]) -> None:
        """Read the alphas from a file's `metadata`. Raises: ValueError: the entry is not JSON."""
        said = json.loads(metadata.get(self._KEY) or "{}")
        self._said = said if isinstance(said, dict) else {}

    def of(self, delta: Delta) -> float | None:
        """Return the alpha of one module; alpha divided by the rank is the module's scale.

        Returns None if the metadata contains no alpha for the module, or if the file has a tensor for it.
        """
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
        # rank-stabilised LoRA scales by alpha / √rank; alpha is divided by the rank later
        return alpha * math.sqrt(delta.rank) if self._said.get(f"{component}.use_rslora") else float(alpha)
