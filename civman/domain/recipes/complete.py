"""Make a recipe from a request: options that the request does not set come from the library's files or the defaults."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from civman.domain.digests import Sha256
from civman.domain.recipes.control import ControlUse
from civman.domain.recipes.details import DetailPass
from civman.domain.recipes.enlargement import Enlargement, UpscaleRequest, enlargement_of
from civman.domain.recipes.faces import FaceRestoration
from civman.domain.recipes.freeu_settings import freeu_of
from civman.domain.recipes.noise_sources import rng_of
from civman.domain.recipes.prompt_parts import part_of
from civman.domain.recipes.recipe import (
    RULES,
    SAMPLING,
    CheckpointUse,
    EmbeddingUse,
    Flow,
    Hires,
    HypernetworkUse,
    LoraUse,
    PartUse,
    Recipe,
    RecipeFile,
    Refiner,
    Sampling,
    StartImage,
)
from civman.domain.recipes.recipe_limits import COMFYUI_RESIZES, size_of, upscaler_of
from civman.domain.recipes.reference import EditImage, ReferenceUse
from civman.domain.recipes.render_request import RenderRequest
from civman.domain.recipes.thresholding import thresholding_of
from civman.domain.recipes.tiled import tiled_of
from civman.domain.recipes.tiled_diffusion import tiled_diffusion_of
from civman.domain.recipes.ultimate import ultimate_of
from civman.errors import Cause, UsageError

T = TypeVar("T")
REFINER_AT: Final = 0.8
"""The fraction of the denoising after which a refiner takes over by default, as in A1111."""


@dataclass(frozen=True, slots=True)
class SecondResolved:
    """The values that the library found for the second pass; None means that it uses the first pass's value."""

    prompt: str | None = None
    negative_prompt: str | None = None
    loras: tuple[LoraUse, ...] | None = None
    hypernetworks: tuple[HypernetworkUse, ...] | None = None
    checkpoint: CheckpointUse | None = None


@dataclass(frozen=True, slots=True)
class Resolved:
    """The values that the library found for a request: digests in place of refs, and the checkpoint's properties.

    `sampler` and `schedule` are civman's own names (see `diffusion.sampler_names.parse`); `seed` is used if the request
    contains none.
    """

    checkpoint: Sha256
    native_size: int
    prediction: str
    is_zero_snr: bool
    precision: str
    sampler: str
    schedule: str
    seed: int
    loras: tuple[LoraUse, ...] = ()
    embeddings: tuple[EmbeddingUse, ...] = ()
    hypernetworks: tuple[HypernetworkUse, ...] = ()
    vae: Sha256 | None = None
    upscaler: Sha256 | None = None
    """The model that enlarges the image between the passes."""
    second: SecondResolved = SecondResolved()
    refiner: CheckpointUse | None = None
    is_refiner_same_family: bool = True
    faces: FaceRestoration | None = None
    input_upscaler: Sha256 | None = None
    """The model that enlarges the input image before image-to-image rendering."""
    input_scale: int | None = None
    """The factor of the `input_upscaler` model."""
    last_upscaler: Sha256 | None = None
    """The model that enlarges the finished image."""
    last_scale: int | None = None
    """The factor of the `last_upscaler` model."""
    controls: tuple[ControlUse, ...] = ()
    references: tuple[ReferenceUse, ...] = ()
    edit_images: tuple[EditImage, ...] = ()
    init_image: Sha256 | None = None
    init_size: tuple[int, int] = (0, 0)
    """Width and height of the input image in pixels."""
    mask_image: Sha256 | None = None
    config: str = ""
    files: tuple[RecipeFile, ...] = ()
    parts: tuple[PartUse, ...] = ()
    flow: Callable[[tuple[int, int], int], Flow] | None = None
    """Computes the noise levels from the size and steps of the first pass; None if the model does not predict a flow.
    """
    variant: str = ""
    details: tuple[DetailPass, ...] = ()
    """The detail passes. If size or steps are 0, or the guidance scale is -1, the image's own value is used."""


