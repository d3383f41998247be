"""Enlarges an image and redraws it area by area, as the script "Ultimate SD upscale" for A1111 does.

Each area is inpainted, with its surroundings visible, in the result of the previous areas. The areas are the tiles and
then, if the recipe requests them, areas along the tiles' borders: bands, tiles shifted by half, corners.

Source: Coyote-A/ultimate-upscale-for-automatic1111.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from civman.diffusion.environment import deterministic
from civman.diffusion.guard import memory_errors
from civman.diffusion.pixels import Picture, Pixels, picture_of
from civman.diffusion.recipe_job import Inputs
from civman.diffusion.run_recipe import iterate
from civman.diffusion.stage_model import Stages
from civman.diffusion.tiled_redraw import StepsOfTile
from civman.diffusion.upscaler_models import AnyUpscaler
from civman.diffusion.upscaler_tiles import A1111, Tiling, enlarge, scaled
from civman.domain.events import OnEvent, Step
from civman.domain.recipes.recipe import Recipe, StartImage
from civman.domain.recipes.ultimate import UltimateUpscale, factors

_SIDE = 256
"""The width and height in pixels of Pillow's gradient images."""


@dataclass(frozen=True, slots=True)
class Area:
    """An area to inpaint: its mask (H, W) uint8, the size at which it is rendered, and its inpainting settings."""

    mask: Pixels
    size: tuple[int, int]
    blur: int
    padding: int
    strength: float


def ultimate_upscale(
    recipe: Recipe, stages: Stages, *, inputs: Inputs, upscaler: AnyUpscaler | None, on_event: OnEvent, **options: Any
) -> Iterator[list[Picture]]:  # fmt: skip
    """Render a recipe that has `ultimate` set, yielding a list with one image as soon as the image is finished.

    `upscaler`: the model that enlarges the input image. `stages` and `options` are as in `run_recipe.iterate`.
    """
    made, start, size = recipe.ultimate, recipe.start, (recipe.width, recipe.height)
    assert made is not None
    assert start is not None
    assert inputs.image is not None

    def tell(done: int, tiles: int) -> None:
        on_event(Step("render", done, tiles, 1, 1, recipe.count, "upscale"))

    with deterministic(), memory_errors("upscaling"):
        tiling = Tiling(A1111.tile, A1111.overlap, tell)
        begun = np.asarray(_enlarged(Image.fromarray(inputs.image), made.method, size, upscaler, tiling))
    count = sum(1 for _ in areas(made, size, start.strength))
    for first in range(recipe.count):
        pixels, notes, decoded_in = begun, dict[str, None](), ""
        for number, area in enumerate(areas(made, size, start.strength)):
            # leave out the upscaler and the list of files, which an area's recipe does not need
            one = replace(
                recipe, ultimate=None, upscale=None, files=(), seed=recipe.seed + first, count=1, batch_size=1,
                width=area.size[0], height=area.size[1], start=_masked(start, area),
            )  # fmt: skip
            told = StepsOfTile(on_event, number, count, first + 1, recipe.count)
            given = Inputs(np.ascontiguousarray(pixels), area.mask)
            [[drawn]] = iterate(one, stages, inputs=given, on_event=told, **options)
            pixels, decoded_in = drawn.pixels, drawn.decoded_in
            notes |= dict.fromkeys(drawn.notes)
        yield [picture_of(pixels, seed=recipe.seed + first, decoded_in=decoded_in, notes=tuple(notes))]


def _masked(start: StartImage, area: Area) -> StartImage:
    """Return the settings of the input image for an area.

    The mask is not stored in a file, so `mask_sha256` only shows that there is a mask.
    """
    return replace(
        start, mask_sha256=start.sha256, strength=area.strength, mask_blur=area.blur, padding=area.padding,
        only_masked=True, masked_content="original",
    )  # fmt: skip


def _enlarged(image: Any, method: str, size: tuple[int, int], upscaler: AnyUpscaler | None, tiling: Tiling) -> Any:
    """Enlarge a Pillow image by whole factors, then resize it to `size` with Lanczos."""
    for factor in factors(image.size, size) if method != "none" else ():
        run = None if upscaler is None else lambda each, width, height: enlarge(each, upscaler, width, height, tiling)
        image = scaled(image, factor, method, run)
    return image.resize(size, Image.Resampling.LANCZOS)


