"""Varies a recipe: turns it back into a request that refers to files by SHA-256, changes fields, and plans it again.

`--set` and the axes of a grid both use this, so they accept the same names and values.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from civman.domain.digests import Sha256
from civman.domain.events import OnEvent, ignore
from civman.domain.recipes.details import detail_from
from civman.domain.recipes.enlargement import UpscaleRequest, factor_of, upscale_from
from civman.domain.recipes.recipe import (
    Hires,
    HiresRequest,
    HypernetworkUse,
    LoraRequest,
    LoraUse,
    Recipe,
    RenderRequest,
)
from civman.domain.recipes.thresholding import text_of
from civman.domain.recipes.tiled import TiledRequest, tiled_from
from civman.domain.recipes.ultimate import UltimateRequest, ultimate_from
from civman.domain.scales import parse_scale_pair
from civman.errors import Cause, UsageError
from civman.index import Index
from civman.planning.find_controls import as_control
from civman.planning.find_details import as_details
from civman.planning.find_edit_images import as_edit_reference
from civman.planning.find_files import Finder
from civman.planning.find_references import as_reference, encoder_parts
from civman.planning.input_pictures import missing_inputs, read_picture
from civman.planning.plan import Conditions, plan
from civman.planning.plan_types import Planned

_SEEDS: Final = 2**32
_ALIASES: Final = {
    "negative": "negative_prompt", "cfg": "guidance_scale", "cfg_rescale": "guidance_rescale",
    "ensd": "eta_seed_delta", "init": "init_image", "mask": "mask_image", "zero_snr": "is_zero_snr",
    "hires_cfg": "hires_guidance_scale", "mask_content": "masked_content", "ngms": "skip_negative_below",
    "skip_early_cfg": "skip_early_guidance", "hires_negative": "hires_negative_prompt",
}  # fmt: skip
_TEXTS: Final = (
    "prompt", "negative_prompt", "checkpoint", "vae", "sampler", "schedule", "rng", "precision", "prediction",
    "init_image", "mask_image", "resize_mode", "masked_content", "mask_channel", "odd_sizes",
    "prompt_rules", "seed_resize", "thresholding", "emphasis",
    "tiled_diffusion", "sampling_rules", "sigmas", "step_rng", "noise_slice", "freeu", "told_sizes",
    "refiner", "refiner_passes",
)  # fmt: skip
_WHOLE: Final = (
    "seed", "steps", "width", "height", "clip_skip", "count", "batch_size", "slots", "eta_seed_delta", "mask_blur",
    "grow_mask", "padding", "rules", "variation_seed",
)  # fmt: skip
_FRACTIONS: Final = (
    "guidance_scale", "guidance_rescale", "strength", "conditioning_weight", "noise_multiplier", "eta", "eta_ddim",
    "s_churn", "s_tmin", "s_tmax", "s_noise", "variation_strength", "token_merging", "skip_negative_below",
    "skip_early_guidance", "refiner_at",
)  # fmt: skip
_TRUTHS: Final = (
    "pad_prompts",
    "is_zero_snr",
    "only_masked",
    "drop_penultimate",
    "half_levels",
    "fit_negative",
    "skip_negative_always",
    "rescales_velocity",
    "refiner_by_steps",
)
_HIRES: Final = (
    "hires_steps", "hires_strength", "hires_token_merging", "hires_trim", "upscaler", "hires_seed",
    "hires_guidance_scale", "hires_sampler", "hires_schedule", "hires_resize", "hires_prompt",
    "hires_negative_prompt", "hires_checkpoint",
)  # fmt: skip
_HIRES_WHOLE: Final = ("hires_steps", "hires_seed")
_HIRES_AS_FIRST: Final = ("hires_prompt", "hires_negative_prompt", "hires_checkpoint")
"""Fields of the second pass that an empty value resets to the first pass's value."""
_HIRES_TEXTS: Final = (
    "upscaler", "hires_trim", "hires_sampler", "hires_schedule", "hires_resize", *_HIRES_AS_FIRST,
)  # fmt: skip
_REFERENCE: Final = ("reference_weight", "reference_start", "reference_end")
_LAST: Final = (
    "upscale", "face_restoration", "details", "tiled_upscale", "tile_overlap", "tile_batch", "ultimate_upscale",
    "init_upscale",
)  # fmt: skip
FIELDS: Final = (*_TEXTS, *_WHOLE, *_FRACTIONS, *_TRUTHS, "size", "hires", *_HIRES, *_REFERENCE, *_LAST, "lora:REF")
"""The fields of a recipe that can be changed. Some also have a short name, that of the option of `civman render`."""

