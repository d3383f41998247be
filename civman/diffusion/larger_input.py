"""Enlarges the input image of a recipe before image-to-image rendering."""

from dataclasses import replace

import numpy as np
from PIL import Image

from civman.diffusion.environment import deterministic
from civman.diffusion.guard import memory_errors
from civman.diffusion.recipe_job import Inputs
from civman.diffusion.upscaler_models import AnyUpscaler
from civman.diffusion.upscaler_tiles import upscaled
from civman.domain.events import OnEvent, Step
from civman.domain.recipes.recipe import Recipe


def with_larger_image(inputs: Inputs, recipe: Recipe, upscaler: AnyUpscaler | None, on_event: OnEvent) -> Inputs:
    """Enlarge the input image as `recipe.input_upscale` specifies, if it is set.

    `upscaler` is the upscaler model that this option names.
    """
    made = recipe.input_upscale
    if made is None:
        return inputs
    assert inputs.image is not None

    def tell(done: int, tiles: int) -> None:
        on_event(Step("render", done, tiles, 1, 1, recipe.count, "upscale"))

    with deterministic(), memory_errors("upscaling"):
        image = upscaled(Image.fromarray(inputs.image), made, upscaler, tell)
    return replace(inputs, image=np.ascontiguousarray(np.asarray(image)))
