"""Reads from an image's settings which input image it was made from, perhaps enlarged or in tiles.

This covers plain img2img, A1111's script "SD upscale", and the extensions "Ultimate SD upscale" and "Tiled Diffusion".
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from civman.domain.digests import Sha256
from civman.domain.recipes.enlargement import Enlargement
from civman.domain.recipes.recipe import StartImage
from civman.domain.recipes.recipe_limits import RESIZE_MODES
from civman.domain.recipes.tiled import OVERLAP, SCALE, TiledRedraw, enlarged_size
from civman.domain.recipes.tiled_diffusion import TiledDiffusion, tiled_diffusion_of
from civman.domain.recipes.ultimate import UltimateUpscale
from civman.errors import UsageError
from civman.pictures.metadata import number
from civman.pictures.site_settings import Entries
from civman.pictures.tiled_diffusion_text import tiled_diffusion_in
from civman.planning.redraw_features import Drawable, Reason

_FACTORS: Final = tuple(number / 20 for number in range(20, 81))
"""The factors that the script SD upscale offers: 1 to 4 in steps of 0.05."""
_SD: Final = re.compile("SD upscale ")
_ULTIMATE: Final = re.compile("Ultimate SD upscale ")
_OF_MASK: Final = re.compile("Mask blur|Inpaint area|Masked area padding|Masked content")
"""Matches A1111's metadata entries for a mask. Images of Ultimate SD upscale have them too, because it uses masks for
its tiles.
"""
_OF_IMAGE: Final = re.compile(
    "Mask blur|Inpaint|Masked|Conditional mask weight|Noise multiplier|Init image|Image CFG|Resize mode"
)
"""Matches A1111's metadata entries for an input image or a mask."""
_INPAINTED: Final = ("Inpaint area", "Masked content", "Masked area padding", "Conditional mask weight")
"""A1111's metadata entries that occur only if the user passed a mask."""
_NOISE: Final = "Noise multiplier"
_RESIZE: Final = "Resize mode"


@dataclass(frozen=True, slots=True)
class SourceImage:
    """An image given for a redraw: its input image or a control image. Sizes are width and height in pixels.

    `final_size`: the size of the image that is rendered again; None if unknown. `node`: the id of the node in a ComfyUI
    graph that loads this image, or the file name in that node; "" if the user specified neither. `others`: further
    images, in the order in which the user passed them.
    """

    path: Path
    sha256: Sha256
    size: tuple[int, int]
    final_size: tuple[int, int] | None = None
    node: str = ""
    others: "tuple[SourceImage, ...]" = ()

    @property
    def all(self) -> "tuple[SourceImage, ...]":
        """This image, followed by `others`."""
        return (self, *self.others)


@dataclass(frozen=True, slots=True)
class Tiles:
    """The recipe's fields for the input image and its tiles, and the reasons why the result may differ."""

    recipe: dict[str, Any]
    reasons: tuple[Reason, ...] = ()


FindUpscaler = Callable[[str], tuple[str, Sha256 | None]]
"""A function that maps A1111's name of an upscaler to civman's name and a placeholder for its model's digest."""
_ENCODED: Final = Reason(
    Drawable.DIFFERS, "A1111 encodes the input image to a random sample of the VAE's distribution; civman uses the mean"
)


