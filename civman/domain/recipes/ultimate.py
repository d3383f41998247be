"""Ultimate SD upscale, a script for A1111: enlarge an image, redraw it area by area, and redraw the seams in between.

Each area and its surroundings are inpainted through a mask, starting from the result of the areas before. All areas
have the same seed. Source: Coyote-A/ultimate-upscale-for-automatic1111.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from civman.domain.digests import Sha256
from civman.domain.recipes.enlargement import METHODS as UPSCALERS
from civman.domain.recipes.enlargement import MOST_TIMES, upscale_from
from civman.domain.recipes.recipe_limits import MAX_SIDE, size_of
from civman.errors import Cause, UsageError

SCALE: Final = 2.0
"""The default factor of the script Ultimate SD upscale."""
METHODS: Final = (*UPSCALERS, "none")
REDRAWS: Final = ("linear", "chess", "none")
"""The orders in which tiles are redrawn: "linear" row by row, "chess" every other tile first; "none": not at all."""
SEAMS: Final = ("none", "band-pass", "half-tile", "half-tile-intersections")
"""What is redrawn after the tiles: nothing; bands along their borders; tiles centred on the borders; or these and then
tiles centred on the corners.
"""
_STEP: Final = 64
"""The script rounds the size at which a tile is rendered, and an image's size after `scale`, up to multiples of this.
"""
_LEAST_TILE: Final = 64
_NAMES: Final = (
    "blur", "padding", "redraw", "seams", "seams-strength", "seams-width", "seams-blur", "seams-padding",
)  # fmt: skip
"""The settings that can be typed, apart from the size of the tiles."""
_SETTING: Final = re.compile(r",(?=\s*[a-z_-]+\s*=)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class UltimateUpscale:
    """The settings of Ultimate SD upscale in a recipe, whose width and height are those of the enlarged image.

    Sizes are in pixels. The defaults are those of the script.
    """

    method: str
    """How the image is enlarged: one of `METHODS`; "none" resizes it with Lanczos."""
    model: Sha256 | None = None
    """The upscaler model, if `method` is "model"."""
    tile_width: int = 512
    tile_height: int = 512
    blur: int = 8
    """The blur radius in pixels of the masks of tiles."""
    padding: int = 32
    """The width in pixels of the surroundings that are rendered together with each tile."""
    redraw: str = "linear"
    """The order in which tiles are redrawn, one of `REDRAWS`."""
    seams: str = "none"
    """What is redrawn after the tiles, one of `SEAMS`."""
    seams_strength: float = 0.35
    seams_width: int = 64
    """The width of a band that is redrawn if `seams` is "band-pass"."""
    seams_blur: int = 4
    """The blur radius of the masks if `seams` is "half-tile" or "half-tile-intersections"."""
    seams_padding: int = 16

    def drawn_sizes(self, size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """The different sizes (width, height) at which parts of an image of this size are rendered to redraw it."""
        found = []
        if self.redraw != "none":
            found.append(self.tile_size)
        if self.seams == "band-pass":
            band = self.seams_width + 2 * self.seams_padding
            found += [(band, size[1])] if size[0] > self.tile_width else []
            found += [(size[0], band)] if size[1] > self.tile_height else []
        elif self.seams != "none" and (size[0] > self.tile_width or size[1] > self.tile_height):
            found.append((self.tile_width, self.tile_height))
        return tuple(dict.fromkeys(found))

    @property
    def tile_size(self) -> tuple[int, int]:
        """Width and height at which a tile is rendered together with its surroundings."""
        width, height = (-(-(side + self.padding) // _STEP) * _STEP for side in (self.tile_width, self.tile_height))
        return width, height


@dataclass(frozen=True, slots=True)
class UltimateRequest:
    """A request for Ultimate SD upscale. `settings`: everything except the upscaler and the size."""

    upscaler: str
    """A ref, A1111's name for an upscaler, "lanczos", "nearest", or "none" for a plain resize."""
    scale: float | None = None
    """The factor for width and height, after which both are rounded up to multiples of 64."""
    size: str | None = None
    """The exact size of the enlarged image, such as "2048x1536"; used in place of `scale`."""
    settings: UltimateUpscale = UltimateUpscale("none")

    def target(self, source: tuple[int, int], asked: tuple[int | None, int | None]) -> tuple[int, int]:
        """Return the size of the enlarged image; `source`: the input image's size, `asked`: the requested size."""
        if self.size is not None:
            return size_of(self.size)
        if self.scale is None and None not in asked:
            return asked[0] or 0, asked[1] or 0
        scale = SCALE if self.scale is None else self.scale
        width, height = (math.ceil(side * scale / _STEP) * _STEP for side in source)
        return width, height


