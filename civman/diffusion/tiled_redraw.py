"""Redraws an image in tiles as A1111's script "SD upscale" does: enlarge, cut, redraw each tile by img2img, blend.

Source: A1111 1.2 to 1.10. Tiles have the render size and are spread evenly; the first `overlap` pixels of a tile are
blended linearly with the preceding tile, first within a row and then between rows. Each tile is rounded to 8 bits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from civman.diffusion.environment import deterministic
from civman.diffusion.guard import memory_errors
from civman.diffusion.pixels import Picture, picture_of
from civman.diffusion.recipe_job import Inputs
from civman.diffusion.run_recipe import iterate
from civman.diffusion.stage_model import Stages
from civman.diffusion.upscaler_models import AnyUpscaler
from civman.diffusion.upscaler_tiles import OnTile, lay, starts, upscaled
from civman.domain.events import Event, OnEvent, Step
from civman.domain.recipes.enlargement import Enlargement
from civman.domain.recipes.recipe import Recipe
from civman.domain.recipes.tiled import TiledRedraw


@dataclass(frozen=True, slots=True)
class Grid:
    """The positions of an image's tiles: their left and top edges and their size, in pixels."""

    lefts: tuple[int, ...]
    tops: tuple[int, ...]
    width: int
    height: int
    overlap: int

    @classmethod
    def of(cls, size: tuple[int, int], tile: tuple[int, int], overlap: int) -> "Grid":
        """Spread tiles of the size `tile` evenly over an image of the size `size`, which is at least as large.

        The last tile ends at the image's edge. In A1111, rounding may leave a black line of one pixel at this edge.
        """
        lefts, tops = (
            (*starts(whole, side, overlap)[:-1], whole - side) for whole, side in zip(size, tile, strict=True)
        )
        return cls(lefts, tops, *tile, overlap)

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """The edges of each tile, row by row: left, top, right, bottom."""
        return [
            (left, top, left + self.width, top + self.height) for top in self.tops for left in self.lefts
        ]  # fmt: skip

    def joined(self, tiles: Sequence[Any]) -> Any:
        """Join the Pillow images of all tiles, in the order of `boxes`, to one image."""
        size = self.lefts[-1] + self.width, self.tops[-1] + self.height
        whole, remaining = Image.new("RGB", size), iter(tiles)
        for top in self.tops:
            row = Image.new("RGB", (size[0], self.height))
            for left in self.lefts:
                lay(row, next(remaining), left, self.overlap, is_across=True)
            lay(whole, row, top, self.overlap, is_across=False)
        return whole


def redraw_in_tiles(
    recipe: Recipe, stages: Stages, *, inputs: Inputs, upscaler: AnyUpscaler | None,
    on_event: OnEvent, **options: Any,
) -> Iterator[list[Picture]]:  # fmt: skip
    """Render a recipe that has `tiled` set, yielding a list with one image as soon as the image is finished.

    `upscaler`: the model that enlarges the input image. `stages` and `options` are as in `run_recipe.iterate`.
    """
    tiled = recipe.tiled
    assert tiled is not None
    assert inputs.image is not None

    def tell(done: int, tiles: int) -> None:
        on_event(Step("render", done, tiles, 1, 1, recipe.count, "upscale"))

    with deterministic(), memory_errors("upscaling"):
        image = enlarged(Image.fromarray(inputs.image), tiled, upscaler, tell)
    grid = Grid.of(image.size, (recipe.width, recipe.height), tiled.overlap)
    for first in range(recipe.count):
        drawn: list[Picture] = []
        for number, box in enumerate(grid.boxes):
            seed = tiled.seed_of(recipe.seed + first, number)
            # leave out the upscaler and the list of files, which a tile's recipe does not need
            one = replace(recipe, tiled=None, upscale=None, files=(), seed=seed, count=1, batch_size=1)
            given = Inputs(np.ascontiguousarray(np.asarray(image.crop(box))))
            told = StepsOfTile(on_event, number, len(grid.boxes), first + 1, recipe.count)
            for made in iterate(one, stages, inputs=given, on_event=told, **options):
                drawn += made
        pixels = np.ascontiguousarray(np.asarray(grid.joined([Image.fromarray(each.pixels) for each in drawn])))
        notes = tuple(dict.fromkeys(note for each in drawn for note in each.notes))
        yield [picture_of(pixels, seed=recipe.seed + first, decoded_in=drawn[0].decoded_in, notes=notes)]


def enlarged(image: Any, tiled: TiledRedraw, upscaler: AnyUpscaler | None, on_tile: OnTile) -> Any:
    """Enlarge a Pillow image (RGB) to the size that is then divided into tiles."""
    if tiled.method == "none":
        return image
    return upscaled(image, Enlargement(tiled.method, tiled.width, tiled.height, tiled.model), upscaler, on_tile)


@dataclass(frozen=True, slots=True)
class StepsOfTile:
    """Reports the steps of one tile as steps of the whole image."""

    on_event: OnEvent
    number: int
    tiles: int
    first: int
    count: int

    def __call__(self, event: Event) -> None:
        """Pass on an event; the step of a tile is reported as a step of the whole image."""
        if isinstance(event, Step):
            event = replace(
                event, step=self.number * event.steps + event.step, steps=self.tiles * event.steps, first=self.first,
                count=self.count, preview=None,
            )  # fmt: skip
        self.on_event(event)
