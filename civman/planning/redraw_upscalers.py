"""Finds upscalers by A1111's names: built-in ones, published models, and kinds that civman does not support."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from civman.domain.known_upscalers import known_upscaler
from civman.domain.recipes.recipe import Recipe
from civman.domain.recipes.recipe_limits import UPSCALERS, upscaler_of
from civman.pictures.site_settings import Entries, NamedFile
from civman.planning.redraw_features import Drawable, Reason

_OTHER_UPSCALERS: Final = re.compile(r"swin2|scunet|\bdat\b|ldsr|\bhat\b|\bspan", re.IGNORECASE)
"""Matches the names of upscalers that are neither ESRGAN, Real-ESRGAN nor SwinIR networks."""

_ENLARGING: Final = re.compile(r"(?!hires ).*upscale|postprocess|extras|script", re.IGNORECASE)
"""Matches the names of metadata entries that may explain why an image is larger than its passes."""


@dataclass(frozen=True, slots=True)
class NamedUpscaler:
    """The upscaler that a name means (a built-in one, or "model" with a file), and why the result may differ."""

    method: str
    file: NamedFile | None = None
    reasons: tuple[Reason, ...] = ()


def upscaler_named(name: str, version: tuple[int, int]) -> NamedUpscaler:
    """Return the upscaler to which this name refers in this version of A1111."""
    own = upscaler_of(name)
    if own in UPSCALERS[:-1]:
        return NamedUpscaler(own)
    reasons = []
    if _OTHER_UPSCALERS.search(name):
        reasons.append(Reason(
            Drawable.NO, f"the upscaler `{name}` is of a kind that civman does not support"
        ))  # fmt: skip
    known = known_upscaler(name)
    file = NamedFile("upscaler", name)
    if known is not None and known.sha256:
        file = NamedFile("upscaler", name, known.sha256[0])
        reasons.append(Reason(
            Drawable.DIFFERS, f"the settings name the upscaler `{name}` without a hash, so the published file is used"
        ))  # fmt: skip
    if version < (1, 8):
        reasons.append(Reason(
            Drawable.DIFFERS, "A1111 before 1.8 rounded the tiles of upscaler models differently"
        ))  # fmt: skip
    return NamedUpscaler("model", file, tuple(reasons))


def enlarged_afterwards(entries: Entries, made: Recipe, pixels: tuple[int | None, int | None]) -> Iterator[Reason]:
    """Yield a reason if the image is larger than its settings describe, so that it was enlarged afterwards.

    There is no reason if the size is unknown, if the image has another aspect ratio than the recipe's, or if an entry
    of the settings may explain the size.
    """
    last = made.upscale.final_size if made.upscale else made.drawn_size
    width, height = pixels
    if width is None or height is None or width <= last[0] or width * last[1] != height * last[0]:
        return
    if made.upscale is None and any(_ENLARGING.match(name) for name in entries.names()):
        return
    grid = ", or it is a grid of several images" if width % last[0] == 0 else ""
    words = (
        f"the image is {width / last[0]:.4g} times as wide and high as the {last[0]}x{last[1]} pixels that its "
        f"settings describe, so it was probably enlarged afterwards{grid}"
    )
    yield Reason(Drawable.DIFFERS, words)
