"""Matching an adapter file against a loaded model: what it acts on, what of it finds nothing, and the report of both.

Names and shapes are compared by `civman.domain.adapters.module_fit`, as `civman check` and the plan do; here the result
is turned into what the merge does to each parameter. A misfit is known before any weight is touched.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from civman.diffusion.tensor_files import TensorFile
from civman.domain.adapters.adapter_kinds import label
from civman.domain.adapters.adapter_tensors import Delta, StatedAlphas, read_deltas
from civman.domain.adapters.module_fit import Outcome, match
from civman.domain.adapters.module_names import ModuleIndex, Weight
from civman.domain.architecture import Adapter as Kind
from civman.errors import Cause, Incompatible, InvalidModelFile

UNET = "unet"
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
_PARTS = {"unet": "unet", "text_encoder": "te1", "text_encoder_2": "te2"}
_COMPONENTS = {part: component for component, part in _PARTS.items()}
_ON_BIAS = frozenset({"diff_b", "up_bias"})
_SHOWN = 5
"""How many unmatched modules an error names in its text; all of them are in its facts."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter file and how strongly it acts on the UNet and on the text encoders."""

    path: Path
    sha256: str
    unet_scale: float = 1.0
    te_scale: float = 1.0
    name: str = ""

    @property
    def label(self) -> str:
        """What messages call it: its name, else its file's."""
        return self.name or self.path.name

    def scale(self, component: str) -> float:
        """How strongly it acts on one component."""
        return self.unet_scale if component == UNET else self.te_scale


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A module of the adapter file that changed nothing, and why."""

    module: str
    reason: str


@dataclass(frozen=True, slots=True)
class Coverage:
    """What one adapter did.

    `matched` are the model's modules it acts on, `unmatched` those of its own that found nothing to act on, `idle`
    those that fit and by their own numbers change nothing (alpha 0), `kinds` the ways it stores changes, `norms` the
    Frobenius norm of scale · Δ per component (before rounding), `parameters` what was written: (component, parameter).
    """

    name: str
    sha256: str
    kinds: tuple[str, ...]
    matched: tuple[str, ...]
    unmatched: tuple[Unmatched, ...]
    norms: Mapping[str, float]
    parameters: tuple[tuple[str, str], ...]
    idle: tuple[Unmatched, ...] = ()


@dataclass(frozen=True, slots=True)
class Act:
    """What one module of an adapter file does to one parameter: which tensors play which part.

    `alpha` is what the file's metadata says, where no tensor does; `rank` what alpha is divided by for a bias.
    """

    kind: Kind
    parts: Mapping[str, str]
    alpha: float | None
    rank: int | None
    is_bias: bool = False


@dataclass(slots=True)
class Plan:
    """An adapter matched against the model, and what merging it showed."""

    adapter: Adapter
    file: TensorFile
    acts: dict[tuple[str, str], Act] = field(default_factory=dict)
    matched: list[str] = field(default_factory=list)
    unmatched: list[Unmatched] = field(default_factory=list)
    idle: list[Unmatched] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    squares: dict[str, float] = field(default_factory=dict)
    changes_bits: bool = False

    @property
    def is_asked_for_nothing(self) -> bool:
        """Whether its scales are 0 wherever it could act."""
        return bool(self.acts) and all(self.adapter.scale(component) == 0 for component, _ in self.acts)

    def coverage(self) -> Coverage:
        """The report."""
        return Coverage(
            name=self.adapter.label,
            sha256=self.adapter.sha256,
            kinds=tuple(sorted(self.kinds)),
            matched=tuple(self.matched),
            unmatched=tuple(self.unmatched),
            norms={component: math.sqrt(square) for component, square in sorted(self.squares.items())},
            parameters=tuple(place for place in self.acts if self.adapter.scale(place[0]) != 0),
            idle=tuple(self.idle),
        )

    def note(self, delta: Delta, weight: Weight, alpha: float | None) -> None:
        """Keep what a module that fits does to the parameters of `weight`."""
        component = _COMPONENTS[weight.part]
        if not delta.parts.keys() <= _ON_BIAS | {"alpha"}:
            parts = {part: name for part, name in delta.parts.items() if part not in _ON_BIAS}
            self.acts[component, f"{weight.name}.weight"] = Act(delta.kind, parts, alpha, delta.rank)
        if not _ON_BIAS.isdisjoint(delta.parts):
            parts = {part: name for part, name in delta.parts.items() if part in _ON_BIAS | {"alpha"}}
            self.acts[component, f"{weight.name}.bias"] = Act(delta.kind, parts, alpha, delta.rank, is_bias=True)
        self.matched.append(f"{component}.{weight.name}")
        self.kinds.add(label(delta.kind, delta.parts))


def weights_of(components: Mapping[str, nn.Module], unused: Iterable[tuple[str, str]] = ()) -> ModuleIndex:
    """The weights of a model's components under all names that adapter files use.

    `unused`: (part, beginning of a path) of layers that the checkpoint's file holds and the model leaves out.
    """
    return ModuleIndex(
        {
            _PARTS[name]: {parameter: tuple(value.shape) for parameter, value in module.named_parameters()}
            for name, module in components.items()
        },
        unused,
    )


def match_file(adapter: Adapter, file: TensorFile, index: ModuleIndex) -> Plan:
    """What the file does to the model whose weights are `index`, and which of its modules do nothing.

    Raises: InvalidModelFile: its metadata cannot be read.
    """
    plan = Plan(adapter, file)
    names = sorted(file.keys())
    deltas = read_deltas({name: tuple(file.get_slice(name).get_shape()) for name in names})
    numbers = {
        name: float(file.get_tensor(name).reshape(-1)[0])
        for delta in deltas.modules for part, name in delta.parts.items()
        if part in ("alpha", "on_input") and math.prod(delta.shapes[part]) == 1
    }  # fmt: skip
    try:
        alphas = StatedAlphas(file.metadata() or {})
    except ValueError as error:
        name = adapter.path.name
        raise InvalidModelFile(f"`{name}`: its adapter metadata is not JSON", name=name) from error
    for found in match(deltas, index, numbers):
        if found.outcome is Outcome.APPLIES and found.delta is not None and found.weight is not None:
            plan.note(found.delta, found.weight, alphas.of(found.delta))
        else:
            kept = plan.idle if found.outcome is Outcome.IDLE else plan.unmatched
            kept.append(Unmatched(found.module, found.reason))
    return plan


def require_coverage(plan: Plan, *, allow_partial: bool) -> None:
    """Raises: Incompatible: it fits nothing, or only in part where that is not allowed."""
    name = plan.adapter.label
    reasons = [f"{miss.module}: {miss.reason}" for miss in plan.unmatched]
    if not plan.matched and not plan.idle:
        raise Incompatible(
            f"adapter `{name}` fits nothing in this model" + (f": {reasons[0]}" if reasons else ": it is empty"),
            code=Cause.ADAPTER_NO_MATCH,
            hint="it was made for another kind of model",
            adapter=name,
            unmatched=reasons,
        )
    if reasons and not allow_partial:
        rest = f" and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
        raise Incompatible(
            f"adapter `{name}` fits only in part: {len(plan.matched)} modules match, {len(reasons)} do not "
            f"({'; '.join(reasons[:_SHOWN])}{rest})",
            code=Cause.ADAPTER_PARTIAL,
            hint="--allow-partial applies the modules that fit",
            adapter=name,
            matched=len(plan.matched),
            unmatched=reasons,
        )