Change = tuple[str, str]
DigestOf = Callable[[str], Sha256]


def vary(
    index: Index, recipe: Recipe, changes: Sequence[Change], conditions: Conditions, *,
    pictures: Mapping[Sha256, Path] = {}, on_event: OnEvent = ignore,
) -> Planned:  # fmt: skip
    """Plan `recipe` with some fields changed. `pictures`: the paths of its input image and mask, by SHA-256.

    A scale of 0 removes an adapter. Changing the sampler resets the schedule, unless a later change sets it.

    Raises: UsageError (`unknown-field`, `bad-value`). The errors of `civman.planning.plan.plan`.
    """
    finder = Finder(index, on_event)
    request = as_request(recipe, pictures)
    # reset the prediction type, because that of the old checkpoint might not apply to the new one
    if any(field_of(name) == "checkpoint" for name, _ in changes):
        request = replace(request, prediction=None, is_zero_snr=None, file=None)
    for name, text in changes:
        request = changed(request, name, text, lambda ref: finder.find("lora", ref).sha256)
    words = _words(request.prompt, request.negative_prompt, request.hires)
    if words != _words(recipe.prompt, recipe.negative_prompt, recipe.hires):
        used = {f"sha256:{use.sha256}" for use in recipe.embeddings if use.word.casefold() in words}
        request = replace(request, embeddings=tuple(ref for ref in request.embeddings if ref in used))
    planned = plan(index, request, replace(conditions, triggers=False), on_event=on_event)
    return replace(planned, recipe=replace(planned.recipe, rounding=recipe.rounding), typed=None)


def _words(prompt: str, negative: str, second: HiresRequest | Hires | None) -> str:
    """Return the prompts of both passes as one text in lower case, to search for the words of embeddings."""
    own = (second.prompt, second.negative_prompt) if second is not None else ()
    return "\n".join([prompt, negative, *(text or "" for text in own)]).casefold()


