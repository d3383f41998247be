"""A1111's script "SD upscale" in an image's settings, drawn again from the image that the script was given."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from civman.domain.digests import Sha256
from civman.domain.recipes.recipe import StartImage
from civman.domain.recipes.tiled import OVERLAP, SCALE, TiledRedraw, enlarged_size
from civman.pictures.site_settings import Entries
from civman.planning.redraw_features import Drawable, Reason

_FACTORS: Final = tuple(number / 20 for number in range(20, 81))
"""The factors that the script offers: 1 to 4 in steps of 0.05."""


@dataclass(frozen=True, slots=True)
class SourceImage:
    """The image that a script was given; sizes are width and height in pixels.

    `final_size`: the size of the image that is drawn again, None if it is not known.
    """

    path: Path
    sha256: Sha256
    size: tuple[int, int]
    final_size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Tiles:
    """What the settings say about the script: entries of the recipe, and reasons. Both are empty without the script."""

    recipe: dict[str, Any]
    reasons: tuple[Reason, ...] = ()


def redraw_in_tiles(
    entries: Entries, source: SourceImage | None, upscaler: Callable[[str], tuple[str, Sha256 | None]]
) -> Tiles:
    """Read the settings of the script. `upscaler` finds a named one: its method, and a stand-in for its model."""
    if "SD upscale overlap" not in entries and "SD upscale upscaler" not in entries:
        return Tiles({})
    if source is None:
        return Tiles({}, (Reason(
            Drawable.NEEDS_INPUT,
            "the script SD upscale drew it again from an image that the settings do not contain: "
            "`civman replay IMAGE --picture SOURCE` passes it",
        ),))  # fmt: skip
    name = entries.text("SD upscale upscaler") or "None"
    method, model = ("none", None) if name.casefold() == "none" else upscaler(name)
    size, reasons = source.size, [Reason(
        Drawable.DIFFERS, "A1111 encodes each tile from a distribution, and civman takes the mean of that"
    )]  # fmt: skip
    if method != "none":
        sizes = [enlarged_size(source.size, factor) for factor in _FACTORS]
        size = enlarged_size(source.size, SCALE)
        if source.final_size in sizes:
            size = source.final_size
        else:
            reasons.append(Reason(
                Drawable.DIFFERS, f"the factor of the script SD upscale is not stated; {SCALE:g} is A1111's default"
            ))  # fmt: skip
    strength, overlap = entries.number("Denoising strength"), entries.whole("SD upscale overlap")
    if strength is None:
        reasons.append(Reason(Drawable.DIFFERS, "the strength is not stated; 0.75 is A1111's default"))
    tiled = TiledRedraw(method, *size, model, OVERLAP if overlap is None else overlap, entries.whole("Batch size") or 1)
    start = StartImage(source.sha256, 0.75 if strength is None else strength)
    return Tiles({"start": start, "tiled": tiled}, tuple(reasons))
