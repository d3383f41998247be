"""Translates a recipe into the arguments of a diffusers pipeline call; refuses recipes that no pipeline can render."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from civman.diffusion import sampler_names, samplers, solvers, start_picture, vae_codec
from civman.diffusion.denoiser import Conditioning
from civman.diffusion.noise import PictureNoise
from civman.diffusion.noise_levels import NoiseLevels
from civman.diffusion.run_recipe import Inputs
from civman.diffusion.samplers import Start
from civman.domain.recipes.recipe import Recipe
from civman.domain.recipes.recipe_limits import COMFYUI_RESIZES
from civman.errors import CannotRender, Cause

_HINT = "render the plan with `library.render`"
_LATENT_CHANNELS = 4


def kind_of(recipe: Recipe) -> str:
    """Return the kind of diffusers pipeline that a recipe needs: "txt2img", "img2img" or "inpaint"."""
    if recipe.start is None:
        return "txt2img"
    return "inpaint" if recipe.start.mask_sha256 else "img2img"


def require_drawable(recipe: Recipe) -> None:
    """Check that diffusers' pipelines can render the recipe.

    Raises: CannotRender: the recipe uses a feature that these pipelines lack or implement differently.
    """
    problems = {
        "a second pass (hires)": recipe.hires is not None,
        "a redraw in tiles (SD upscale)": recipe.tiled is not None,
        "an upscale that redraws tiles (Ultimate SD upscale)": recipe.ultimate is not None,
        "denoising in overlapping tiles (Tiled Diffusion)": recipe.tiled_diffusion is not None,
        "an enlarged input image": recipe.input_upscale is not None,
        "a detail pass": bool(recipe.details),
        "a refiner": recipe.refiner is not None,
        "ComfyUI's way to resize an input image": (
            recipe.start is not None and recipe.start.resize_mode in COMFYUI_RESIZES
        ),
        "restored faces": recipe.faces is not None,
        "upscaling of the finished image": recipe.upscale is not None,
        f"the rules of an earlier version of civman (rules {recipe.rules})": (
            recipe.rules == 1 or (recipe.rules == 2 and recipe.is_zero_snr)
        ),
        "A1111's handling of sizes that are not multiples of 64": (
            recipe.odd_sizes == "a1111" and bool(recipe.width % 64 or recipe.height % 64)
        ),
        "prompts that change during the steps or are combined with AND": bool(recipe.prompt_rules),
        "noise levels in half precision": recipe.sampling.half_levels,
        "a dropped noise level (drop_penultimate)": recipe.sampling.drop_penultimate,
        "a LoRA scale that changes over the steps": recipe.changes_scales,
        "a hypernetwork": bool(recipe.hypernetworks),
        "a negative prompt that is cut or extended to the prompt's length": recipe.fit_negative,
        "merged tokens": bool(recipe.token_merging),
        "dynamic thresholding": recipe.thresholding is not None,
        "steps that skip the negative prompt": bool(recipe.skip_negative_below or recipe.skip_early_guidance),
        "a guidance scale below 1": recipe.guidance_scale < 1,
        "noise that is added before each step (s_churn)": recipe.sampling.s_churn > 0,
    }
    for what, is_asked in problems.items():
        if is_asked:
            raise CannotRender(f"the plan uses {what}, which diffusers' pipelines do not support", hint=_HINT,
                               code=Cause.NO_PIPELINE)  # fmt: skip
    require_pipeline_sampler(sampler_names.parse(recipe.sampler, recipe.schedule)[0])


def require_pipeline_sampler(sampler: samplers.Sampler) -> None:
    """Check that diffusers' pipelines can run the sampler.

    Raises: CannotRender: the sampler needs something that these pipelines do not provide.
    """
    if sampler.is_cfgpp or sampler.is_adaptive:
        why = (
            "it needs the model's prediction without guidance"
            if sampler.is_cfgpp
            else "it chooses its number of steps while it runs"
        )
        raise CannotRender(f"diffusers' pipelines cannot run `{sampler.name}`: {why}", hint=_HINT,
                           code=Cause.NO_PIPELINE_SAMPLER)  # fmt: skip


def require_inputs_of(unet: Any, kind: str) -> None:
    """Check that a pipeline of this kind passes the UNet all the inputs that it needs.

    Raises: CannotRender: the checkpoint is for inpainting, but the pipeline does not pass the mask.
    """
    channels = int(unet.config.in_channels)
    if channels != _LATENT_CHANNELS and kind != "inpaint":
        raise CannotRender(
            f"the checkpoint is for inpainting ({channels} input channels), but diffusers' {kind} pipeline provides "
            f"only {_LATENT_CHANNELS} channels",
            hint=f'{_HINT}, or use diffusers\' inpainting with `library.pipeline(plan, "inpaint")`',
            code=Cause.NO_PIPELINE,
        )


def require_own_kind(recipe: Recipe, *, is_xl: bool) -> None:
    """Check that diffusers' pipelines use the recipe's start image and mask as civman does.

    Raises: CannotRender: diffusers uses them in a different way, so the image would differ.
    """
    start = recipe.start
    if start is None:
        return
    if start.mask_sha256:
        raise CannotRender(
            "the plan has a mask, and diffusers' inpainting would give another image than civman's",
            hint=f"{_HINT}, or use diffusers' inpainting with `library.pipeline(plan, \"inpaint\")`",
            code=Cause.NO_PIPELINE,
        )  # fmt: skip
    if recipe.guidance_rescale and not is_xl:
        raise CannotRender(
            "diffusers' img2img pipeline for SD 1 and 2 does not support `guidance_rescale`", hint=_HINT,
            code=Cause.NO_PIPELINE,
        )  # fmt: skip
    _first_step(recipe, is_xl=is_xl)


def embeddings_of(prompt: Conditioning) -> dict[str, Tensor]:
    """Convert an encoded prompt to keyword arguments of a pipeline call.

    `prompt_embeds` and `negative_prompt_embeds` are (1, 77·n, width); SDXL also has `pooled_prompt_embeds` and
    `negative_pooled_prompt_embeds`, (1, projection). All have the text encoders' dtype and device. Pipelines require
    both contexts to have the same length, so the shorter one is repeated as a whole. This does not change the image,
    because attention to a repeated context gives the same result as attention to the context itself. Without a negative
    prompt, its two arguments are left out.
    """
    found = {
        "prompt_embeds": prompt.cond, "negative_prompt_embeds": prompt.uncond,
        "pooled_prompt_embeds": prompt.pooled, "negative_pooled_prompt_embeds": prompt.uncond_pooled,
    }  # fmt: skip
    if prompt.uncond is not None:
        whole = math.lcm(prompt.cond.shape[1], prompt.uncond.shape[1])
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            context = found[name]
            found[name] = context.repeat(1, whole // context.shape[1], 1) if context is not None else None
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def call_of(recipe: Recipe, pipe: Any, prompt: Conditioning, inputs: Inputs) -> dict[str, Any]:
    """Build the keyword arguments with which `pipe` renders the recipe's images, in the order of their seeds.

    Raises: CannotRender: no pipeline can render the images (`require_drawable`, `require_own_kind`), or `pipe` is of
    the wrong kind.
    """
    is_xl = hasattr(pipe, "text_encoder_2")
    require_drawable(recipe)
    require_own_kind(recipe, is_xl=is_xl)
    kind = kind_of(recipe)
    require_inputs_of(pipe.unet, kind)
    if ("Img2Img" in type(pipe).__name__) != (kind == "img2img") or "Inpaint" in type(pipe).__name__:
        raise CannotRender(
            f"the plan needs a pipeline for {kind}, but this is a {type(pipe).__name__}",
            hint="call `library.pipeline` without `kind`",
            code=Cause.NO_PIPELINE,
        )
    seeds = [recipe.seed + n for n in range(recipe.count)]
    call: dict[str, Any] = embeddings_of(prompt) | {
        "num_inference_steps": recipe.steps, "guidance_scale": recipe.guidance_scale,
        "num_images_per_prompt": recipe.count,
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
    }  # fmt: skip
    if recipe.guidance_rescale:
        call["guidance_rescale"] = recipe.guidance_rescale
    shape = (int(pipe.unet.config.out_channels), recipe.height // 8, recipe.width // 8)
    noise = torch.stack([PictureNoise.of_recipe(recipe, seed).start(shape) for seed in seeds])
    if recipe.start is None:
        return call | {
            "width": recipe.width, "height": recipe.height,
            "latents": noise.to(pipe._execution_device, pipe.unet.dtype),  # noqa: SLF001  # the pipeline's device
        }  # fmt: skip
    first, sigma = _first_step(recipe, is_xl=is_xl)
    kept = _start_latents(recipe, pipe, inputs, noise)
    # add the difference between the recipe's noise and torch's noise to the latents, because the pipeline will add
    # torch's noise
    drawn = torch.stack([
        torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=pipe.unet.dtype) for seed in seeds
    ]).float()  # fmt: skip
    image = kept + ((noise * recipe.start.noise_multiplier - drawn) * sigma).to(kept.device)
    # add half a step to the exact fraction, because diffusers rounds down
    strength = min(1.0, (recipe.steps - first + 0.5) / recipe.steps)
    return call | {"image": image, "strength": strength}


def _start_latents(recipe: Recipe, pipe: Any, inputs: Inputs, noise: Tensor) -> Tensor:
    """Encode the start image as latents: (count, 4, h, w) float32."""
    assert recipe.start is not None
    assert inputs.image is not None
    prepared = start_picture.prepare(recipe.start, (recipe.width, recipe.height), inputs.image, None)
    latents = vae_codec.encode(_Where(pipe), prepared.image).latents
    if recipe.start.resize_mode == "just resize (latent upscale)":
        latents = torch.nn.functional.interpolate(latents, size=noise.shape[-2:], mode="bilinear")
    return latents.expand(len(noise), -1, -1, -1)


class _Where:
    """Wraps a pipeline for code that takes a loaded model but needs only its VAE and its device."""

    def __init__(self, pipe: Any) -> None:
        self.vae: Any = pipe.vae
        self.device: torch.device = pipe._execution_device  # noqa: SLF001  # diffusers has no public name for it


def _first_step(recipe: Recipe, *, is_xl: bool) -> tuple[int, float]:
    """Return the index of the first step that A1111 runs in img2img, and the noise level at which it begins.

    Raises: CannotRender: a pipeline would use other noise levels.
    """
    assert recipe.start is not None
    sampler, schedule = sampler_names.parse(recipe.sampler, recipe.schedule)
    levels: NoiseLevels = sampler.levels(is_zero_snr=recipe.is_zero_snr)
    whole, part = (
        samplers.plan(sampler, schedule, recipe.steps, levels, is_xl=is_xl, start=start)
        for start in (None, Start(recipe.start.strength))
    )
    first = whole.steps - part.steps
    is_even = evaluations_per_step(whole, solvers.evaluations(sampler.solver, whole.sigmas)) is not None
    same = whole.sigmas[first:] == part.sigmas and whole.span == part.span and part.picture_scale == 1
    if not same or whole.steps != recipe.steps or part.start_scale != part.sigmas[0] or not is_even:
        raise CannotRender(
            f"diffusers' pipelines cannot start `{sampler.name}` from an input image as A1111 does",
            hint=f"{_HINT}, or use Euler, DPM++ 2M or a similar sampler", code=Cause.NO_PIPELINE_SAMPLER,
        )  # fmt: skip
    return first, part.sigmas[0]


def evaluations_per_step(plan: samplers.Plan, asked: Sequence[float]) -> int | None:
    """Return the number of model evaluations per step, 1 or 2 (the last step may have one); None if it varies.

    `asked`: the noise levels at which the sampler evaluates the model, in order. The first evaluation of each step must
    be at the step's own level.
    """
    for order in (1, 2):
        if plan.steps * order - len(asked) in (0, order - 1) and tuple(asked[::order]) == plan.sigmas[:-1]:
            return order
    return None
