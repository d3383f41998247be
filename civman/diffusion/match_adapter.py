"""Matches an adapter file against a loaded model, and reports which of the file's modules fit and which match nothing.

As in `civman check` and in plans, `civman.domain.adapters.module_fit` compares names and shapes. From its results, this
module derives how the merge changes each parameter. A mismatch is detected before any weight is changed.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from civman.diffusion.component_layouts import Source
from civman.diffusion.tensor_files import TensorFile
from civman.domain.adapters.adapter_kinds import factors_on_input, label
from civman.domain.adapters.adapter_tensors import Delta, StatedAlphas, read_deltas
from civman.domain.adapters.block_weights import block_name, block_order, factor
from civman.domain.adapters.module_fit import Outcome, match
from civman.domain.adapters.module_names import ModuleIndex, Piece, Weight
from civman.domain.adapters.split_modules import Origin, common_prefix, transformer_weights
from civman.domain.architecture import Adapter as Kind
from civman.errors import Cause, Incompatible, InvalidModelFile

UNET = "unet"
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
_PARTS = {"unet": "unet", "text_encoder": "te1", "text_encoder_2": "te2", "text_encoder_4": "te4"}
_COMPONENTS = {part: component for component, part in _PARTS.items()}
TRANSFORMER = "transformer"
_TEXT = "text_encoder"
_SECOND_TABLE = "block.1.layer.0.SelfAttention.relative_attention_bias"
_ON_BIAS = frozenset({"diff_b", "up_bias"})
_SHOWN = 5
"""The maximum number of unmatched modules in an error message; the error's `facts` contain all of them."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter file, and the scales at which it is applied to the UNet and to the text encoders."""

    path: Path
    sha256: str
    unet_scale: float = 1.0
    te_scale: float = 1.0
    name: str = ""
    blocks: str = ""
    """The block weights as a string; empty if all blocks have the same weight."""

    @property
    def label(self) -> str:
        """The adapter's name for messages; the file's name if it has none."""
        return self.name or self.path.name

    def scale(self, place: tuple[str, str]) -> float:
        """Return the adapter's scale for a parameter, given as (component, parameter)."""
        component, parameter = place
        return (self.te_scale if component.startswith(_TEXT) else self.unet_scale) * factor(
            self.blocks, component, parameter
        )


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A module of the adapter file that had no effect, and the reason."""

    module: str
    reason: str


@dataclass(frozen=True, slots=True)
class Coverage:
    """Reports what one adapter did to the model.

    `matched`: the model's modules that the adapter changes; `unmatched`: the adapter's modules that match nothing in
    the model; `idle`: the adapter's modules that match but have no effect because of their values (such as alpha 0).
    `kinds`: the kinds of adapter in the file; `norms`: the Frobenius norm of scale · Δ by component, before rounding;
    `parameters`: the changed parameters as (component, parameter).
    """

    name: str
    sha256: str
    kinds: tuple[str, ...]
    matched: tuple[str, ...]
    unmatched: tuple[Unmatched, ...]
    norms: Mapping[str, float]
    parameters: tuple[tuple[str, str], ...]
    idle: tuple[Unmatched, ...] = ()
    blocks: Mapping[str, float] = field(default_factory=dict)
    """The Frobenius norm of scale · Δ for each block, before rounding."""


@dataclass(frozen=True, slots=True)
class Act:
    """How an adapter's module changes one parameter: the module's kind, and its tensors by their role in the formula.

    `alpha`: the alpha in the file's metadata, if the file has no alpha tensor, else None; `rank`: the number by which
    alpha is divided if the parameter is a bias.
    """

    kind: Kind
    parts: Mapping[str, str]
    alpha: float | None
    rank: int | None
    is_bias: bool = False
    rows: tuple[tuple[int, int], ...] = ()
    """The rows of the adapter's change that apply to this parameter, as (first, count); empty: all rows."""
    joint: tuple[tuple[str, tuple[tuple[int, int], ...]], ...] = ()
    """The parameters that the adapter's file fuses into one layer (such as q, k and v), each with its row ranges there.

    Empty if the adapter's layer is a single parameter.
    """


