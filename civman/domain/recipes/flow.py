"""What a recipe contains for a flow-matching model: noise levels, embedded guidance, and separate text encoders."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from civman.domain.digests import Sha256


@dataclass(frozen=True, slots=True)
class PartUse:
    """A text encoder that is not in the checkpoint: its role, such as "t5", and the digest of its file."""

    role: str
    sha256: Sha256


@dataclass(frozen=True, slots=True)
class Flow:
    """The noise levels of a flow-matching model and the guidance that it embeds.

    `shift`: the factor s in σ = s·t / (1 + (s − 1)·t). `entries`: the size of the table from which some schedules take
    their levels. `guidance`: the guidance scale that is embedded as an input of the model; 0 if the model has no such
    input.
    """

    shift: float
    entries: int
    guidance: float = 0.0


def problems(recipe: Any) -> Iterator[str]:
    """Explain which of a recipe's values for flow matching are invalid, with one clause for each problem."""
    if (recipe.flow is None) == (recipe.prediction == "flow"):
        yield "a recipe has flow-matching noise levels if and only if its model predicts a flow"
    if recipe.flow is not None:
        if not (math.isfinite(recipe.flow.shift) and 0 < recipe.flow.shift <= 100):
            yield "the shift must be above 0 and at most 100"
        if recipe.flow.entries not in (1000, 10000):
            yield "the table of noise levels must have 1000 or 10000 entries"
        if not (math.isfinite(recipe.flow.guidance) and 0 <= recipe.flow.guidance <= 100):
            yield "the embedded guidance must be 0 to 100"
        if recipe.rules < 3:
            yield "flow matching needs version 3 of the rendering rules"
    roles = [part.role for part in recipe.parts]
    if len(set(roles)) != len(roles):
        yield "the recipe contains two files for the same text encoder"
