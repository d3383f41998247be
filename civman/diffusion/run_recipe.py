"""Compute a recipe's images from a loaded model and encoded prompts.

What one batch goes through is in `recipe_job`. Image n depends on seed + n only, not on the other images of its batch
(up to the last bit, see `Recipe.batch_size`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch

from civman.diffusion import second_pass, unet_calls
from civman.diffusion.control_models import ControlModel
from civman.diffusion.denoiser import Prompts
from civman.diffusion.environment import deterministic
from civman.diffusion.freed_unet import freed
from civman.diffusion.guard import memory_errors
from civman.diffusion.hypernetworks import Hypernetwork, acting
from civman.diffusion.loader import LoadedModel
from civman.diffusion.pixels import Picture
from civman.diffusion.recipe_job import NO_INPUTS, RecipeJob, Restore, SetScales
from civman.diffusion.recipe_job import Inputs as Inputs
from civman.diffusion.skip_sizes import doubled_then_resized
from civman.domain.events import OnEvent, ignore
from civman.domain.recipes.recipe import Recipe
from civman.errors import Cause, UsageError


@torch.no_grad()
def render(
    recipe: Recipe,
    model: LoadedModel,
    prompt: Prompts,
    *,
    inputs: Inputs = NO_INPUTS,
    hires_prompt: Prompts | None = None,
    on_event: OnEvent = ignore,
) -> list[Picture]:
    """Render the recipe's images and return them in order of their seeds.

    Args:
        recipe: what to render; that its file digests match is the caller's responsibility.
        model: the recipe's checkpoint, with the adapters already merged.
        prompt: the recipe's prompts, encoded by this model's text encoders.
        inputs: the images that `recipe.start` refers to.
        hires_prompt: the conditioning of the second pass, if it is a different one.
        on_event: called with a `Step` after each sampling step.

    Raises:
        CannotRender: an output is not a valid image, memory ran out, or the model cannot do what the recipe needs.
        UsageError: unknown sampler, or the recipe has a start image but `inputs` does not.
    """
    return [picture for batch in iterate(recipe, model, prompt, inputs=inputs, hires_prompt=hires_prompt,
                                         on_event=on_event) for picture in batch]  # fmt: skip


def iterate(
    recipe: Recipe,
    model: LoadedModel,
    prompt: Prompts,
    *,
    inputs: Inputs = NO_INPUTS,
    hires_prompt: Prompts | None = None,
    on_event: OnEvent = ignore,
    keeps_noise: bool = False,
    upscale: second_pass.Upscale | None = None,
    hypernetworks: Sequence[tuple[Hypernetwork, float]] = (),
    controlnets: Sequence[ControlModel] = (),
    restore: Restore | None = None,
    set_scales: SetScales | None = None,
) -> Iterator[list[Picture]]:
    """Render like `render`, but yield each batch as soon as it is finished, so that its images can be saved.

    `keeps_noise`: add a note to an image that is nothing but noise, instead of raising CannotRender (`no-structure`).
    """
    if recipe.hires is not None and recipe.hires.model is not None and upscale is None:
        raise UsageError("the recipe uses an upscaler model, which was not passed", code=Cause.NO_UPSCALER)
    if len(recipe.hypernetworks) != len(hypernetworks):
        raise ValueError("the recipe's hypernetworks were not passed")
    if recipe.enlarged_input is not None:
        raise ValueError("a redraw in tiles is computed by `redraw_in_tiles` or `ultimate_upscale`")
    job = RecipeJob(recipe, model, prompt, hires_prompt or prompt, inputs, on_event, keeps_noise=keeps_noise)
    if not len(recipe.controls) == len(controlnets) == len(inputs.controls):
        raise ValueError("the recipe's ControlNets or their control images were not passed")
    job.upscale, job.controls = upscale, tuple(zip(controlnets, recipe.controls, inputs.controls, strict=True))
    if (recipe.faces is None) != (restore is None):
        raise ValueError("the models that restore faces were not passed, or are not part of the recipe")
    if recipe.changes_scales and set_scales is None:
        raise ValueError("the scales of the recipe's LoRAs change, but nothing was passed that changes them")
    job.restore, job.set_scales = restore, set_scales if recipe.changes_scales else None
    size = 1 if job.goes_one_by_one else recipe.batch_size
    for first in range(0, recipe.count, size):
        seeds = [recipe.seed + first + i for i in range(min(size, recipe.count - first))]
        with torch.no_grad(), deterministic(model.device), computing(recipe, model, hypernetworks):
            made = unet_calls.run(job.batch(first, seeds), model.unet)
        yield made  # yield outside the `with`, so that the caller's code does not run under these torch settings


@contextmanager
def computing(
    recipe: Recipe, model: LoadedModel, hypernetworks: Sequence[tuple[Hypernetwork, float]]
) -> Iterator[None]:
    """Apply the recipe's changes to the UNet itself inside this block, and convert out-of-memory errors."""
    odd = doubled_then_resized(model.unet) if recipe.odd_sizes == "a1111" else nullcontext()
    changed = freed(model.unet, recipe.freeu)
    with memory_errors("computing the image"), odd, acting(model.unet, hypernetworks), changed:
        yield
