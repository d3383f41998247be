"""Redraw an image in tiles, as A1111's script "SD upscale" does: enlarge it, then redraw each tile by img2img.

Neighbouring tiles overlap, and the overlaps are blended. Without batches, tile n has seed `seed` + n.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from civman.domain.digests import Sha256
from civman.domain.recipes.enlargement import METHODS as UPSCALERS
from civman.domain.recipes.enlargement import MOST_TIMES, upscale_from
from civman.domain.recipes.recipe_limits import MAX_SEED, MAX_SIDE, size_of
from civman.errors import Cause, UsageError

OVERLAP: Final = 64
"""A1111's default for the overlap of neighbouring tiles in pixels."""
SCALE: Final = 2.0
"""The factor by which A1111's script "SD upscale" enlarges the image by default."""
METHODS: Final = (*UPSCALERS, "none")


@dataclass(frozen=True, slots=True)
class TiledRequest:
    """A request to redraw the input image in tiles of the size of the rendering."""

    upscaler: str
    """A ref, A1111's name for an upscaler, "lanczos", "nearest", or "none" if the image is not enlarged."""
    scale: float | None = None
    """The factor for width and height, after which both are rounded down to multiples of 8; None: 2."""
    size: str | None = None
    """The exact size to which the whole image is enlarged, such as "2048x1536"; used in place of `scale`."""
    overlap: int = OVERLAP
    batch: int = 1

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale <= MOST_TIMES:
            raise UsageError(
                f"an image can be enlarged by a factor above 0 and up to {MOST_TIMES:g}, not {self.scale:g}",
                code=Cause.BAD_SIZE,
            )


@dataclass(frozen=True, slots=True)
class TiledRedraw:
    """A redraw in tiles in a recipe. `width` and `height`: the size in pixels of the enlarged image.

    Each tile has the recipe's width and height.
    """

    method: str
    """How the image is enlarged: one of `METHODS`."""
    width: int
    height: int
    model: Sha256 | None = None
    """The upscaler model, if `method` is "model"."""
    overlap: int = OVERLAP
    batch: int = 1
    """How many tiles A1111 rendered at once.

    A tile's seed is the image's seed plus the number of the batch plus the tile's number in the batch, both counted
    from 0.
    """

    def seed_of(self, seed: int, number: int) -> int:
        """The seed of tile `number`, counted from 0, if the image has the seed `seed`."""
        return seed + number // self.batch + number % self.batch


def tiled_from(upscaler: str | None, overlap: int | None, batch: int | None) -> TiledRequest | None:
    """Build a request from "REF", "REF:SCALE" or "REF:WxH", such as "4x-UltraSharp:2"; None without an upscaler.

    Raises: UsageError: the factor is out of range, or tile settings are given without an upscaler.
    """
    if upscaler is None:
        if overlap is not None or batch is not None:
            raise UsageError(
                "the overlap and batches of tiles have no effect unless an image is redrawn in tiles",
                hint="add --tiled-upscale, such as --tiled-upscale lanczos:2", code=Cause.BAD_VALUE,
            )  # fmt: skip
        return None
    parsed = upscale_from(upscaler)
    return TiledRequest(
        parsed.upscaler, parsed.scale, parsed.size, OVERLAP if overlap is None else overlap,
        1 if batch is None else batch,
    )  # fmt: skip


def tiled_of(request: TiledRequest, source: tuple[int, int], *, model: Sha256 | None) -> TiledRedraw:
    """Complete a request for an image of the size `source`, in pixels.

    Raises: UsageError (`bad-size`): a size or a factor was given, although the upscaler is "none".
    """
    method = "model" if model is not None else request.upscaler.casefold()
    if method == "none":
        if request.scale is not None or request.size is not None:
            raise UsageError(
                "an image that is redrawn without an upscaler keeps its size", hint="leave out the factor or the size",
                code=Cause.BAD_SIZE,
            )  # fmt: skip
        size = source
    elif request.size is not None:
        size = size_of(request.size)
    else:
        size = enlarged_size(source, SCALE if request.scale is None else request.scale)
    return TiledRedraw(method, *size, model, request.overlap, request.batch)


def enlarged_size(source: tuple[int, int], scale: float) -> tuple[int, int]:
    """The size to which A1111's script enlarges an image of this size: multiples of 8."""
    width, height = (int(side * scale + 1e-6) // 8 * 8 for side in source)
    return width, height


def tile_count(made: TiledRedraw, tile: tuple[int, int]) -> int:
    """The number of tiles of this size (width, height) in one image."""
    across, down = (
        -(-(length - made.overlap) // (side - made.overlap))
        for length, side in zip((made.width, made.height), tile, strict=True)
    )
    return max(across, 1) * max(down, 1)


def tiled_problems(recipe: Any) -> Iterator[str]:
    """Explain why a recipe's redraw in tiles cannot be computed, with one clause for each problem."""
    made = recipe.tiled
    if recipe.start is None:
        yield "only an input image can be redrawn in tiles"
    elif recipe.start.mask_sha256 is not None or recipe.start.resize_mode != "just resize":
        yield "a redraw in tiles needs the resize mode `just resize`, and cannot be combined with a mask"
    if recipe.hires is not None or recipe.controls or recipe.noise_slice or recipe.rules == 1:
        yield "a redraw in tiles cannot be combined with a second pass, ControlNet, a noise slice or recipe rules 1"
    if made.method not in METHODS:
        yield f"the upscaler `{made.method}` is not one of {', '.join(METHODS)}"
    if (made.method == "model") != (made.model is not None):
        yield "a redraw in tiles must have an upscaler model if its method is `model`, and none otherwise"
    if made.batch < 1:
        yield "the batch size of a redraw in tiles must be at least 1"
    if made.batch > 1 and recipe.variation_strength:
        yield "tiles can be rendered in batches or with a variation seed, but not both"
    if not 0 <= made.overlap < min(recipe.width, recipe.height):
        yield f"tiles of {recipe.width}x{recipe.height} pixels cannot overlap by {made.overlap} pixels"
    elif made.width < recipe.width or made.height < recipe.height or max(made.width, made.height) > MAX_SIDE:
        yield (
            f"an image of {made.width}x{made.height} cannot be cut into tiles of {recipe.width}x{recipe.height}: the "
            f"image must not be smaller than a tile, or larger than {MAX_SIDE} pixels"
        )
    elif made.batch >= 1:
        last = made.seed_of(recipe.seed + recipe.count - 1, tile_count(made, (recipe.width, recipe.height)) - 1)
        if last + recipe.eta_seed_delta > MAX_SEED:
            yield f"the seed of the last tile must be at most {MAX_SEED}"
