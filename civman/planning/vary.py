"""A recipe with some fields changed: back to a request that names every file by its digest, changed, planned anew.

One way for `--set` and for the axes of a grid, so that both understand the same names and values.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from civman.domain.digests import Sha256
from civman.domain.events import OnEvent, ignore
from civman.domain.recipes.recipe import HiresRequest, LoraRequest, Recipe, RenderRequest
from civman.domain.scales import parse_scale_pair
from civman.errors import Cause, UsageError
from civman.index import Index
from civman.planning.find_files import Finder
from civman.planning.input_pictures import missing_inputs
from civman.planning.plan import Conditions, plan
from civman.planning.plan_types import Planned

_ALIASES: Final = {
    "negative": "negative_prompt", "cfg": "guidance_scale", "cfg_rescale": "guidance_rescale",
    "ensd": "eta_seed_delta", "init": "init_image", "mask": "mask_image", "zero_snr": "is_zero_snr",
    "mask_content": "masked_content",
}  # fmt: skip
_TEXTS: Final = (
    "prompt", "negative_prompt", "checkpoint", "vae", "sampler", "schedule", "rng", "precision", "prediction",
    "init_image", "mask_image", "resize_mode", "masked_content", "odd_sizes",
)  # fmt: skip
_WHOLE: Final = (
    "seed", "steps", "width", "height", "clip_skip", "count", "batch_size", "eta_seed_delta", "mask_blur", "padding",
    "rules",
)  # fmt: skip
_FRACTIONS: Final = (
    "guidance_scale", "guidance_rescale", "strength", "conditioning_weight", "noise_multiplier", "eta", "eta_ddim",
    "s_churn", "s_tmin", "s_tmax", "s_noise",
)  # fmt: skip
_TRUTHS: Final = ("pad_prompts", "is_zero_snr", "only_masked")
_HIRES: Final = ("hires_steps", "hires_strength", "upscaler")
FIELDS: Final = (*_TEXTS, *_WHOLE, *_FRACTIONS, *_TRUTHS, "size", "hires", *_HIRES, "lora:REF")
"""What can be changed, besides the short names `civman render` has for some."""

Change = tuple[str, str]
DigestOf = Callable[[str], Sha256]


def vary(
    index: Index, recipe: Recipe, changes: Sequence[Change], conditions: Conditions, *,
    pictures: Mapping[Sha256, Path] = {}, on_event: OnEvent = ignore,
) -> Planned:  # fmt: skip
    """A plan of `recipe` with fields changed; `pictures` tells where those that it may start from are.

    A scale of 0 takes an adapter out. A new sampler brings its own schedule unless one is given after it.

    Raises: UsageError (`unknown-field`, `bad-value`), and as `civman.planning.plan.plan`.
    """
    finder = Finder(index, on_event)
    request = as_request(recipe, pictures)
    if any(field_of(name) == "checkpoint" for name, _ in changes):  # what the old one predicts says nothing of another
        request = replace(request, prediction=None, is_zero_snr=None, file=None)
    for name, text in changes:
        request = changed(request, name, text, lambda ref: finder.find("lora", ref).sha256)
    if (request.prompt, request.negative_prompt) != (recipe.prompt, recipe.negative_prompt):
        words = f"{request.prompt}\n{request.negative_prompt}".casefold()
        used = {f"sha256:{use.sha256}" for use in recipe.embeddings if use.word.casefold() in words}
        request = replace(request, embeddings=tuple(ref for ref in request.embeddings if ref in used))
    planned = plan(index, request, replace(conditions, triggers=False), on_event=on_event)
    return replace(planned, recipe=replace(planned.recipe, rounding=recipe.rounding), typed=None)


def as_request(recipe: Recipe, pictures: Mapping[Sha256, Path] = {}) -> RenderRequest:
    """The request that says all that the recipe says. Raises: UsageError (`no-start-image`): a picture is not here."""
    start, hires, sampling = recipe.start, recipe.hires, recipe.sampling
    if start and (error := missing_inputs(start, pictures)):
        raise error
    return RenderRequest(
        checkpoint=f"sha256:{recipe.checkpoint}", prompt=recipe.prompt, negative_prompt=recipe.negative_prompt,
        loras=tuple(LoraRequest(f"sha256:{use.sha256}", use.scale, use.text_scale) for use in recipe.loras),
        embeddings=tuple(dict.fromkeys(f"sha256:{use.sha256}" for use in recipe.embeddings)),
        vae=f"sha256:{recipe.vae}" if recipe.vae else None,
        sampler=recipe.sampler, schedule=recipe.schedule, steps=recipe.steps,
        guidance_scale=recipe.guidance_scale, guidance_rescale=recipe.guidance_rescale,
        width=recipe.width, height=recipe.height, clip_skip=recipe.clip_skip, seed=recipe.seed,
        count=recipe.count, batch_size=recipe.batch_size, rng=recipe.rng, eta_seed_delta=recipe.eta_seed_delta,
        init_image=str(pictures[start.sha256]) if start else None,
        mask_image=str(pictures[start.mask_sha256]) if start and start.mask_sha256 else None,
        strength=start.strength if start else None,
        mask_blur=start.mask_blur if start and start.mask_sha256 else None,
        resize_mode=start.resize_mode if start else None,
        masked_content=start.masked_content if start and start.mask_sha256 else None,
        only_masked=start.only_masked if start and start.mask_sha256 else None,
        padding=start.padding if start and start.mask_sha256 else None,
        conditioning_weight=start.conditioning_weight if start else None,
        noise_multiplier=start.noise_multiplier if start else None,
        hires=HiresRequest(hires.width, hires.height, steps=hires.steps, strength=hires.strength,
                           upscaler=hires.upscaler) if hires else None,
        prediction=recipe.prediction, is_zero_snr=recipe.is_zero_snr, precision=recipe.precision,
        pad_prompts=recipe.pad_prompts, config=recipe.config or None, rules=recipe.rules, odd_sizes=recipe.odd_sizes,
        eta=sampling.eta, eta_ddim=sampling.eta_ddim, s_noise=sampling.noise_scale, s_churn=sampling.s_churn,
        s_tmin=sampling.s_tmin, s_tmax=sampling.s_tmax,
    )  # fmt: skip


def changed(request: RenderRequest, name: str, text: str, digest_of: DigestOf) -> RenderRequest:
    """The request with one field as `text` says. Raises: UsageError (`unknown-field`, `bad-value`)."""
    kind, _, ref = name.partition(":")
    if kind == "lora" and ref:
        return _with_scale(request, ref, text, digest_of)
    field = field_of(name)
    if field == "size":
        width, height = _size(name, text)
        return replace(request, width=width, height=height)
    if field == "sampler":
        return replace(request, sampler=text, schedule=None)
    if field == "hires":
        return replace(request, hires=_hires(name, text, request.hires))
    if field in _HIRES:
        if request.hires is None:
            raise UsageError(f"`{name}` needs a second pass", hint="set hires=2 or a size first", code=Cause.BAD_VALUE)
        return replace(request, hires=_second_pass(request.hires, field, name, text))
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
            f"a recipe has no field `{name}`", hint="one of " + ", ".join(FIELDS), code=Cause.UNKNOWN_FIELD
        )
    return replace(request, **{field: value})


def field_of(name: str) -> str:
    """The field that a name means, by its one name: "cfg" is "guidance_scale"; not whether there is such a field."""
    plain = name.replace("-", "_")
    return _ALIASES.get(plain, plain)


def is_number(name: str) -> bool:
    """Whether the field's value is a number, and so can be counted through."""
    field = field_of(name)
    return name.startswith("lora:") or field in (*_WHOLE, *_FRACTIONS, "hires_steps", "hires_strength")


