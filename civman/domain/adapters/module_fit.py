"""The one matcher of adapters: each module of a file looked up among a model's weights and compared by shape.

`civman check` and the plan match against the weights that a checkpoint's header lists, the merge against those of the
loaded model, both through `match`. Refuses to do: judging what the numbers mean (`civman.domain.compatibility`).
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
"""Tensors of one number → the number: alphas, and IA3's flags."""

_ABSENT = "not in the model"


class Outcome(Enum):
    """What becomes of one module of an adapter."""

    APPLIES = auto()
    IDLE = auto()
    """It fits and changes nothing: its alpha is 0, or no picture depends on the weight."""
    ELSEWHERE = auto()
    """It changes a text encoder, and the checkpoint's file holds none."""
    MISSING = auto()
    MISMATCHED = auto()
    UNKNOWN = auto()
    """No kind of adapter that is known."""


class Match(NamedTuple):
    """One module of an adapter's file: the weight it changes, or why it changes none."""

    module: str
    outcome: Outcome
    reason: str = ""
    delta: Delta | None = None
    weight: Weight | None = None


@dataclass(frozen=True, slots=True)
class ModuleFit:
    """An adapter's modules against the checkpoint's weights, counted."""

    total: int
    fitting: int
    elsewhere: tuple[str, ...] = ()
    """Modules of a part (a text encoder) that the checkpoint's file does not hold at all."""
    missing: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    """Module and why: "…attn2_to_k: shape 320x768 against 640x2048"."""
    unknown: tuple[str, ...] = ()
    """Tensors and modules of no known kind of adapter, and why."""
    idle: tuple[str, ...] = ()
    """Modules that fit and change nothing, and why."""

    @property
    def words(self) -> str:
        """One line: "264 of 264 modules fit"."""
        notes = (
            (self.missing, "not in the checkpoint"), (self.mismatched, "of another shape"),
            (self.unknown, "of no known kind of adapter"),
            (self.elsewhere, "for text encoders that the file does not hold"), (self.idle, "that change nothing"),
        )  # fmt: skip
        rest = ", ".join(f"{len(names)} {what}" for names, what in notes if names)
        return f"{self.fitting} of {self.total} modules fit" + (f" ({rest})" if rest else "")


def match(deltas: Deltas, index: ModuleIndex, numbers: Numbers | None = None) -> Iterator[Match]:
    """What becomes of each module of a file, and of each tensor that belongs to none.

    Args:
        deltas: the file's changes.
        index: the model's weights.
        numbers: values of the file's one-number tensors; None: they are not at hand (only a header is).
    """
    taken: dict[tuple[str, str, str], str] = {}
    two_encoders = {"te1", "te2"} <= index.parts
    for delta in deltas.modules:
        found = _match(delta, index, numbers or {}, two_encoders=two_encoders)
        if found.weight is not None:
            place = (found.weight.part, found.weight.name, found.weight.slice)
            other = taken.setdefault(place, delta.module)
            if other is not delta.module:
                found = Match(
                    delta.module, Outcome.MISMATCHED, f"names the same weight as another module of the file: {other}"
                )
        yield found
    for name in deltas.loose:
        other = deltas.twice.get(name, "")
        yield Match(
            name, Outcome.UNKNOWN, f"says the same as {other}" if other else "not a tensor of any known kind of adapter"
        )


def _match(delta: Delta, index: ModuleIndex, numbers: Numbers, *, two_encoders: bool) -> Match:
    module = delta.module
    if two_encoders and not says_which_encoder(module):
        return Match(module, Outcome.MISSING, f"{_ABSENT}: it does not say which of the two text encoders it means")
    weight = index.weight(delta.part, delta.path)
    if weight is None:
        if index.is_unused(delta.part, delta.path):
            return Match(module, Outcome.IDLE, "no picture depends on this layer", delta)
        if delta.part != "unet" and not index.parts & {"te1", "te2", "te3"}:
            return Match(module, Outcome.ELSEWHERE, "a text encoder that the file does not hold")
        return Match(module, Outcome.MISSING, _ABSENT)
    flag = numbers.get(delta.parts["on_input"]) if "on_input" in delta.parts else None
    reason = delta.misfit(weight.shape, weight.bias, on_input=None if flag is None else bool(flag))
    if reason is not None:
        return Match(module, Outcome.MISMATCHED, reason)
    alpha = numbers.get(delta.parts["alpha"]) if "alpha" in delta.parts else None
    if alpha == 0 and adapter_kinds.has_strength(delta.parts):
        return Match(module, Outcome.IDLE, "its alpha is 0", delta)
    return Match(module, Outcome.APPLIES, "", delta, weight)


def fit_modules(deltas: Deltas, index: ModuleIndex, numbers: Numbers | None = None) -> ModuleFit:
    """As `match`, counted."""
    said: dict[Outcome, list[str]] = {outcome: [] for outcome in Outcome}
    for found in match(deltas, index, numbers):
        plain = found.reason == _ABSENT or found.outcome in (Outcome.APPLIES, Outcome.ELSEWHERE)
        said[found.outcome].append(found.module if plain else f"{found.module}: {found.reason}")
    return ModuleFit(
        sum(map(len, said.values())), len(said[Outcome.APPLIES]) + len(said[Outcome.IDLE]),
        tuple(said[Outcome.ELSEWHERE]), tuple(said[Outcome.MISSING]), tuple(said[Outcome.MISMATCHED]),
        tuple(said[Outcome.UNKNOWN]), tuple(said[Outcome.IDLE]),
    )  # fmt: skip