def as_request(recipe: Recipe, pictures: Mapping[Sha256, Path] = {}) -> RenderRequest:
    """Convert a recipe to an equivalent request. Raises: UsageError (`no-start-image`): an input image is missing."""
    start, hires, sampling = recipe.start, recipe.hires, recipe.sampling
    if start and (error := missing_inputs(start, pictures)):
        raise error
    # leave out embeddings that are packed in an adapter's file, because the request names that file already
    adapters = {use.sha256 for use in recipe.loras}
    own = [use for use in recipe.embeddings if use.sha256 not in adapters]
    return RenderRequest(
        checkpoint=f"sha256:{recipe.checkpoint}", prompt=recipe.prompt, negative_prompt=recipe.negative_prompt,
        loras=_lora_requests(recipe.loras),
        embeddings=tuple(dict.fromkeys(f"sha256:{use.sha256}" for use in own)),
        called=tuple((use.word, f"sha256:{use.sha256}") for use in own),
        hypernetworks=_network_texts(recipe.hypernetworks),
        controls=tuple(as_control(use, recipe, pictures) for use in recipe.controls),
        references=(
            *(as_reference(use, pictures) for use in recipe.references),
            *(as_edit_reference(use, pictures) for use in recipe.edit_images),
        ),
        vae=f"sha256:{recipe.vae}" if recipe.vae else None,
        sampler=recipe.sampler, schedule=recipe.schedule, steps=recipe.steps,
        guidance_scale=recipe.guidance_scale, guidance_rescale=recipe.guidance_rescale,
        width=recipe.width, height=recipe.height, clip_skip=recipe.clip_skip, seed=recipe.seed,
        count=recipe.count, batch_size=recipe.batch_size, slots=recipe.slots, rng=recipe.rng,
        eta_seed_delta=recipe.eta_seed_delta,
        init_image=str(pictures[start.sha256]) if start else None,
        mask_image=str(pictures[start.mask_sha256]) if start and start.mask_sha256 else None,
        strength=start.strength if start else None,
        mask_blur=start.mask_blur if start and start.mask_sha256 else None,
        resize_mode=start.resize_mode if start else None,
        mask_channel=start.mask_channel or None if start else None, grow_mask=start.grow_mask if start else None,
        masked_content=start.masked_content if start and start.mask_sha256 else None,
        only_masked=start.only_masked if start and start.mask_sha256 else None,
        padding=start.padding if start and start.mask_sha256 else None,
        conditioning_weight=start.conditioning_weight if start else None,
        noise_multiplier=start.noise_multiplier if start else None,
        hires=HiresRequest(hires.width, hires.height, steps=hires.steps, strength=hires.strength,
                           upscaler=f"sha256:{hires.model}" if hires.model else hires.upscaler,
                           token_merging=hires.token_merging, seed=hires.seed, guidance_scale=hires.guidance_scale,
                           sampler=hires.sampler or None, schedule=hires.schedule or None, resize=hires.resize or None,
                           trim=f"{hires.trim_width}x{hires.trim_height}" if hires.stretches else None,
                           prompt=hires.prompt, negative_prompt=hires.negative_prompt,
                           loras=None if hires.loras is None else _lora_requests(hires.loras),
                           hypernetworks=None if hires.hypernetworks is None else _network_texts(hires.hypernetworks),
                           checkpoint=f"sha256:{hires.checkpoint.sha256}" if hires.checkpoint else None)
        if hires else None,
        prediction=recipe.prediction, is_zero_snr=recipe.is_zero_snr, precision=recipe.precision,
        pad_prompts=recipe.pad_prompts, config=recipe.config or None, rules=recipe.rules, odd_sizes=recipe.odd_sizes,
        eta=sampling.eta, eta_ddim=sampling.eta_ddim, s_noise=sampling.noise_scale, s_churn=sampling.s_churn,
        s_tmin=sampling.s_tmin, s_tmax=sampling.s_tmax, drop_penultimate=sampling.drop_penultimate,
        half_levels=sampling.half_levels, prompt_rules=recipe.prompt_rules,
        variation_seed=recipe.variation_seed, variation_strength=recipe.variation_strength,
        emphasis=recipe.emphasis, fit_negative=recipe.fit_negative,
        token_merging=recipe.token_merging, skip_negative_below=recipe.skip_negative_below,
        thresholding=text_of(recipe.thresholding) if recipe.thresholding else None,
        skip_negative_always=recipe.skip_negative_always, skip_early_guidance=recipe.skip_early_guidance,
        parts=(*(f"{use.role}=sha256:{use.sha256}" for use in recipe.parts), *encoder_parts(recipe)),
        variant=recipe.variant or None,
        shift=recipe.flow.shift if recipe.flow else None, guidance=recipe.flow.guidance if recipe.flow else None,
        upscale=_upscale_request(recipe, pictures), tiled_upscale=_tiled_request(recipe),
        ultimate_upscale=_ultimate_request(recipe), init_upscale=_input_request(recipe),
        tiled_diffusion=str(recipe.tiled_diffusion) if recipe.tiled_diffusion else None,
        face_restoration=_faces_text(recipe),
        seed_resize=f"{recipe.seed_resize_width}x{recipe.seed_resize_height}",
        sampling_rules=sampling.program, sigmas=",".join(map(repr, sampling.sigmas)) or None,
        step_rng=recipe.step_rng or None, noise_slice=recipe.noise_slice or None,
        prompt_parts=tuple(map(str, recipe.prompt_parts)), negative_parts=tuple(map(str, recipe.negative_parts)),
        freeu=str(recipe.freeu) if recipe.freeu else None, rescales_velocity=recipe.rescales_velocity,
        told_sizes=recipe.told_sizes or None, details=as_details(recipe, pictures),
        refiner=f"sha256:{recipe.refiner.checkpoint.sha256}" if recipe.refiner else None,
        refiner_at=recipe.refiner.switch_at if recipe.refiner else None,
        refiner_by_steps=recipe.refiner.by_steps if recipe.refiner else None,
        refiner_passes=recipe.refiner.passes if recipe.refiner and hires else None,
    )  # fmt: skip


def _lora_requests(uses: Sequence[LoraUse]) -> tuple[LoraRequest, ...]:
    return tuple(use.request(f"sha256:{use.sha256}") for use in uses)


def _network_texts(uses: Sequence[HypernetworkUse]) -> tuple[str, ...]:
    return tuple(f"sha256:{use.sha256}:{use.strength!r}" for use in uses)


def _upscale_request(recipe: Recipe, pictures: Mapping[Sha256, Path]) -> UpscaleRequest | None:
    """Return the recipe's upscale of the finished image as a request: by a factor, or to a fixed size with cropping."""
    made = recipe.upscale
    if made is None:
        return None
    before = recipe.drawn_size
    if recipe.pastes_region and recipe.input_upscale is not None:
        before = recipe.input_upscale.final_size
    elif recipe.pastes_region and recipe.start is not None:
        image = read_picture(pictures[recipe.start.sha256])
        before = image.width, image.height
    size = "x".join(map(str, made.final_size)) if made.crop_width else None
    return UpscaleRequest(
        f"sha256:{made.model}" if made.model else made.method, None if size else factor_of(made, before),
        size, made.tile, made.overlap,
    )  # fmt: skip


