"""Match adapters to models: look up each module of an adapter file among a model's weights and compare the shapes.

`civman check` and the render planner match modules with the weights in a checkpoint's header; merging matches them with
the weights of the loaded model. Both use `match`. `civman.domain.compatibility` turns the counts into a verdict.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from civman.domain.adapters import adapter_kinds
from civman.domain.adapters.adapter_tensors import Delta, Deltas
from civman.domain.adapters.module_names import ModuleIndex, Weight
from civman.domain.adapters.spellings import says_which_encoder

Numbers = Mapping[str, float]
"""Maps the names of single-element tensors (alphas, and IA3's flags) to their values."""

_NOT_IN_MODEL = "not in the model"


class Outcome(Enum):
    """The result of matching one module of an adapter to a model."""

    APPLIES = auto()
    IDLE = auto()
    """The module fits but changes nothing, because its alpha is 0 or the weight never affects an image."""
    ELSEWHERE = auto()
    """The module changes a text encoder that the checkpoint's file does not contain."""
    MISSING = auto()
    MISMATCHED = auto()
    UNKNOWN = auto()
    """The module belongs to no known kind of adapter."""


class Match(NamedTuple):
    """One module of an adapter file, with the weight that it changes or the reason why it changes none."""

    module: str
    outcome: Outcome
    reason: str = ""
    delta: Delta | None = None
    weight: Weight | None = None


@dataclass(frozen=True, slots=True)
class ModuleFit:
    """How many of an adapter's modules fit a checkpoint's weights, and which do not."""

    total: int
    fitting: int
    elsewhere: tuple[str, ...] = ()
    """Modules of a text encoder that the checkpoint's file does not contain at all."""
    missing: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    """Modules that do not fit the weight's shape: "…attn2_to_k: made for the shape 320x768, but the weight has …"."""
    unknown: tuple[str, ...] = ()
    """Tensors and modules that belong to no known kind of adapter, with the reason."""
    idle: tuple[str, ...] = ()
    """Modules that fit but change nothing, with the reason."""

    @property
    def words(self) -> str:
        """The counts on one line, such as "264 of 264 modules fit"."""
        counted = (
            (self.missing, "not in the checkpoint"), (self.mismatched, "with a different shape"),
            (self.unknown, "of no known kind of adapter"),
            (self.elsewhere, "for text encoders that the file does not contain"), (self.idle, "that change nothing"),
        )  # fmt: skip
        rest = ", ".join(f"{len(names)} {what}" for names, what in counted if names)
        return f"{self.fitting} of {self.total} modules fit" + (f" ({rest})" if rest else "")


def match(deltas: Deltas, index: ModuleIndex, numbers: Numbers | None = None) -> Iterator[Match]:
    """Match each module of an adapter file to a weight; tensors that belong to no module are reported as unknown.

    Args:
        deltas: the file's changes.
        index: the model's weights.
        numbers: the values of the file's single-number tensors; None if only the header is available.
    """
    taken: dict[tuple[str, str, str], str] = {}
    misfits: _Misfits = {}
    two_encoders = {"te1", "te2"} <= index.parts
    for delta in deltas.modules:
        found = _match(delta, index, numbers or {}, misfits, two_encoders=two_encoders)
        if found.weight is not None:
            others = [taken.setdefault(place, delta.module) for place in _places(found.weight)]
            if other := next((other for other in others if other is not delta.module), ""):
                found = Match(delta.module, Outcome.MISMATCHED, f"the module changes the same weight as {other}")
        yield found
    for name in deltas.loose:
        other = deltas.twice.get(name, "")
        reason = f"repeats {other}" if other else "the tensor belongs to no known kind of adapter"
        yield Match(name, Outcome.UNKNOWN, reason)


def _places(weight: Weight) -> list[tuple[str, str, str]]:
    part = weight.component or weight.part
    if weight.pieces:
        return [(part, piece.name, "") for piece in weight.pieces]
    return [(part, weight.name, weight.slice)]


_Misfits = dict[tuple[object, ...], str | None]
"""A cache of the reasons for misfits, because a thousand modules have only a few dozen different shapes."""


def _match(delta: Delta, index: ModuleIndex, numbers: Numbers, misfits: _Misfits, *, two_encoders: bool) -> Match:
    module = delta.module
    if two_encoders and not says_which_encoder(module):
        return Match(
            module, Outcome.MISSING, "the name does not show which of the model's two text encoders the module changes"
        )
    weight = index.weight(delta.part, delta.path)
    if weight is None:
        if index.is_unused(delta.part, delta.path):
            return Match(module, Outcome.IDLE, "the layer never affects an image", delta)
        if delta.part != "unet" and not index.parts & {"te1", "te2", "te3", "te4"}:
            return Match(module, Outcome.ELSEWHERE, "the module changes a text encoder that the file does not contain")
        return Match(module, Outcome.MISSING, _NOT_IN_MODEL)
    flag = numbers.get(delta.parts["on_input"]) if "on_input" in delta.parts else None
    key = (delta.kind, delta.problem, tuple(delta.shapes.items()), weight.shape, weight.bias, flag)
    if key in misfits:
        reason = misfits[key]
    else:
        reason = misfits[key] = delta.misfit(weight.shape, weight.bias, on_input=None if flag is None else bool(flag))
    if reason is not None:
        return Match(module, Outcome.MISMATCHED, reason)
    alpha = numbers.get(delta.parts["alpha"]) if "alpha" in delta.parts else None
    if alpha == 0 and adapter_kinds.has_strength(delta.parts):
        return Match(module, Outcome.IDLE, "its alpha is 0", delta)
    return Match(module, Outcome.APPLIES, "", delta, weight)


def fit_modules(deltas: Deltas, index: ModuleIndex, numbers: Numbers | None = None) -> ModuleFit:
    """Match the modules as `match` does, and count the results."""
    said: dict[Outcome, list[str]] = {outcome: [] for outcome in Outcome}
    for found in match(deltas, index, numbers):
        plain = found.reason == _NOT_IN_MODEL or found.outcome in (Outcome.APPLIES, Outcome.ELSEWHERE)
        said[found.outcome].append(found.module if plain else f"{found.module}: {found.reason}")
    return ModuleFit(
        sum(map(len, said.values())), len(said[Outcome.APPLIES]) + len(said[Outcome.IDLE]),
        tuple(said[Outcome.ELSEWHERE]), tuple(said[Outcome.MISSING]), tuple(said[Outcome.MISMATCHED]),
        tuple(said[Outcome.UNKNOWN]), tuple(said[Outcome.IDLE]),
    )  # fmt: skip