def complete(request: RenderRequest, found: Resolved) -> Recipe:
    """Build the recipe for a request. Defaults: 20 steps, guidance 7, a square of the checkpoint's native size.

    Raises: UsageError (`bad-recipe`): the values cannot be rendered.
    """
    width = _or(request.width, found.native_size)
    height = _or(request.height, found.native_size)
    steps, _ = steps_of(request)
    start = None
    if found.init_image is not None:
        start = _start(request, found.init_image, found.mask_image)
    hires = _hires(request, width, height, steps, found) if request.hires else None
    tiled = None
    if request.tiled_upscale is not None:
        tiled = tiled_of(request.tiled_upscale, found.init_size, model=found.input_upscaler)
    asked, ultimate = request.ultimate_upscale, None
    if asked is not None:
        ultimate = ultimate_of(asked, model=found.input_upscaler)
        width, height = asked.target(found.init_size, (request.width, request.height))
    larger = None
    if request.init_upscale is not None:
        larger = larger_input(request.init_upscale, found.init_size, found.input_upscaler, found.input_scale)
        if request.width is None and request.height is None and not request.only_masked:
            width, height = (side // 8 * 8 for side in larger.final_size)
    last, rules = hires or tiled, _or(request.rules, RULES)
    size = (last.width, last.height) if last else (width, height)
    if start is not None and start.pastes_region(rules, is_redrawn=bool(last or ultimate)):
        size = larger.final_size if larger else found.init_size
    return Recipe(
        checkpoint=found.checkpoint, prompt=request.prompt, negative_prompt=request.negative_prompt,
        sampler=found.sampler, schedule=found.schedule, steps=steps,
        guidance_scale=float(_or(request.guidance_scale, 7.0)),
        guidance_rescale=float(_or(request.guidance_rescale, 0.0)),
        width=width, height=height, seed=_or(request.seed, found.seed), clip_skip=_or(request.clip_skip, 1),
        count=request.count, batch_size=min(_or(request.batch_size, 1), max(request.count, 1)),
        slots=_slots(request, found),
        rng=rng_of(_or(request.rng, "cpu")), eta_seed_delta=_or(request.eta_seed_delta, 0),
        pad_prompts=_or(request.pad_prompts, False),
        prediction=found.prediction, is_zero_snr=found.is_zero_snr, precision=found.precision,
        vae=found.vae, loras=found.loras, embeddings=found.embeddings, start=start,
        hires=hires,
        config=found.config, files=tuple(sorted(set(found.files), key=lambda file: file.sha256)),
        sampling=sampling(request), rules=rules, odd_sizes=_or(request.odd_sizes, "forge"),
        prompt_rules=_or(request.prompt_rules, ""), **_varied(request),
        emphasis=_or(request.emphasis, "original"), fit_negative=_or(request.fit_negative, False),
        hypernetworks=found.hypernetworks, controls=found.controls, references=found.references,
        edit_images=found.edit_images,
        token_merging=float(_or(request.token_merging, 0.0)),
        thresholding=thresholding_of(_or(request.thresholding, "")),
        skip_negative_below=float(_or(request.skip_negative_below, 0.0)),
        skip_negative_always=bool(request.skip_negative_below and request.skip_negative_always),
        skip_early_guidance=float(_or(request.skip_early_guidance, 0.0)),
        step_rng=rng_of(request.step_rng) if request.step_rng else "", noise_slice=request.noise_slice or "",
        prompt_parts=tuple(map(part_of, request.prompt_parts)),
        negative_parts=tuple(map(part_of, request.negative_parts)),
        freeu=freeu_of(_or(request.freeu, "")), rescales_velocity=_or(request.rescales_velocity, False),
        told_sizes=request.told_sizes or "",
        parts=found.parts, flow=found.flow((width, height), steps) if found.flow else None, variant=found.variant,
        faces=found.faces, tiled=tiled, ultimate=ultimate, refiner=_refiner(request, found),
        tiled_diffusion=tiled_diffusion_of(_or(request.tiled_diffusion, "")), input_upscale=larger,
        details=tuple(
            replace(
                each, width=each.width or width, height=each.height or height, steps=each.steps or steps,
                guidance_scale=float(_or(request.guidance_scale, 7.0)) if each.guidance_scale < 0
                else each.guidance_scale,
            )
            for each in found.details
        ),
        upscale=_upscale(request, size, found),
    )  # fmt: skip


def _slots(request: RenderRequest, found: Resolved) -> int:
    """Return the number of slots; 0 if none or one is requested, or if the request cannot use them."""
    is_in_tiles = any(
        each is not None
        for each in (request.tiled_upscale, request.ultimate_upscale, request.init_upscale, request.tiled_diffusion)
    )
    changes_scales = any(use.keyframes or use.hires_keyframes for use in found.loras)
    second = (found.second.loras, found.second.hypernetworks, found.second.checkpoint)
    changes_model = changes_scales or found.refiner is not None or any(each is not None for each in second)
    return 0 if is_in_tiles or changes_model or found.details or request.slots in (None, 1) else request.slots


def larger_input(
    request: UpscaleRequest, source: tuple[int, int], model: Sha256 | None, scale: int | None
) -> Enlargement:
    """Return the enlargement of an input image of the size `source`; its new size is rounded down to multiples of 8."""
    return enlargement_of(replace(request, multiple=8), source, model=model, model_scale=scale)


def _upscale(request: RenderRequest, size: tuple[int, int], found: Resolved) -> Enlargement | None:
    """Return the enlargement of a finished image; as in A1111, its new size is rounded down to multiples of 8."""
    if request.upscale is None:
        return None
    asked = replace(request.upscale, multiple=8)
    return enlargement_of(asked, size, model=found.last_upscaler, model_scale=found.last_scale)


def steps_of(request: RenderRequest) -> tuple[int, int | None]:
    """Return the number of steps of the first pass, and of the second pass if there is one."""
    steps = max(len(_levels(request.sigmas)) - 1, 1) if request.sigmas else _or(request.steps, 20)
    return steps, _or(request.hires.steps, steps) if request.hires else None


def sampling(request: RenderRequest) -> Sampling:
    """Return the sampler parameters of a request, with defaults for those that the request does not set."""
    return replace(
        SAMPLING, eta=float(_or(request.eta, SAMPLING.eta)), eta_ddim=float(_or(request.eta_ddim, SAMPLING.eta_ddim)),
        noise_scale=float(_or(request.s_noise, SAMPLING.noise_scale)),
        s_churn=float(_or(request.s_churn, SAMPLING.s_churn)), s_tmin=float(_or(request.s_tmin, SAMPLING.s_tmin)),
        s_tmax=float(_or(request.s_tmax, SAMPLING.s_tmax)),
        drop_penultimate=_or(request.drop_penultimate, False), half_levels=_or(request.half_levels, False),
        program=_or(request.sampling_rules, SAMPLING.program), sigmas=_levels(request.sigmas),
    )  # fmt: skip


def _levels(text: str | None) -> tuple[float, ...]:
    """Parse noise levels. Raises: UsageError (`bad-value`): one of them is not a number."""
    try:
        return tuple(float(word) for word in text.split(",")) if text else ()
    except ValueError as error:
        raise UsageError(
            f"`{text}` is not a list of noise levels", hint="separate the levels with commas, such as 14.6,5.1,1.2,0",
            code=Cause.BAD_VALUE,
        ) from error  # fmt: skip


def _varied(request: RenderRequest) -> dict[str, Any]:
    """Build the recipe's entries for variation seed and seed resize.

    They are 0 if they have no effect.
    """
    strength = float(_or(request.variation_strength, 0.0))
    width, height = size_of(request.seed_resize) if request.seed_resize else (0, 0)
    return {
        "variation_seed": _or(request.variation_seed, 0) if strength else 0, "variation_strength": strength,
        "seed_resize_width": width, "seed_resize_height": height,
    }  # fmt: skip


def _start(request: RenderRequest, image: Sha256, mask: Sha256 | None) -> StartImage:
    blur = 0 if request.resize_mode in COMFYUI_RESIZES else 4
    return StartImage(
        image, float(_or(request.strength, 0.75)), mask, _or(request.mask_blur, blur),
        mask_channel=_or(request.mask_channel, "").replace("grey", ""), grow_mask=request.grow_mask,
        resize_mode=_or(request.resize_mode, "just resize"), masked_content=_or(request.masked_content, "original"),
        only_masked=_or(request.only_masked, False), padding=_or(request.padding, 32),
        conditioning_weight=float(_or(request.conditioning_weight, 1.0)),
        noise_multiplier=float(_or(request.noise_multiplier, 1.0)),
    )  # fmt: skip


def _refiner(request: RenderRequest, found: Resolved) -> Refiner | None:
    if found.refiner is None:
        return None
    # without a second pass there is nothing to choose: use the default
    passes = _or(request.refiner_passes, "second") if request.hires else "second"
    return Refiner(
        found.refiner, float(_or(request.refiner_at, REFINER_AT)), _or(request.refiner_by_steps, False), passes,
        found.is_refiner_same_family,
    )  # fmt: skip


def _hires(request: RenderRequest, width: int, height: int, steps: int, found: Resolved) -> Hires:
    asked, model, second = request.hires, found.upscaler, found.second
    assert asked is not None
    trim = size_of(asked.trim) if asked.trim else (0, 0)
    scale = _or(asked.scale, 2.0)
    larger = int(width * scale) // 8 * 8, int(height * scale) // 8 * 8
    # if only one side is given, keep the aspect ratio, as A1111's "Hires resize" does for a side of 0
    if asked.width and not asked.height:
        larger = asked.width, asked.width * height // width // 8 * 8
    elif asked.height and not asked.width:
        larger = asked.height * width // height // 8 * 8, asked.height
    return Hires(
        width=asked.width or larger[0],
        height=asked.height or larger[1],
        steps=_or(asked.steps, steps),
        strength=float(_or(asked.strength, 0.7)),
        upscaler="model" if model else upscaler_of(asked.upscaler),
        model=model,
        trim_width=trim[0],
        trim_height=trim[1],
        stretches=asked.trim is not None,
        # as in A1111, the second pass merges as many tokens as the first pass unless it has a ratio of its own
        token_merging=float(_or(request.token_merging, 0.0) if asked.token_merging is None else asked.token_merging),
        seed=asked.seed,
        guidance_scale=None if asked.guidance_scale is None else float(asked.guidance_scale),
        sampler=asked.sampler or "",
        schedule=asked.schedule or "",
        resize=asked.resize or "",
        prompt=second.prompt,
        negative_prompt=second.negative_prompt,
        loras=second.loras,
        hypernetworks=second.hypernetworks,
        checkpoint=second.checkpoint,
    )


def _or(value: T | None, usual: T) -> T:
    return usual if value is None else value