def started(
    entries: Entries, source: SourceImage | None, upscaler: FindUpscaler, version: tuple[int, int],
    size: tuple[int, int], *, has_passes: bool,
) -> Tiles:  # fmt: skip
    """Return the recipe's fields for the image's input image, and how the input image was enlarged.

    `size`: the size of the image in pixels. `has_passes`: the image has a second pass, so the denoising strength may
    belong to that pass.
    """
    tiles = redraw_in_tiles(entries, source, upscaler)
    if tiles.reasons:
        return tiles
    found = tiled_diffusion_in(entries)
    recipe: dict[str, Any] = {}
    reasons = list(_refused(found))
    if "method" in found:
        recipe["tiled_diffusion"] = _tiled_diffusion(found, reasons)
    name = found.get("upscaler", "None")
    is_larger = name.casefold() != "none"
    from_image = entries.take(_OF_IMAGE)
    has_strength = entries.number("Denoising strength") not in (None, 0)  # A1111's API writes 0 without an input image
    if not is_larger and (has_passes or not (from_image or has_strength)):
        if from_image:
            words = "the image has a second pass, so its settings for an input image are ignored"
            reasons.append(Reason(Drawable.DIFFERS, f"{words}: {_listed(from_image)}"))
        return Tiles(recipe, tuple(reasons))
    needed = _needed(entries, source)
    if source is None or needed is not None:
        return Tiles(recipe, (*reasons, *_without_noise(entries), *([needed] if needed else [])))
    reasons.append(_ENCODED)
    if "Mask blur" in entries:
        words = (
            "the settings contain a mask blur, which old versions of A1111 wrote even without a mask: if the image was "
            "inpainted, its mask is missing"
        )
        reasons.append(Reason(Drawable.DIFFERS, words))
    if unused := [name for name in from_image if name not in ("Mask blur", _NOISE, _RESIZE)]:
        reasons.append(Reason(Drawable.DIFFERS, f"civman ignores these settings of the input image: {_listed(unused)}"))
    recipe["start"], begun = _resized(entries, _begun(entries, source, reasons), reasons), source.size
    if is_larger:
        recipe["input_upscale"] = made = _larger(found, source.size, upscaler(name), version, size)
        begun = made.final_size
    if _RESIZE not in entries and abs(begun[0] * size[1] - begun[1] * size[0]) > max(*begun, *size):
        reasons.append(Reason(
            Drawable.DIFFERS,
            "the input image has another aspect ratio, and the settings contain no resize mode; A1111's default, "
            "`just resize`, is used",
        ))  # fmt: skip
    return Tiles(recipe, tuple(reasons))


def _needed(entries: Entries, source: SourceImage | None) -> Reason | None:
    """Return why the image cannot be rendered again with only `source` as its input; None if it can."""
    if "Image CFG scale" in entries:
        words = "the image was made with a model that edits images by instructions, which civman does not support"
        return Reason(Drawable.NO, words)
    if _is_inpainted(entries):
        words = "the image was inpainted, and the settings do not contain its mask: use `civman render --init --mask`"
        return Reason(Drawable.NEEDS_INPUT, words)
    if source is None:
        words = (
            "the image was made from another image, which the settings do not contain: pass it with "
            "`civman replay IMAGE --picture SOURCE`"
        )
        return Reason(Drawable.NEEDS_INPUT, words)
    return None


