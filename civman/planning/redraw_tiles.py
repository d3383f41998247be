"""Scripts that redraw an image in tiles, in an image's settings: drawn again from the image that they were given.

They are A1111's "SD upscale" and the extension "Ultimate SD upscale".
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from civman.domain.digests import Sha256
from civman.domain.recipes.recipe import StartImage
from civman.domain.recipes.tiled import OVERLAP, SCALE, TiledRedraw, enlarged_size
from civman.domain.recipes.ultimate import UltimateUpscale
from civman.pictures.site_settings import Entries
from civman.planning.redraw_features import Drawable, Reason

_FACTORS: Final = tuple(number / 20 for number in range(20, 81))
"""The factors that the script offers: 1 to 4 in steps of 0.05."""
_SD: Final = re.compile("SD upscale ")
_ULTIMATE: Final = re.compile("Ultimate SD upscale ")
_OF_MASK: Final = re.compile("Mask blur|Inpaint area|Masked area padding|Masked content")
"""A1111's entries for a mask, which the script Ultimate SD upscale makes itself."""


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
    """What the settings say about a script: entries of the recipe, and reasons. Both are empty without a script."""

    recipe: dict[str, Any]
    reasons: tuple[Reason, ...] = ()


FindUpscaler = Callable[[str], tuple[str, Sha256 | None]]
"""A function from A1111's name of an upscaler to its method in civman and a stand-in for its model."""
_ENCODED: Final = Reason(
    Drawable.DIFFERS, "A1111 encodes each tile from a distribution, and civman takes the mean of that"
)


def redraw_in_tiles(entries: Entries, source: SourceImage | None, upscaler: FindUpscaler) -> Tiles:
    """Read the settings of the script that redrew the image in tiles, if there is one."""
    read = _ultimate if entries.take(_ULTIMATE) else _sd_upscale if entries.take(_SD) else None
    if read is None:
        return Tiles({})
    entries.take(_OF_MASK)
    if source is None:
        name = "SD upscale" if read is _sd_upscale else "Ultimate SD upscale"
        return Tiles({}, (Reason(
            Drawable.NEEDS_INPUT,
            f"the script {name} drew it again from an image that the settings do not contain: "
            "`civman replay IMAGE --picture SOURCE` passes it",
        ),))  # fmt: skip
    return read(entries, source, upscaler)


def _enlarging(entries: Entries, name: str, upscaler: FindUpscaler) -> tuple[str, Sha256 | None]:
    """The method and a stand-in for the model of the upscaler in the entry `name`."""
    found = entries.text(name) or "None"
    return ("none", None) if found.casefold() == "none" else upscaler(found)


def _begun(entries: Entries, source: SourceImage, reasons: list[Reason]) -> StartImage:
    """The start image with its strength; a reason is added if the strength is not stated."""
    strength = entries.number("Denoising strength")
    if strength is None:
        reasons.append(Reason(Drawable.DIFFERS, "the strength is not stated; 0.75 is A1111's default"))
    return StartImage(source.sha256, 0.75 if strength is None else strength)


def _ultimate(entries: Entries, source: SourceImage, upscaler: FindUpscaler) -> Tiles:
    """The script writes the size of the tiles and their masks; the size of the settings is that of the image."""
    reasons = [_ENCODED, Reason(
        Drawable.DIFFERS,
        "Ultimate SD upscale does not state in which order it redrew the tiles and whether it redrew the seams: drawn "
        "row by row, without seams",
    )]  # fmt: skip

    def number(name: str, usual: int) -> int:
        stated = entries.whole(f"Ultimate SD upscale {name}")
        return usual if stated is None else stated

    method, model = _enlarging(entries, "Ultimate SD upscale upscaler", upscaler)
    side = number("tile_size", 0)  # its key in January 2023
    width, height = number("tile_width", side), number("tile_height", side)
    made = UltimateUpscale(
        method, model, width or height or 512, height or width or 512, number("mask_blur", 8), number("padding", 32)
    )
    return Tiles({"start": _begun(entries, source, reasons), "ultimate": made}, tuple(reasons))


def _sd_upscale(entries: Entries, source: SourceImage, upscaler: FindUpscaler) -> Tiles:
    method, model = _enlarging(entries, "SD upscale upscaler", upscaler)
    size, reasons = source.size, [_ENCODED]
    if method != "none":
        sizes = [enlarged_size(source.size, factor) for factor in _FACTORS]
        size = enlarged_size(source.size, SCALE)
        if source.final_size in sizes:
            size = source.final_size
        else:
            reasons.append(Reason(
                Drawable.DIFFERS, f"the factor of the script SD upscale is not stated; {SCALE:g} is A1111's default"
            ))  # fmt: skip
    start, overlap = _begun(entries, source, reasons), entries.whole("SD upscale overlap")
    tiled = TiledRedraw(method, *size, model, OVERLAP if overlap is None else overlap, entries.whole("Batch size") or 1)
    return Tiles({"start": start, "tiled": tiled}, tuple(reasons))
