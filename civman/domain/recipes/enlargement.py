"""How a finished image is enlarged, as requested and in a recipe: the upscaler, the final size and the tiles."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from civman.domain.digests import Sha256
from civman.domain.recipes.recipe_limits import MAX_SIDE, size_of
from civman.errors import Cause, UsageError

TILE: Final = 192
OVERLAP: Final = 8
"""A1111's defaults in pixels: `TILE` is the side of a tile, `OVERLAP` is by how much neighbouring tiles overlap."""
METHODS: Final = ("model", "lanczos", "nearest")
MOST_TIMES: Final = 16.0
"""The largest factor of one enlargement: two passes of a 4x model."""
_LEAST_TILE: Final = 16
_FACTOR: Final = re.compile(r"[0-9]{1,3}(\.[0-9]{1,6})?")
_SIZE: Final = re.compile(r"[0-9]{1,5}[x×][0-9]{1,5}", re.IGNORECASE)
_TILES: Final = re.compile(r"([0-9]{1,5})(?::([0-9]{1,4}))?")


@dataclass(frozen=True, slots=True)
class UpscaleRequest:
    """A requested enlargement: an upscaler (a ref, A1111's name for it, "lanczos" or "nearest") and a size.

    The size is given by `scale` or by `size`; if both are None, the upscaler model's own factor is used.
    """

    upscaler: str
    scale: float | None = None
    """The factor for width and height."""
    size: str | None = None
    """The final size, such as "2048x1536".

    The image is enlarged to cover this size and cropped; 0 for one side keeps the aspect ratio.
    """
    tile: int = TILE
    """The side of a tile in pixels; 0: the image is not cut into tiles."""
    overlap: int = OVERLAP
    multiple: int = 1
    """Both sides of the enlarged image are rounded down to multiples of this number; A1111 uses 8."""

    def __post_init__(self) -> None:
        if self.scale is not None and self.size is not None:
            raise UsageError("an image is enlarged by a factor or to a size, not both", code=Cause.BAD_SIZE)
        if self.scale is not None and not 0 < self.scale <= MOST_TIMES:
            raise UsageError(
                f"an image can be enlarged by a factor above 0 and up to {MOST_TIMES:g}, not {self.scale:g}",
                code=Cause.BAD_SIZE,
            )
        if self.size is not None and not any(size_of(self.size)):
            raise UsageError(f"`{self.size}` is not a size: one side must be above 0", code=Cause.BAD_SIZE)


@dataclass(frozen=True, slots=True)
class Enlargement:
    """An enlargement in a recipe. `width` and `height`: the size in pixels to which the whole image is enlarged."""

    method: str
    """How the image is enlarged: "model" (an upscaler model), "lanczos" or "nearest"."""
    width: int
    height: int
    model: Sha256 | None = None
    """The upscaler model, if `method` is "model"."""
    crop_width: int = 0
    crop_height: int = 0
    """The size in pixels to which the enlarged image is cropped around its centre; 0: it is not cropped."""
    tile: int = TILE
    overlap: int = OVERLAP

    @property
    def final_size(self) -> tuple[int, int]:
        """Width and height of the result in pixels."""
        return self.crop_width or self.width, self.crop_height or self.height


