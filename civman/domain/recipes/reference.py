"""Reference pictures in a recipe: an IP-Adapter, the picture that it reads, and how strongly it acts on which steps."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from civman.domain.digests import Sha256
from civman.domain.recipes.step_share import acts_at

MOST: Final = 10
"""The largest weight of an IP-Adapter, positive or negative."""


@dataclass(frozen=True, slots=True)
class ReferenceUse:
    """An IP-Adapter with a picture in a recipe.

    `sha256` is the adapter's, `encoder` that of the CLIP vision encoder, `picture` that of the picture's file. `start`
    and `end` are shares of the steps between which it acts, from 0 to 1.
    """

    sha256: Sha256
    encoder: Sha256
    picture: Sha256
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    crop: tuple[int, ...] = ()
    """The part of the picture that is read: left, top, width and height in pixels; empty for the whole picture."""

    def acts_at(self, step: int, steps: int) -> bool:
        """Whether it acts in this step, counted from 0."""
        return acts_at(self.start, self.end, step, steps)


@dataclass(frozen=True, slots=True)
class ReferenceRequest:
    """A requested reference: the path of a picture, the ref of an IP-Adapter, and how it acts (see `ReferenceUse`)."""

    picture: str
    ref: str
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    crop: tuple[int, ...] = ()


def problems(recipe: Any) -> Iterator[str]:
    """Explain why the references of a recipe cannot be rendered, with one clause for each problem."""
    for use in recipe.references:
        if not math.isfinite(use.weight) or abs(use.weight) > MOST:
            yield f"the weight of an IP-Adapter must be between -{MOST} and {MOST}"
        if not 0 <= use.start <= use.end <= 1:
            yield "an IP-Adapter must start and end at shares of the steps between 0 and 1, in this order"
        if use.crop and (len(use.crop) != 4 or min(use.crop) < 0 or min(use.crop[2:]) < 1):
            yield "the crop of a reference picture must be its left and top edge, width and height in pixels"
    if recipe.references and recipe.flow is not None:
        yield "IP-Adapters work with the UNets of SD 1, SD 2 and SDXL only"
