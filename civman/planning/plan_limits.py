"""Checks and fills in values that depend on the checkpoint, and estimates the memory of a render."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from civman.diffusion import sampler_names, samplers, sampling_plan
from civman.domain.recipes.recipe import Recipe, RenderRequest
from civman.domain.recipes.recipe_limits import COMFYUI_CROP, COMFYUI_RESIZES
from civman.errors import CannotRender, Cause, UsageError
from civman.planning.checkpoint_facts import Checkpoint
from civman.planning.few_steps import few_steps_defaults, few_steps_notice
from civman.planning.find_files import Found
from civman.planning.input_pictures import InputPicture, cropped, size_like
from civman.planning.plan_stages import FurtherCheckpoints

_INPAINTING: Final = 9
"""The number of input channels of an inpainting checkpoint's UNet."""
_XL_LAYERS: Final = 12
"""The number of layers of SDXL's smaller text encoder."""


def within_limits(
    request: RenderRequest, checkpoint: Checkpoint, pictures: Sequence[InputPicture]
) -> tuple[RenderRequest, tuple[str, ...]]:
    """Fill in the values of a request that depend on the checkpoint or the input image.

    Returns the request and notices for the user.
    """
    notices: tuple[str, ...] = ()
    if checkpoint.family.needs_picture and not pictures:
        raise CannotRender(
            "a refiner checkpoint can render only from an input image",
            hint="pass the input image with --init",
            code=Cause.NEEDS_PICTURE,
        )
    is_open = request.width is None and request.height is None
    is_open = is_open and request.tiled_upscale is None and request.ultimate_upscale is None
    if is_open and request.init_upscale is None and pictures and not request.only_masked:
        width, height = size_like(pictures[0], checkpoint.native_size)
        request = replace(request, width=width, height=height)
    if pictures and request.resize_mode == COMFYUI_CROP and request.init_upscale is None:
        request = cropped(request, pictures[0])
    hires = request.hires
    if not checkpoint.family.merges_tokens and (request.token_merging or (hires and hires.token_merging)):
        words = f"token merging has no effect on {checkpoint.title}, which has no attention at full resolution"
        notices = (*notices, words)
        hires = replace(hires, token_merging=None) if hires else None
        request = replace(request, token_merging=None, hires=hires)
    if request.told_sizes and not checkpoint.family.is_xl:
        notices = (*notices, f"--told-sizes has no effect with {checkpoint.title}, which has no size conditioning")
        request = replace(request, told_sizes=None)
    skip, layers = request.clip_skip, checkpoint.clip_layers
    if checkpoint.family.is_xl and request.emphasis == "comfyui":
        # for SDXL, ComfyUI uses the second-to-last layer of the text encoders unless a node selects another layer
        layers, skip = _XL_LAYERS, 2 if skip is None else skip
        request = replace(request, clip_skip=skip)
    if skip is not None and skip != 1:
        if layers is None:
            words = f"clip skip has no effect on {checkpoint.title}, whose text encoders use a fixed layer"
            notices = (*notices, words)
            request = replace(request, clip_skip=1)
        elif not 1 <= skip <= layers:
            raise UsageError(
                f"clip skip must be between 1 and {layers} (the text encoder's layers), not {skip}",
                code=Cause.CLIP_SKIP, clip_skip=skip, layers=layers,
            )  # fmt: skip
    return request, notices


def require_encoder(recipe: Recipe, checkpoint: Checkpoint, further: FurtherCheckpoints) -> None:
    """Check that the VAE has an encoder if the recipe needs one. Raises: CannotRender (`missing-part`)."""
    rereads = recipe.hires is not None and not recipe.hires.upscaler.startswith("latent")
    second = further.second.facts if further.second is not None else checkpoint
    reads_pictures = recipe.start is not None or bool(recipe.details) or bool(recipe.edit_images)
    starts = reads_pictures and not checkpoint.vae_reads_pictures
    if starts or (rereads and not second.vae_reads_pictures):
        raise CannotRender(
            "the VAE has only a decoder, so it cannot encode the input image",
            hint="choose another VAE with --vae" + (", or a latent upscaler" if recipe.start is None else ""),
            code=Cause.MISSING_PART, part="vae",
        )  # fmt: skip


def require_channels(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Check that the UNet accepts the input image as the recipe prepares it. Raises: CannotRender."""
    follows_comfyui = recipe.start is not None and recipe.start.resize_mode in COMFYUI_RESIZES
    if follows_comfyui and checkpoint.input_channels == _INPAINTING:
        raise CannotRender(
            "ComfyUI's resize modes cannot be used with an inpainting checkpoint, whose UNet takes the mask as "
            "additional input channels",
            hint="use a checkpoint that is not for inpainting, or one of A1111's resize modes", code=Cause.ODD_INPUT,
            channels=checkpoint.input_channels,
        )  # fmt: skip


def require_levels(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Check that the samplers' noise levels can be computed for the recipe's steps. Raises: UsageError."""
    start = samplers.Start(recipe.start.strength) if recipe.start else None
    passes = [(sampler_names.of_recipe(recipe), recipe.steps, start)]
    if recipe.hires:
        start = samplers.Start(recipe.hires.strength, keeps_steps=True)
        passes.append((sampler_names.of_second_pass(recipe), recipe.hires.steps, start))
    for made in recipe.details:
        plain = replace(recipe.sampling, sigmas=())
        one = replace(recipe, details=(), files=(), sampler=made.sampler, schedule=made.schedule, sampling=plain)
        passes.append((sampler_names.of_recipe(one), made.steps, samplers.Start(made.strength)))
    for (sampler, schedule, levels), steps, start in passes:
        if sampler.is_adaptive and recipe.changes_scales:
            raise UsageError(
                f"the scale of a LoRA cannot change over the steps of `{sampler.name}`, which chooses its number of "
                "steps while it runs",
                hint="choose another sampler, or a scale without keyframes",
            )
        sampling_plan.plan(
            sampler, schedule, steps, levels, is_xl=checkpoint.family.is_xl, start=start, rules=recipe.rules
        )


def with_few_steps(request: RenderRequest, found: Found) -> tuple[RenderRequest, str | None]:
    """Fill in the steps and CFG scale if the checkpoint is made for few steps.

    Returns the request, and a notice if a value was filled in.
    """
    steps, cfg, usual = few_steps_defaults(
        found.inspected.label, found.inspected.name, steps=request.steps, cfg=request.guidance_scale
    )
    return replace(request, steps=steps, guidance_scale=cfg), usual


def few_steps_notice_of(recipe: Recipe, found: Found) -> str | None:
    """Return a notice if a checkpoint made for few steps gets unsuitable steps or an unsuitable CFG scale."""
    label, name = found.inspected.label, found.inspected.name
    return few_steps_notice(label, name, steps=recipe.steps, cfg=recipe.guidance_scale)