def enlargement_of(
    request: UpscaleRequest, size: tuple[int, int], *, model: Sha256 | None, model_scale: int | None
) -> Enlargement:
    """Complete a request for an image of this size (width, height). `model_scale`: the factor of the upscaler model.

    Raises: UsageError (`bad-size`): the result would be too small or too large.
    """
    method = "model" if model is not None else request.upscaler.casefold()
    times, crop = _times(request, size, model_scale), (0, 0)
    width, height = (max(1, int(side * times + 1e-6)) for side in size)
    if request.size is not None:
        crop = _crop(size_of(request.size), (width, height))
        width, height = max(width, crop[0]), max(height, crop[1])
    if request.multiple > 1:
        width, height = (max(1, side // request.multiple) * request.multiple for side in (width, height))
        crop = (min(crop[0], width), min(crop[1], height))
    made = Enlargement(
        method, width, height, model, *(crop if crop not in ((0, 0), (width, height)) else (0, 0)), request.tile,
        request.overlap,
    )  # fmt: skip
    for problem in enlargement_problems(made):
        raise UsageError(
            f"an image of {size[0]}x{size[1]} cannot be enlarged like this: {problem}", code=Cause.BAD_SIZE
        )
    return made


def _times(request: UpscaleRequest, size: tuple[int, int], model_scale: int | None) -> float:
    if request.size is not None:
        times = max(wanted / side for wanted, side in zip(size_of(request.size), size, strict=True))
        if times > MOST_TIMES:
            raise UsageError(
                f"{size[0]}x{size[1]} cannot be enlarged to {request.size}: that is more than {MOST_TIMES:g} times",
                code=Cause.BAD_SIZE,
            )
        return times
    times = request.scale if request.scale is not None else model_scale or 0
    if not times:
        raise UsageError(
            f"enlarging with {request.upscaler} needs a factor or a size",
            hint="pass --scale 2, or --size 2048x1536", code=Cause.BAD_SIZE,
        )  # fmt: skip
    return times


def _crop(wanted: tuple[int, int], whole: tuple[int, int]) -> tuple[int, int]:
    """Return the size of the part to keep; a side that was requested as 0 is kept whole."""
    return wanted[0] or whole[0], wanted[1] or whole[1]


def enlargement_problems(made: Any) -> Iterator[str]:
    """Explain why an enlargement cannot be computed, with one clause for each problem."""
    if made.method not in METHODS:
        yield f"the upscaler `{made.method}` is not one of {', '.join(METHODS)}"
    if (made.method == "model") != (made.model is not None):
        yield "an enlargement must have an upscaler model if its method is `model`, and none otherwise"
    if min(made.width, made.height) < 1 or max(made.width, made.height) > MAX_SIDE:
        yield f"{made.width}x{made.height} is not a size: each side can have 1 to {MAX_SIDE} pixels"
    if bool(made.crop_width) != bool(made.crop_height) or not (
        0 <= made.crop_width <= made.width and 0 <= made.crop_height <= made.height
    ):
        yield "the part that is kept must lie within the enlarged image"
    if made.tile and not _LEAST_TILE <= made.tile <= MAX_SIDE:
        yield f"the side of a tile must be {_LEAST_TILE} to {MAX_SIDE} pixels, or 0 for no tiles"
    if not 0 <= made.overlap <= max(made.tile // 2, 0) and made.tile:
        yield "tiles can overlap by at most half of their side"


def tiles_from(text: str) -> tuple[int, int]:
    """Parse "TILE" or "TILE:OVERLAP" in pixels, such as "512:32". Raises: UsageError (`bad-value`)."""
    found = _TILES.fullmatch(text.strip())
    tile = int(found[1]) if found else -1
    overlap = int(found[2]) if found and found[2] else min(OVERLAP, max(tile, 0) // 2)
    if tile != 0 and not (_LEAST_TILE <= tile <= MAX_SIDE and overlap * 2 <= tile):
        raise UsageError(
            f"`{text}` is not a tile size: expected pixels, such as 512 or 512:32 with the overlap, or 0 for no tiles",
            code=Cause.BAD_VALUE,
        )
    return tile, overlap


def upscale_from(text: str) -> UpscaleRequest:
    """Parse "REF", "REF:SCALE" or "REF:WxH", such as "4x-UltraSharp:2". Raises: UsageError (`bad-size`)."""
    ref, colon, rest = text.rpartition(":")
    if colon and ref and _FACTOR.fullmatch(rest):
        return UpscaleRequest(ref, scale=float(rest))
    if colon and ref and _SIZE.fullmatch(rest):
        return UpscaleRequest(ref, size=rest)
    return UpscaleRequest(text)


def factor_of(made: Enlargement, size: tuple[int, int]) -> float:
    """The factor by which an image of this size was enlarged, with the fewest digits that give the same result."""
    times = max(made.width / size[0], made.height / size[1])
    for digits in range(5):
        found = round(times, digits)
        if all(int(side * found + 1e-6) == done for side, done in zip(size, (made.width, made.height), strict=True)):
            return found
    return round(times, 4)
