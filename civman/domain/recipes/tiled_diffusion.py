"""Tiled Diffusion: each evaluation of the UNet is the average of its evaluations on overlapping tiles of the latents.

Source: pkuliyi2015/multidiffusion-upscaler-for-automatic1111 (an extension of A1111).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from civman.domain.recipes.recipe_limits import size_of
from civman.errors import Cause, UsageError

METHODS: Final = ("MultiDiffusion", "Mixture of Diffusers")
"""The extension's two methods: a plain average, and an average whose weights decrease from the middle of each tile."""
_LEAST_TILE: Final = 8
_KEPT: Final = 4
"""The extension limits the overlap to a tile's shorter side minus this number of latent pixels."""


@dataclass(frozen=True, slots=True)
class TiledDiffusion:
    """The settings of Tiled Diffusion in a recipe, for the first pass.

    Sizes are in latent pixels, each 8 image pixels wide.
    """

    method: str
    """How the tiles are averaged: one of `METHODS`."""
    tile_width: int = 96
    tile_height: int = 96
    overlap: int = 48
    """The minimum overlap of neighbouring tiles in latent pixels."""

    def grid(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, ...], tuple[int, ...]]:
        """Divide latents of this size into tiles; return a tile's (width, height), all left edges and all top edges."""
        tile = min(self.tile_width, width), min(self.tile_height, height)
        overlap = max(0, min(self.overlap, min(self.tile_width, self.tile_height) - _KEPT))
        lefts, tops = (
            _starts(whole, side, overlap) for whole, side in zip((width, height), tile, strict=True)
        )  # fmt: skip
        return tile, lefts, tops

    def is_single(self, width: int, height: int) -> bool:
        """Whether a single tile covers latents of this size, so that there is nothing to average."""
        _, lefts, tops = self.grid(width, height)
        return len(lefts) == len(tops) == 1

    def __str__(self) -> str:
        return f"{self.method},tile={self.tile_width}x{self.tile_height},overlap={self.overlap}"


def _starts(whole: int, tile: int, overlap: int) -> tuple[int, ...]:
    """Return where tiles begin along one side: evenly spread, rounded down, with at least this overlap."""
    if tile >= whole:
        return (0,)
    count = -(-(whole - overlap) // (tile - overlap))
    step = (whole - tile) / (count - 1)
    return tuple(min(int(number * step), whole - tile) for number in range(count))


def tiled_diffusion_of(text: str) -> TiledDiffusion | None:
    """Parse a method with settings, such as "multidiffusion" or "mixture,tile=96x64,overlap=32".

    Returns None for "off". Raises: UsageError (`bad-value`, `bad-size`).
    """
    first, *others = (part.strip() for part in text.split(","))
    if first.casefold() in ("", "off") and not others:
        return None
    plain = re.sub("[^a-z]", "", first.casefold())
    method = next((each for each in METHODS if plain and each.casefold().replace(" ", "").startswith(plain)), first)
    found = TiledDiffusion(method)
    for other in others:
        name, _, value = (part.strip() for part in other.partition("="))
        if name.casefold() == "tile":
            width, height = (int(value), int(value)) if value.isdecimal() and len(value) < 6 else size_of(value)
            found = replace(found, tile_width=width, tile_height=height)
        elif name.casefold() == "overlap" and value.isdecimal() and len(value) < 6:
            found = replace(found, overlap=int(value))
        else:
            raise UsageError(
                f"`{other}` is not a setting of Tiled Diffusion",
                hint="write the method and its settings, such as mixture,tile=96x96,overlap=48", code=Cause.BAD_VALUE,
            )  # fmt: skip
    return found


def tiled_diffusion_problems(recipe: Any) -> Iterator[str]:
    """Explain why a recipe's Tiled Diffusion cannot be computed, with one clause for each problem."""
    made = recipe.tiled_diffusion
    if made.method not in METHODS:
        yield f"the method `{made.method[:40]}` of Tiled Diffusion is not one of {', '.join(METHODS)}"
    if min(made.tile_width, made.tile_height) < _LEAST_TILE or made.overlap < 0:
        yield (
            f"the tiles of Tiled Diffusion must have at least {_LEAST_TILE}x{_LEAST_TILE} latent pixels, and their "
            "overlap cannot be negative"
        )
    if recipe.flow is not None:
        yield "Tiled Diffusion works only with Stable Diffusion models"
    if recipe.controls or recipe.enlarged_input is not None:
        yield "Tiled Diffusion cannot be combined with ControlNet, --tiled-upscale or --ultimate-upscale"
    if made.method == METHODS[0] and recipe.sampler.startswith("UniPC"):
        yield "MultiDiffusion does not work with UniPC; choose another sampler or the method `mixture`"