def areas(made: UltimateUpscale, size: tuple[int, int], strength: float) -> Iterator[Area]:
    """Yield the areas of an image of this size in the order in which they are redrawn.

    `strength`: the denoising strength for tiles.
    """
    across, down = -(-size[0] // made.tile_width), -(-size[1] // made.tile_height)
    for column, row in _ordered(across, down, made.redraw):
        left, top = column * made.tile_width, row * made.tile_height
        mask = Image.new("L", size)
        # as in the script, a tile's mask is one pixel larger than the tile, because Pillow includes the right and
        # bottom edges
        ImageDraw.Draw(mask).rectangle((left, top, left + made.tile_width, top + made.tile_height), fill="white")
        yield Area(np.asarray(mask), made.tile_size, made.blur, made.padding, strength)
    if made.seams == "band-pass":
        yield from _bands(made, size, across, down)
    elif made.seams != "none":
        yield from _half_tiles(made, size, across, down)


def _ordered(across: int, down: int, redraw: str) -> list[tuple[int, int]]:
    """Return the columns and rows of the tiles in the order in which they are redrawn."""
    found = [] if redraw == "none" else [(column, row) for row in range(down) for column in range(across)]
    return sorted(found, key=lambda each: sum(each) % 2) if redraw == "chess" else found


def _bands(made: UltimateUpscale, size: tuple[int, int], across: int, down: int) -> Iterator[Area]:
    """Yield bands along the borders between columns (over the full height), then between rows (over the full width)."""
    width, band = made.seams_width, made.seams_width + 2 * made.seams_padding
    mirrored = _mirrored(_SIDE, _SIDE)
    for column in range(1, across):
        shade = mirrored.rotate(90).resize((width, size[1]), Image.Resampling.BICUBIC)
        mask = _pasted(shade, (column * made.tile_width - width // 2, 0), size)
        yield Area(mask, (band, size[1]), 0, made.seams_padding, made.seams_strength)
    for row in range(1, down):
        shade = mirrored.resize((size[0], width), Image.Resampling.BICUBIC)
        mask = _pasted(shade, (0, row * made.tile_height - width // 2), size)
        yield Area(mask, (size[0], band), 0, made.seams_padding, made.seams_strength)


def _half_tiles(made: UltimateUpscale, size: tuple[int, int], across: int, down: int) -> Iterator[Area]:
    """Yield tiles centred on the borders between rows, then between columns, then (optionally) on the corners."""
    wide, high = made.tile_width, made.tile_height

    def area(shade: Any, column: int, row: int, moved: tuple[bool, bool], padding: int) -> Area:
        place = column * wide + moved[0] * (wide // 2), row * high + moved[1] * (high // 2)
        return Area(_pasted(shade, place, size), (wide, high), made.seams_blur, padding, made.seams_strength)

    between_rows, gradient = _mirrored(wide, high), Image.linear_gradient("L")
    between_columns = Image.new("L", (wide, high))
    for turn, left in ((90, 0), (270, wide // 2)):
        half = gradient.rotate(turn).resize((wide // 2, high), Image.Resampling.BICUBIC)
        between_columns.paste(half, (left, 0))
    for row in range(down - 1):
        for column in range(across):
            yield area(between_rows, column, row, (False, True), made.seams_padding)
    for row in range(down):
        for column in range(across - 1):
            yield area(between_columns, column, row, (True, False), made.seams_padding)
    if made.seams == "half-tile-intersections":
        corner = ImageOps.invert(Image.radial_gradient("L").resize((wide, high), Image.Resampling.BICUBIC))
        for row in range(down - 1):
            for column in range(across - 1):
                yield area(corner, column, row, (True, True), 0)


def _mirrored(width: int, height: int) -> Any:
    """Return a gradient from black at the top to white in the middle and back to black at the bottom."""
    gradient, whole = Image.linear_gradient("L"), Image.new("L", (width, height))
    for turn, top in ((0, 0), (180, height // 2)):
        whole.paste(gradient.rotate(turn).resize((width, height // 2), Image.Resampling.BICUBIC), (0, top))
    return whole


def _pasted(shade: Any, place: tuple[int, int], size: tuple[int, int]) -> Pixels:
    mask = Image.new("L", size)
    mask.paste(shade, place)
    return np.asarray(mask)