def _tiled_request(recipe: Recipe) -> TiledRequest | None:
    made = recipe.tiled
    if made is None:
        return None
    size = None if made.method == "none" else f"{made.width}x{made.height}"
    upscaler = f"sha256:{made.model}" if made.model else made.method
    return TiledRequest(upscaler, None, size, made.overlap, made.batch)


def _input_request(recipe: Recipe) -> UpscaleRequest | None:
    made = recipe.input_upscale
    if made is None:
        return None
    return UpscaleRequest(
        f"sha256:{made.model}" if made.model else made.method, None, f"{made.width}x{made.height}", made.tile,
        made.overlap,
    )  # fmt: skip


def _ultimate_request(recipe: Recipe) -> UltimateRequest | None:
    made = recipe.ultimate
    if made is None:
        return None
    return UltimateRequest(f"sha256:{made.model}" if made.model else made.method, settings=made)


def _faces_text(recipe: Recipe) -> str | None:
    """Return the recipe's face restoration as a request's text, with the model's SHA-256; None if there is none."""
    faces = recipe.faces
    if faces is None:
        return None
    return f"sha256:{faces.model}" + (f":{faces.weight:g}" if faces.method == "codeformer" else "")


def variations(request: RenderRequest) -> tuple[RenderRequest, ...]:
    """Split a request with a variation strength into one request per image; return any other request unchanged.

    As in A1111, the images have the same seed and the variation seeds count up.
    """
    if request.variation_strength is None and request.variation_seed is not None:
        raise UsageError(
            "a variation seed requires a strength", hint="set --variation-strength, such as 0.2", code=Cause.BAD_VALUE
        )
    if not request.variation_strength:
        return (request,)
    seed = secrets.randbelow(_SEEDS) if request.seed is None else request.seed
    first = secrets.randbelow(_SEEDS) if request.variation_seed is None else request.variation_seed
    return tuple(
        replace(request, seed=seed, variation_seed=first + n, count=1, batch_size=None) for n in range(request.count)
    )


def changed(request: RenderRequest, name: str, text: str, digest_of: DigestOf) -> RenderRequest:
    """Set one field of a request to the value in `text`. Raises: UsageError (`unknown-field`, `bad-value`)."""
    kind, _, ref = name.partition(":")
    if kind == "lora" and ref:
        return _with_scale(request, ref, text, digest_of)
    field = field_of(name)
    if field == "size":
        width, height = _size(name, text)
        return replace(request, width=width, height=height)
    if field == "sampler":
        return replace(request, sampler=text, schedule=None)
    if field == "refiner" and text in ("", "off"):
        return replace(request, refiner=None, refiner_at=None, refiner_by_steps=None, refiner_passes=None)
    if field in (*_REFERENCE, *_LAST):
        return (_with_references if field in _REFERENCE else _last)(request, field, name, text)
    if field in ("hires", *_HIRES):
        return _with_second_pass(request, field, name, text)
    value: Any
    if field in _TEXTS:
        value = text or None if field == "vae" else text
    elif field in _WHOLE:
        value = _number(name, text, int)
    elif field in _FRACTIONS:
        value = _number(name, text, float)
    elif field in _TRUTHS:
        value = _truth(name, text)
    else:
        raise UsageError(
            f"a recipe has no field `{name}`", hint="the fields are " + ", ".join(FIELDS), code=Cause.UNKNOWN_FIELD
        )
    return replace(request, **{field: value})


def _with_references(request: RenderRequest, field: str, name: str, text: str) -> RenderRequest:
    """Set the weight, start or end of all IP-Adapters."""
    if not any(each.ref for each in request.references):
        raise UsageError(
            f"`{name}` requires a reference picture with an IP-Adapter",
            hint="add a reference picture with --reference FILE:REF",
            code=Cause.BAD_VALUE,
        )
    value: Any = {field.removeprefix("reference_"): _number(name, text, float)}
    return replace(request, references=tuple(replace(each, **value) for each in request.references))


def _with_second_pass(request: RenderRequest, field: str, name: str, text: str) -> RenderRequest:
    """Add, change or remove the second pass."""
    if field == "hires":
        second = _hires(name, text, request.hires)
        return replace(request, hires=second, refiner_passes=request.refiner_passes if second else None)
    if request.hires is None:
        raise UsageError(
            f"`{name}` requires a second pass (hires)",
            hint="set hires to a factor or a size first, such as hires=2",
            code=Cause.BAD_VALUE,
        )
    return replace(request, hires=_second_pass(request.hires, field, name, text))