def _is_inpainted(entries: Entries) -> bool:
    """Whether the image was inpainted.

    Since A1111 began to write its version, it writes a mask blur only for images with a mask.
    """
    return any(each in entries for each in _INPAINTED) or ("Mask blur" in entries and bool(entries.text("Version")))


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name[:40]}`" for name in names)


def _without_noise(entries: Entries) -> Iterator[Reason]:
    """Yield a reason if the settings have a noise multiplier, which the recipe lacks because it has no input image."""
    stated = entries.number(_NOISE)
    if stated is not None:
        words = f"the recipe lacks the noise multiplier {stated:g}, because it has no input image yet"
        yield Reason(Drawable.DIFFERS, words)


def _resized(entries: Entries, start: StartImage, reasons: list[Reason]) -> StartImage:
    """Return the start image with the resize mode from the settings. An unknown mode is recorded in `reasons`."""
    stated = entries.text(_RESIZE).casefold()
    if stated in RESIZE_MODES:
        return replace(start, resize_mode=stated)
    if stated:
        words = f"civman does not know the resize mode `{stated[:40]}` of the input image and uses `just resize`"
        reasons.append(Reason(Drawable.DIFFERS, words))
    return start


def _refused(found: dict[str, str]) -> Iterator[Reason]:
    for name, words in (
        ("inverts noise", "Tiled Diffusion used noise inversion, which civman does not support"),
        ("has regions", "Tiled Diffusion used regions with separate prompts, which civman does not support"),
    ):  # fmt: skip
        if found.get(name, "False").casefold() not in ("false", "none", ""):
            yield Reason(Drawable.NO, words)


def _tiled_diffusion(found: dict[str, str], reasons: list[Reason]) -> TiledDiffusion | None:
    words = [found["method"]]
    words += [f"tile={found['width']}x{found['height']}"] if "width" in found and "height" in found else []
    words += [f"overlap={found['overlap']}"] if "overlap" in found else []
    try:
        return tiled_diffusion_of(",".join(words))
    except UsageError as error:
        reasons.append(Reason(Drawable.NO, error.message))
        return None


def _larger(
    found: dict[str, str], source: tuple[int, int], upscaler: tuple[str, Sha256 | None], version: tuple[int, int],
    size: tuple[int, int],
) -> Enlargement:  # fmt: skip
    """Return how Tiled Diffusion enlarged the input image: by a factor, or to the size of the image."""
    factor = number(found.get("factor"))
    if factor is None:
        return Enlargement(upscaler[0], *size, upscaler[1])
    even = 8 if version >= (1, 4) else 1
    width, height = (int(side * factor) // even * even for side in source)
    return Enlargement(upscaler[0], width, height, upscaler[1])


def redraw_in_tiles(entries: Entries, source: SourceImage | None, upscaler: FindUpscaler) -> Tiles:
    """Read the settings of the script that redrew the image in tiles; the result is empty if no script did."""
    read = _ultimate if entries.take(_ULTIMATE) else _sd_upscale if entries.take(_SD) else None
    if read is None:
        return Tiles({})
    entries.take(_OF_MASK)
    if source is None:
        name = "SD upscale" if read is _sd_upscale else "Ultimate SD upscale"
        return Tiles({}, (Reason(
            Drawable.NEEDS_INPUT,
            f"the script {name} redrew an image that the settings do not contain: pass it with "
            "`civman replay IMAGE --picture SOURCE`",
        ), *_without_noise(entries)))  # fmt: skip
    return read(entries, source, upscaler)


def _enlarging(entries: Entries, name: str, upscaler: FindUpscaler) -> tuple[str, Sha256 | None]:
    """Return civman's name for the upscaler in the entry `name`, and a placeholder for its model's digest."""
    found = entries.text(name) or "None"
    return ("none", None) if found.casefold() == "none" else upscaler(found)


def _begun(entries: Entries, source: SourceImage, reasons: list[Reason]) -> StartImage:
    """Return the start image with its strength and its noise multiplier.

    If the settings contain no strength, 0.75 is used and a reason is added.
    """
    strength, noise = entries.number("Denoising strength"), entries.number(_NOISE)
    if strength is None:
        reasons.append(
            Reason(Drawable.DIFFERS, "the settings contain no denoising strength; A1111's default of 0.75 is used")
        )
    return StartImage(
        source.sha256, 0.75 if strength is None else strength, noise_multiplier=1.0 if noise is None else noise
    )


def _ultimate(entries: Entries, source: SourceImage, upscaler: FindUpscaler) -> Tiles:
    """Read the settings of Ultimate SD upscale. The size in the settings is that of the finished image."""
    reasons = [_ENCODED, Reason(
        Drawable.DIFFERS,
        "Ultimate SD upscale does not record the order of its tiles and whether it redrew the seams; civman renders "
        "the tiles row by row and does not redraw the seams",
    )]  # fmt: skip

    def number(name: str, usual: int) -> int:
        stated = entries.whole(f"Ultimate SD upscale {name}")
        return usual if stated is None else stated

    method, model = _enlarging(entries, "Ultimate SD upscale upscaler", upscaler)
    side = number("tile_size", 0)  # in January 2023, the script named this entry tile_size
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
                Drawable.DIFFERS,
                f"the settings lack the factor of the script SD upscale; A1111's default of {SCALE:g} is used",
            ))  # fmt: skip
    start, overlap = _begun(entries, source, reasons), entries.whole("SD upscale overlap")
    tiled = TiledRedraw(method, *size, model, OVERLAP if overlap is None else overlap, entries.whole("Batch size") or 1)
    return Tiles({"start": start, "tiled": tiled}, tuple(reasons))