def _with_scale(request: RenderRequest, ref: str, text: str, digest_of: DigestOf) -> RenderRequest:
    wanted = digest_of(ref)
    try:
        scale, text_scale = parse_scale_pair(text)
    except ValueError as error:
        raise UsageError(f"`lora:{ref}={text}`: not a scale", code=Cause.BAD_VALUE) from error
    kept = [lora for lora in request.loras if digest_of(lora.ref) != wanted]
    here = [i for i, lora in enumerate(request.loras) if digest_of(lora.ref) == wanted]
    if scale or text_scale:
        kept.insert(here[0] if here else len(kept), LoraRequest(f"sha256:{wanted}", scale, text_scale))
    return replace(request, loras=tuple(kept))


def _size(name: str, text: str) -> tuple[int, int]:
    width, sign, height = text.lower().replace("×", "x").partition("x")
    if not sign:
        raise UsageError(f"`{name}={text}`: width x height in pixels is meant, such as 832x1216", code=Cause.BAD_VALUE)
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
    value: Any = text if field == "upscaler" else _number(name, text, int if field == "hires_steps" else float)
    return replace(before, **{field.removeprefix("hires_"): value})


def _number(name: str, text: str, kind: type[int] | type[float]) -> int | float:
    try:
        return kind(text.strip())
    except ValueError as error:
        wanted = "a whole number" if kind is int else "a number"
        raise UsageError(f"`{name}={text}`: {wanted} is meant", code=Cause.BAD_VALUE) from error


def _truth(name: str, text: str) -> bool:
    values = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if text.strip().lower() not in values:
        raise UsageError(f"`{name}={text}`: yes or no is meant", code=Cause.BAD_VALUE)
    return values[text.strip().lower()]