def _last(request: RenderRequest, field: str, name: str, text: str) -> RenderRequest:
    """Change how the finished image is processed, or how the input image is rendered in tiles."""
    asked, tiled = text if text not in ("", "off") else None, request.tiled_upscale
    if field in ("tile_overlap", "tile_batch"):
        if tiled is None:
            raise UsageError(
                f"`{name}` requires a redraw in tiles (tiled_upscale)",
                hint="set tiled_upscale first, such as tiled_upscale=lanczos:2",
                code=Cause.BAD_VALUE,
            )  # fmt: skip
        changed_tiles: dict[str, Any] = {field.removeprefix("tile_"): _number(name, text, int)}
        return replace(request, tiled_upscale=replace(tiled, **changed_tiles))
    value: Any = asked
    if asked and field in ("upscale", "init_upscale"):
        value = upscale_from(asked)
    elif asked and field == "tiled_upscale":
        value = tiled_from(asked, tiled.overlap if tiled else None, tiled.batch if tiled else None)
    elif asked and field == "ultimate_upscale":
        value = ultimate_from(asked)
    elif field == "details":
        value = (detail_from(asked),) if asked else ()
    return replace(request, **{field: value})


def field_of(name: str) -> str:
    """Return the full name of a field, such as "guidance_scale" for "cfg". Unknown names are returned unchanged."""
    plain = name.replace("-", "_")
    return _ALIASES.get(plain, plain)


def is_number(name: str) -> bool:
    """Whether the values of a field are numbers, so that a range can be given."""
    field = field_of(name)
    return name.startswith("lora:") or field in (
        *_WHOLE,
        *_FRACTIONS,
        *_REFERENCE,
        *(name for name in _HIRES if name not in _HIRES_TEXTS),
    )


def _with_scale(request: RenderRequest, ref: str, text: str, digest_of: DigestOf) -> RenderRequest:
    wanted = digest_of(ref)
    try:
        scales = parse_scale_pair(text)
    except ValueError as error:
        raise UsageError(f"`lora:{ref}={text}`: `{text}` is not a valid scale", code=Cause.BAD_VALUE) from error

    def rescaled(loras: tuple[LoraRequest, ...], *, adds: bool) -> tuple[LoraRequest, ...]:
        kept = [lora for lora in loras if digest_of(lora.ref) != wanted]
        here = [i for i, lora in enumerate(loras) if digest_of(lora.ref) == wanted]
        if scales.acts and (here or adds):
            asked = LoraRequest(
                f"sha256:{wanted}", scales.unet or 0.0, scales.text_encoder, keyframes=scales.keyframes
            )  # fmt: skip
            kept.insert(here[0] if here else len(kept), asked)
        return tuple(kept)

    hires = request.hires
    # also change the second pass's own list of adapters, if it contains this adapter
    if hires is not None and hires.loras is not None:
        hires = replace(hires, loras=rescaled(hires.loras, adds=False))
    return replace(request, loras=rescaled(request.loras, adds=True), hires=hires)


def _size(name: str, text: str) -> tuple[int, int]:
    width, sign, height = text.lower().replace("×", "x").partition("x")
    if not sign:
        raise UsageError(f"`{name}={text}`: expected width x height in pixels, such as 832x1216", code=Cause.BAD_VALUE)
    return int(_number(name, width, int)), int(_number(name, height, int))


def _hires(name: str, text: str, before: HiresRequest | None) -> HiresRequest | None:
    if text in ("", "off", "0"):
        return None
    kept = replace(before or HiresRequest(), width=None, height=None, scale=None)
    if "x" in text.lower():
        width, height = _size(name, text)
        return replace(kept, width=width, height=height)
    return replace(kept, scale=float(_number(name, text, float)))


def _second_pass(before: HiresRequest, field: str, name: str, text: str) -> HiresRequest:
    value: Any = text if field in _HIRES_TEXTS else _number(name, text, int if field in _HIRES_WHOLE else float)
    if field in _HIRES_AS_FIRST:
        value = text or None
    return replace(before, **{field.removeprefix("hires_"): value})


def _number(name: str, text: str, kind: type[int] | type[float]) -> int | float:
    try:
        return kind(text.strip())
    except ValueError as error:
        wanted = "a whole number" if kind is int else "a number"
        raise UsageError(f"`{name}={text}`: expected {wanted}", code=Cause.BAD_VALUE) from error


def _truth(name: str, text: str) -> bool:
    values = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if text.strip().lower() not in values:
        raise UsageError(f"`{name}={text}`: expected yes or no", code=Cause.BAD_VALUE)
    return values[text.strip().lower()]