@dataclass(slots=True)
class Plan:
    """The plan of how to merge an adapter into a model, and the measurements made while merging it."""

    adapter: Adapter
    file: TensorFile
    acts: dict[tuple[str, str], Act] = field(default_factory=dict)
    matched: list[str] = field(default_factory=list)
    unmatched: list[Unmatched] = field(default_factory=list)
    idle: list[Unmatched] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    squares: dict[tuple[str, str], float] = field(default_factory=dict)
    """The sum of squares of the changes for each (component, block)."""
    changes_bits: bool = False

    @property
    def is_asked_for_nothing(self) -> bool:
        """Whether the adapter's scale is 0 for every parameter that the adapter could change."""
        return bool(self.acts) and all(self.adapter.scale(place) == 0 for place in self.acts)

    def add(self, place: tuple[str, str], square: float) -> None:
        """Add the sum of squares of a parameter's change to the total of its block."""
        key = (place[0], block_name(*place))
        self.squares[key] = self.squares.get(key, 0.0) + square

    def coverage(self) -> Coverage:
        """Build the report of what the adapter did to the model."""
        components: defaultdict[str, float] = defaultdict(float)
        blocks: defaultdict[str, float] = defaultdict(float)
        for (component, block), square in self.squares.items():
            components[component] += square
            blocks[block] += square
        return Coverage(
            name=self.adapter.label,
            sha256=self.adapter.sha256,
            kinds=tuple(sorted(self.kinds)),
            matched=tuple(self.matched),
            unmatched=tuple(self.unmatched),
            norms={component: math.sqrt(square) for component, square in sorted(components.items())},
            blocks={block: math.sqrt(blocks[block]) for block in sorted(blocks, key=block_order)},
            parameters=tuple(place for place in self.acts if self.adapter.scale(place) != 0),
            idle=tuple(self.idle),
        )

    def note(self, delta: Delta, weight: Weight, alpha: float | None) -> None:
        """Record how a module of the adapter changes `weight`, the weight of the model that the module matches."""
        component = weight.component or _COMPONENTS[weight.part]
        on_bias = _ON_BIAS | {"ia3_l"} if _scales_bias(delta, weight) else _ON_BIAS
        for piece in weight.pieces or (Piece(weight.name, ()),):
            if not delta.parts.keys() <= _ON_BIAS | {"alpha"}:
                parts = {part: name for part, name in delta.parts.items() if part not in _ON_BIAS}
                joint = tuple((f"{each.name}.weight", each.rows) for each in weight.pieces)
                self.acts[component, f"{piece.name}.weight"] = Act(
                    delta.kind, parts, alpha, delta.rank, rows=piece.rows, joint=joint
                )
            if not on_bias.isdisjoint(delta.parts):
                parts = {part: name for part, name in delta.parts.items() if part in on_bias | {"alpha"}}
                joint = tuple((f"{each.name}.bias", each.rows) for each in weight.pieces)
                self.acts[component, f"{piece.name}.bias"] = Act(
                    delta.kind, parts, alpha, delta.rank, is_bias=True, rows=piece.rows, joint=joint
                )
        self.matched.append(f"{component}.{weight.name}")
        self.kinds.add(label(delta.kind, delta.parts))


def _scales_bias(delta: Delta, weight: Weight) -> bool:
    """Whether the module is PEFT's IA3 on a layer's outputs, which also scales the layer's bias."""
    return weight.bias is not None and factors_on_input(delta.shapes) is False


def weights_of(
    components: Mapping[str, nn.Module],
    unused: Iterable[tuple[str, str]] = (),
    sources: Mapping[str, Mapping[str, Source]] = {},
) -> ModuleIndex:
    """Index the weights of a model's components by all the names that adapter files use for them.

    Args:
        components: the model's components; those that adapters never change are ignored.
        unused: layers that are in the checkpoint's file but that the model does not use, as (part, path prefix).
        sources: for each component, the tensor in the file that each parameter is read from; only needed for models
            with a transformer.
    """
    if TRANSFORMER in components:
        return _transformer_index(components, unused, sources)
    return ModuleIndex(
        {
            _PARTS[name]: {parameter: tuple(value.shape) for parameter, value in module.named_parameters()}
            for name, module in components.items()
        },
        unused,
    )