def ultimate_from(text: str) -> UltimateRequest:
    """Parse "REF", "REF:SCALE" or "REF:WxH", with settings such as "4x-UltraSharp:2,tile=768x768,seams=band-pass".

    Raises: UsageError: `bad-value` (a setting is unknown or has an invalid value), `bad-size`.
    """
    first, *others = _SETTING.split(text)
    parsed = upscale_from(first.strip())
    if parsed.scale is not None and not 0 < parsed.scale <= MOST_TIMES:
        raise UsageError(f"an image can be enlarged by a factor above 0 and up to {MOST_TIMES:g}", code=Cause.BAD_SIZE)
    values: dict[str, Any] = {}
    usual = {field.name: field.default for field in fields(UltimateUpscale)}
    for other in others:
        name, _, value = (part.strip() for part in other.partition("="))
        key = name.casefold().replace("_", "-")
        if key == "tile":
            values["tile_width"], values["tile_height"] = _tile(value)
        elif key in _NAMES:
            plain = key.replace("-", "_")
            values[plain] = _value(name, value, usual[plain])
        else:
            raise UsageError(
                f"Ultimate SD upscale has no setting `{name}`", code=Cause.BAD_VALUE,
                hint=f"the settings of Ultimate SD upscale are tile, {', '.join(_NAMES)}",
            )  # fmt: skip
    return UltimateRequest(parsed.upscaler, parsed.scale, parsed.size, replace(UltimateUpscale("none"), **values))


def _tile(text: str) -> tuple[int, int]:
    """Parse the size of a tile: "768x512", or "768" for a square."""
    return (int(text), int(text)) if text.isdecimal() and len(text) < 6 else size_of(text)


def _value(name: str, text: str, usual: object) -> object:
    if isinstance(usual, str):
        return text.casefold()
    try:
        return int(text) if isinstance(usual, int) else float(text)
    except ValueError as error:
        raise UsageError(f"`{name}={text}`: expected a number", code=Cause.BAD_VALUE) from error


def ultimate_of(request: UltimateRequest, *, model: Sha256 | None) -> UltimateUpscale:
    """Complete a request with the SHA-256 of its upscaler model, if it needs one."""
    return replace(request.settings, method="model" if model else request.upscaler.casefold(), model=model)


def factors(source: tuple[int, int], target: tuple[int, int]) -> list[int]:
    """Return the factors by which the script enlarges an image step by step, before resizing the result to `target`.

    The product of the factors is the ratio of the longer sides, rounded up to an integer divisible by 2 or 3.
    """
    whole = math.ceil(max(target) / max(source))
    if whole == 1:
        return []
    while not any(whole % each == 0 for each in (4, 3, 2)):
        whole += 1
    found: list[int] = []
    while (rest := whole // math.prod(found)) > 1:
        divisor = next((each for each in (4, 3, 2) if rest % each == 0), 0)
        if not divisor:
            break  # the script fails if a factor other than 4, 3 and 2 remains
        found.append(divisor)
    return found


def ultimate_problems(recipe: Any) -> Iterator[str]:
    """Explain why a recipe's Ultimate SD upscale cannot be computed, with one clause for each problem."""
    made, start = recipe.ultimate, recipe.start
    if start is None:
        yield "Ultimate SD upscale needs an input image"
    elif start.mask_sha256 is not None or start.resize_mode != "just resize":
        yield "Ultimate SD upscale needs the resize mode `just resize`, and cannot be combined with a mask"
    if recipe.hires is not None or recipe.tiled is not None or recipe.controls or recipe.noise_slice:
        yield (
            "Ultimate SD upscale cannot be combined with a second pass, a redraw in tiles, ControlNet or a noise slice"
        )
    if recipe.rules == 1 or recipe.flow is not None:
        yield "Ultimate SD upscale needs a Stable Diffusion model, and recipe rules 2 or later"
    yield from _setting_problems(made)
    for width, height in made.drawn_sizes((recipe.width, recipe.height)):
        if width % 8 or height % 8 or max(width, height) > MAX_SIDE:
            yield (
                f"a tile or band with its padding would have {width}x{height} pixels, but both sides must be multiples "
                f"of 8 and at most {MAX_SIDE}"
            )


def _setting_problems(made: UltimateUpscale) -> Iterator[str]:
    for name, value, allowed in (
        ("upscaler", made.method, METHODS), ("redraw", made.redraw, REDRAWS), ("seams", made.seams, SEAMS)
    ):  # fmt: skip
        if value not in allowed:
            yield f"the {name} `{value}` is not one of {', '.join(allowed)}"
    if (made.method == "model") != (made.model is not None):
        yield "Ultimate SD upscale must have an upscaler model if its method is `model`, and none otherwise"
    if made.redraw == "none" and made.seams == "none":
        yield "Ultimate SD upscale must redraw tiles, seams or both"
    if min(made.tile_width, made.tile_height) < _LEAST_TILE or made.tile_width % 8 or made.tile_height % 8:
        size = f"{made.tile_width}x{made.tile_height}"
        yield f"the sides of a tile must be multiples of 8 and at least {_LEAST_TILE}, not {size}"
    if min(made.blur, made.padding, made.seams_blur, made.seams_padding) < 0 or made.seams_width < 1:
        yield "blur and padding cannot be negative, and the bands along the seams must be at least one pixel wide"
    if not 0 < made.seams_strength <= 1:
        yield "the strength of the seams must be above 0 and at most 1"
