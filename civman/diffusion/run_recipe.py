"""Computes a recipe's images from a loaded model and encoded prompts.

`recipe_job` renders one batch. Image n depends only on seed + n, not on the other images of its batch (except for the
last bit, see `Recipe.batch_size`).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from civman.diffusion import second_pass, unet_calls
from civman.diffusion.control_models import ControlModel
from civman.diffusion.denoiser import Prompts
from civman.diffusion.environment import deterministic
from civman.diffusion.freed_unet import freed
from civman.diffusion.guard import memory_errors
from civman.diffusion.hypernetworks import Hypernetwork, acting
from civman.diffusion.loader import LoadedModel
from civman.diffusion.pixels import Picture
from civman.diffusion.recipe_job import NO_INPUTS, RecipeJob, Restore
from civman.diffusion.recipe_job import Inputs as Inputs
from civman.diffusion.reference_pictures import ActiveReference, Reference
from civman.diffusion.skip_sizes import doubled_then_resized
from civman.diffusion.stage_model import StageModel, Stages, one_model
from civman.diffusion.unet_calls import Calls
from civman.domain.events import OnEvent, ignore
from civman.domain.recipes.recipe import Recipe
from civman.domain.recipes.stages import Stage, stage_recipe
from civman.errors import Cause, UsageError

T = TypeVar("T")


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
    """Render the recipe's images and return them in the order of their seeds.

    Args:
        recipe: what to render; the caller must have checked that the files match the recipe's digests.
        model: the recipe's checkpoint, with the adapters already merged.
        prompt: the recipe's prompts, encoded by this model's text encoders.
        inputs: the images that `recipe.start` refers to.
        hires_prompt: the prompts of the second pass, if they differ from `prompt`.
        on_event: called with a `Step` after each sampling step.

    Raises:
        CannotRender: an output is not a valid image, memory ran out, or the model cannot do what the recipe needs.
        UsageError: unknown sampler, or the recipe has a start image but `inputs` does not.
    """
    stages = one_model(model, prompt, hires_prompt)
    return [picture for batch in iterate(recipe, stages, inputs=inputs, on_event=on_event) for picture in batch]


def job_of(
    recipe: Recipe,
    stages: Stages,
    *,
    inputs: Inputs = NO_INPUTS,
    on_event: OnEvent = ignore,
    keeps_noise: bool = False,
    upscale: second_pass.Upscale | None = None,
    controlnets: Sequence[ControlModel] = (),
    restore: Restore | None = None,
    references: Sequence[Reference] = (),
    edit_images: Sequence[Tensor] = (),
) -> RecipeJob:
    """Return a job that renders the recipe's batches one at a time.

    It takes the arguments of `iterate` and raises the same errors.
    """
    if recipe.hires is not None and recipe.hires.model is not None and upscale is None:
        raise UsageError("the recipe uses an upscaler model, but no upscaler was passed", code=Cause.NO_UPSCALER)
    if recipe.enlarged_input is not None:
        raise ValueError("render a redraw in tiles with `redraw_in_tiles` or `ultimate_upscale` instead")
    job = RecipeJob(recipe, stages, inputs, on_event, keeps_noise=keeps_noise)
    if not len(recipe.controls) == len(controlnets) == len(inputs.controls):
        raise ValueError("the recipe's ControlNets or their control images were not passed")
    job.upscale, job.controls = upscale, tuple(zip(controlnets, recipe.controls, inputs.controls, strict=True))
    if len(recipe.references) != len(references):
        raise ValueError("the recipe's reference pictures were not passed")
    uses = zip(references, recipe.references, strict=True)
    job.references = [ActiveReference(reference, use) for reference, use in uses if use.weight]
    if len(recipe.edit_images) != len(edit_images):
        raise ValueError("the latents of the recipe's reference images were not passed")
    job.edit_images = edit_images
    if (recipe.faces is None) != (restore is None):
        raise ValueError("face models were passed although the recipe restores no faces, or the reverse")
    job.restore = restore
    return job


def iterate(recipe: Recipe, stages: Stages, **options: Any) -> Iterator[list[Picture]]:
    """Render like `render`, but yield each batch as soon as it is finished, so that its images can be saved.

    `stages` prepares the models of the recipe's stages one after another, again for each batch. `options` are the
    further arguments of `job_of`. `keeps_noise`: if an image is nothing but noise, add a note to it instead of raising
    CannotRender (`no-structure`).
    """
    if recipe.slots:
        raise ValueError("render a recipe that has slots with `run_in_slots` instead")
    job = job_of(recipe, stages, **options)
    size = 1 if job.goes_one_by_one else recipe.batch_size
    for first in range(0, recipe.count, size):
        seeds = [recipe.seed + first + i for i in range(min(size, recipe.count - first))]
        with _Entered(recipe, stages) as entered:
            job.stages = entered
            made = unet_calls.run(job.batch(first, seeds), entered.unet)
        # yield outside the `with` block, so that the caller's code does not run with torch's settings for rendering
        yield made


def run_in_slots(
    recipe: Recipe,
    model: LoadedModel,
    images: Iterator[Calls[T]],
    *,
    hypernetworks: Sequence[tuple[Hypernetwork, float]] = (),
) -> Iterator[T]:
    """Render images of several recipes side by side, as many as `recipe` has slots; yield each when it is finished.

    `images`: generators such as `RecipeJob.batch` with a single seed, each from its own job; when a slot is free, the
    next generator is taken. `recipe`: any of the recipes, which must all make the same changes to the UNet (see
    `computing`).
    """
    _require_hypernetworks(recipe, hypernetworks)
    return unet_calls.run_in_slots(images, model.unet, recipe.slots, lambda: computing(recipe, model, hypernetworks))


def _require_hypernetworks(recipe: Recipe, hypernetworks: Sequence[tuple[Hypernetwork, float]]) -> None:
    if len(recipe.hypernetworks) != len(hypernetworks):
        raise ValueError("the recipe's hypernetworks were not passed")


class _Entered:
    """Prepares the models of stages and applies the recipe's changes to their UNets, one model at a time."""

    def __init__(self, recipe: Recipe, stages: Stages) -> None:
        self._recipe, self._stages = recipe, stages
        self._stack = ExitStack()
        self._now: StageModel | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._now = None
        return self._stack.__exit__(kind, error, trace)

    def __call__(self, stage: Stage) -> StageModel:
        """Prepare the model of a stage and apply the recipe's changes to its UNet."""
        self._now = None
        self._stack.close()  # undo the changes to the model of the previous stage
        found = self._now = self._stages(stage)
        _require_hypernetworks(stage_recipe(self._recipe, stage), found.hypernetworks)
        self._stack.enter_context(computing(self._recipe, found.model, found.hypernetworks))
        return found

    def unet(self) -> Any:
        """The UNet of the current stage."""
        assert self._now is not None
        return self._now.model.unet


@contextmanager
def computing(
    recipe: Recipe, model: LoadedModel, hypernetworks: Sequence[tuple[Hypernetwork, float]]
) -> Iterator[None]:
    """Inside this context, compute deterministically and with the recipe's changes to the UNet.

    Out-of-memory errors are converted to CannotRender.
    """
    odd = doubled_then_resized(model.unet) if recipe.odd_sizes == "a1111" else nullcontext()
    changed = freed(model.unet, recipe.freeu)
    with ExitStack() as stack:
        for each in (
            torch.no_grad(), deterministic(model.device), memory_errors("computing the image"), odd,
            acting(model.unet, hypernetworks), changed,
        ):  # fmt: skip
            stack.enter_context(each)
        yield