def _transformer_index(
    components: Mapping[str, nn.Module],
    unused: Iterable[tuple[str, str]],
    sources: Mapping[str, Mapping[str, Source]],
) -> ModuleIndex:
    """Index the weights of a transformer, of other networks stored with it, and of the model's text encoders.

    A text encoder is indexed under the name that it has in adapter files, see `_text_part`.
    """
    texts: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {}
    weights: dict[str, Weight] = {}
    prefix = common_prefix(source.name for source in sources.get(TRANSFORMER, {}).values())
    for name, module in components.items():
        shapes = {parameter: tuple(value.shape) for parameter, value in module.named_parameters()}
        if name.startswith(_TEXT):
            texts[_text_part(name, shapes)] = (name, shapes)
        elif name != "vae":
            origins = {
                parameter: Origin(source.name, source.rows, source.swaps_halves)
                for parameter, source in sources.get(name, {}).items()
            }
            weights |= transformer_weights(name, shapes, origins, prefix)
    index = ModuleIndex.of_transformer(weights, {part: shapes for part, (_, shapes) in texts.items()}, unused)
    index.name_components({part: name for part, (name, _) in texts.items()})
    return index


def _text_part(component: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return the name by which adapter files refer to a text encoder, such as "te1"; T5 is always "te3", as in SD 3.

    Pile-T5, recognised by a table of distances in its second block, is not "te3": it is always a model's only text
    encoder.
    """
    if any(".SelfAttention." in name for name in shapes) and not any(_SECOND_TABLE in name for name in shapes):
        return "te3"
    return _PARTS.get(component, "te1")


def match_file(adapter: Adapter, file: TensorFile, index: ModuleIndex) -> Plan:
    """Determine how an adapter changes the model with the weights in `index`, and which of its modules have no effect.

    Raises: InvalidModelFile: the file's metadata cannot be read.
    """
    plan = Plan(adapter, file)
    names = sorted(file.keys())
    slices = {name: file.get_slice(name) for name in names}
    deltas = read_deltas(
        {name: tuple(each.get_shape()) for name, each in slices.items()},
        {name: each.get_dtype() for name, each in slices.items()},
    )
    numbers = {
        name: float(file.get_tensor(name).reshape(-1)[0])
        for delta in deltas.modules for part, name in delta.parts.items()
        if part in ("alpha", "on_input") and math.prod(delta.shapes[part]) == 1
    }  # fmt: skip
    try:
        alphas = StatedAlphas(file.metadata() or {})
    except ValueError as error:
        name = adapter.path.name
        raise InvalidModelFile(f"the adapter metadata of `{name}` is not JSON", name=name) from error
    for found in match(deltas, index, numbers):
        if found.outcome is Outcome.APPLIES and found.delta is not None and found.weight is not None:
            plan.note(found.delta, found.weight, alphas.of(found.delta))
        else:
            kept = plan.idle if found.outcome is Outcome.IDLE else plan.unmatched
            kept.append(Unmatched(found.module, found.reason))
    return plan


def require_coverage(plan: Plan, *, allow_partial: bool) -> None:
    """Check that an adapter matches the model: all its modules or, with `allow_partial`, at least one.

    Raises: Incompatible: nothing matches, or only a part and `allow_partial` is not set.
    """
    name = plan.adapter.label
    reasons = [f"{miss.module}: {miss.reason}" for miss in plan.unmatched]
    if not plan.matched and not plan.idle:
        raise Incompatible(
            f"adapter `{name}` fits no part of this model" + (f": {reasons[0]}" if reasons else ": it is empty"),
            code=Cause.ADAPTER_NO_MATCH,
            hint="the adapter was made for another kind of model; `civman check` shows what it fits",
            adapter=name,
            unmatched=reasons,
        )
    if reasons and not allow_partial:
        rest = f" and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
        raise Incompatible(
            f"adapter `{name}` only partly fits: {len(plan.matched)} modules match, {len(reasons)} do not "
            f"({'; '.join(reasons[:_SHOWN])}{rest})",
            code=Cause.ADAPTER_PARTIAL,
            hint="use --allow-partial to apply only the modules that fit",
            adapter=name,
            matched=len(plan.matched),
            unmatched=reasons,
        )
