"""Turns a request into a plan: finds and verifies every file, resolves every name, checks every value.

No weights are loaded. torch is imported last, and only if no device was chosen, so that errors are reported quickly.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from civman.diffusion import sampler_names, samplers
from civman.diffusion.noise_levels import Schedule
from civman.domain.compatibility import Compatibility, check
from civman.domain.digests import Sha256
from civman.domain.events import OnEvent, ignore
from civman.domain.recipes.complete import Resolved, SecondResolved, complete, sampling, steps_of
from civman.domain.recipes.prompt_parts import part_of
from civman.domain.recipes.recipe import EmbeddingUse, Recipe, RenderRequest
from civman.domain.recipes.record import TypedPrompts
from civman.errors import Cause, Incompatible
from civman.index import Index
from civman.planning import comfyui_embeddings, prompt_references, prompt_stages
from civman.planning.check_files import in_role
from civman.planning.checkpoint_facts import differing_config, read_checkpoint
from civman.planning.fast_precision import with_precision
from civman.planning.find_controls import control_files, controls_for
from civman.planning.find_details import detail_files, details_for
from civman.planning.find_edit_images import edit_files, edit_images_for, sized_like
from civman.planning.find_faces import faces_for
from civman.planning.find_files import Finder, Found
from civman.planning.find_loras import uses_of
from civman.planning.find_references import reference_files, references_for
from civman.planning.find_upscaler import input_upscaler_for, last_upscaler_for, scale_of, upscaler_for
from civman.planning.flow_plan import flow_choice, recorded_choice, require_size
from civman.planning.flow_request import for_flow, require_no_flow_options
from civman.planning.input_pictures import (
    as_files,
    missing_inputs,
    read_picture,
    requested_pictures,
)
from civman.planning.plan_licence import plan_terms, require_use
from civman.planning.plan_limits import (
    few_steps_notice_of,
    require_channels,
    require_encoder,
    require_levels,
    with_few_steps,
    within_limits,
)
from civman.planning.plan_memory import memory_of
from civman.planning.plan_stages import (
    FurtherCheckpoints,
    PassParts,
    counts_own_steps,
    parts_of_pass,
    recorded_checkpoints,
    requested_checkpoints,
    second_parts,
)
from civman.planning.plan_types import Planned, PlannedFile
from civman.planning.prompt_references import ScaledLora
from civman.planning.recipe_sources import RecipeSource, recipe_of
from civman.planning.render_extra import require_render_extra
from civman.planning.slot_groups import slot_notices
from civman.prompts.foreign_syntax import foreign_notices

SAMPLER = "DPM++ 2M"
"""The default sampler of a request."""
_SEEDS = 2**32
_OTHER_ROLES = (
    "upscaler", "hypernetwork", "controlnet", "ip-adapter", "clip-vision", "face-restorer", "face-detector",
    "face-parser",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Conditions:
    """The settings for planning that are not part of the request.

    `device`: the device that will render the plan, which determines the precision; None: the best device of this
    machine. `force`: plan even if the compatibility check says that the parts cannot work together. `allow_partial`:
    apply an adapter even if some of its layers do not fit. `triggers`: add missing trigger words to the prompt.
    """

    device: str | None = None
    force: bool = False
    allow_partial: bool = False
    triggers: bool = True
    require: str | None = None
    """If "commercial", planning fails unless the licences of all files together permit selling the images."""
    is_device_there: bool = False
    """Whether `device` is known to exist, so that planning need not import torch to check for it."""


def plan(
    index: Index, request: RenderRequest, conditions: Conditions = Conditions(), *, on_event: OnEvent = ignore
) -> Planned:
    """Determine everything on which the pictures of a request depend.

    Raises:
        CannotRender: the render extra is not installed, or civman cannot render this kind of checkpoint.
        UsageError: a value, name, ref, prompt or image is invalid.
        NotFound, AmbiguousRef: a ref matches no file, or several.
        Incompatible: the parts cannot work together.
        IntegrityError: a file does not have the SHA-256 in the index.
        NotAllowed (`licence`): the licences do not permit the use in `conditions.require`.
    """
    require_render_extra()
    texts = (request.prompt, request.negative_prompt)
    typed = (
        texts[0] if request.typed_prompt is None else request.typed_prompt,
        texts[1] if request.typed_negative is None else request.typed_negative,
    )
    is_comfyui = request.emphasis == "comfyui"
    words = prompt_references.Words(*texts, ()) if is_comfyui else prompt_references.read(*texts)
    sampler, schedule = sampler_names.parse(SAMPLER if request.sampler is None else request.sampler, request.schedule)
    if schedule is Schedule.AUTOMATIC and not sampler.own_table:
        schedule = sampler.automatic
    request, without = _without_what_has_no_effect(_named_second_pass(request, sampler), sampler)
    pictures = requested_pictures(request)
    finder = Finder(index, on_event)
    found = finder.find("checkpoint", request.checkpoint, request.file)
    choice = flow_choice(finder, found, request)
    if choice is not None:
        request, sampler, schedule = for_flow(request, choice)
        vae, config, checkpoint, usual = choice.vae, request.config or "", choice.facts(), None
        edited = edit_images_for(request, choice, found)
        request = sized_like(request, [image for image, _ in edited], choice.family.multiple)
    else:
        vae = finder.find("vae", request.vae) if request.vae is not None else None
        require_no_flow_options(request, found)
        edited = edit_images_for(request, None, found)
        request, usual = with_few_steps(request, found)
        config = _config_json(found, request.config)
        checkpoint = read_checkpoint(found, vae=vae, config=config, prediction=request.prediction)
    further = requested_checkpoints(
        finder, request, found, checkpoint, vae=vae, config=config, is_flow=choice is not None
    )
    first = parts_of_pass(finder, request, words, triggers=conditions.triggers)
    second = second_parts(finder, request, words, first, triggers=conditions.triggers)
    passes = (first, *([second] if second not in (None, first) else []))
    if not is_comfyui:
        request = replace(request, prompt_rules=_rules_for(request, passes))
    own = SecondResolved()
    if second is not None:
        own = second.after(first, keeps_prompts=counts_own_steps(request, request.prompt_rules, sampler))
        own = replace(own, checkpoint=further.second.use if further.second else None)
    loras = [*{lora.found.sha256: lora for each in passes for lora in each.loras}.values()]
    details = details_for(
        finder, replace(request, prompt=first.prompt, negative_prompt=first.negative), sampler.name, schedule
    )
    embeddings, uses, left_out = _embeddings(
        finder, request, (*_texts(request, first, own, sampler), *details.texts()), found, loras
    )
    prompt_references.require_widths(
        found, [(use, lora.found) for lora in loras for use in uses if use.sha256 == lora.found.sha256],
        allow_partial=conditions.allow_partial or conditions.force,
    )  # fmt: skip
    warned = _fitting(found, passes, further, [*embeddings, *([vae] if vae else [])], conditions)
    parts = [*further.files, *(file for each in passes for file in each.files), *embeddings, *([vae] if vae else [])]
    parts += [*choice.parts.values()] if choice else []
    upscaler, tiles = upscaler_for(finder, request)
    (last, last_tiles), (larger, more_tiles) = last_upscaler_for(finder, request), input_upscaler_for(finder, request)
    parts += [each for each in (upscaler, larger, last) if each]
    faces = faces_for(finder, request)
    parts += [*(faces.files if faces else ()), *([details.detector] if details.detector else [])]
    tiles = tuple(dict.fromkeys((*tiles, *last_tiles, *more_tiles, *(faces.notices if faces else ()))))
    controls = controls_for(finder, request, found)
    references = [] if choice else references_for(finder, request, found, is_adaptive=sampler.is_adaptive)
    parts += [each.model for each in controls] + [file for each in references for file in (each.adapter, each.encoder)]
    request, limited = within_limits(
        replace(request, prompt=first.prompt, negative_prompt=first.negative), checkpoint, pictures
    )
    recipe = complete(
        request,
        Resolved(
            checkpoint=found.sha256, native_size=checkpoint.native_size,
            prediction=checkpoint.prediction,
            is_zero_snr=checkpoint.is_zero_snr if request.is_zero_snr is None else request.is_zero_snr,
            precision="float32", sampler=sampler.name, schedule=schedule.value,
            seed=secrets.randbelow(_SEEDS),
            loras=uses_of(first.loras, has_hires=request.hires is not None), embeddings=tuple(uses),
            hypernetworks=tuple(use for _, use in first.networks),
            vae=vae.sha256 if vae else None, second=own, refiner=further.refiner.use if further.refiner else None,
            is_refiner_same_family=further.refiner is None or further.refiner.is_same_family,
            upscaler=upscaler.sha256 if upscaler else None,
            input_upscaler=larger.sha256 if larger else None, input_scale=scale_of(larger),
            last_upscaler=last.sha256 if last else None, last_scale=scale_of(last),
            controls=tuple(each.use for each in controls), references=tuple(each.use for each in references),
            edit_images=tuple(image for image, _ in edited),
            faces=faces.restoration if faces else None,
            init_image=pictures[0].sha256 if pictures else None,
            init_size=(pictures[0].width, pictures[0].height) if pictures else (0, 0),
            mask_image=pictures[1].sha256 if len(pictures) > 1 else None, config=config,
            files=tuple({file.sha256: file.in_recipe for file in (found, *parts)}.values()),
            parts=choice.uses if choice else (), flow=partial(choice.flow, request) if choice else None,
            variant=choice.variant if choice else "", details=details.passes,
        ),
    )  # fmt: skip
    terms = plan_terms(index, (found, *parts))
    if conditions.require is not None:
        require_use(terms, conditions.require)
    prompt_stages.require_readable(recipe)
    require_encoder(recipe, checkpoint, further)
    require_channels(recipe, checkpoint)
    require_levels(recipe, checkpoint)
    recipe, hastened = with_precision(
        request.precision, recipe, found, conditions.device, is_flow=choice is not None,
        is_there=conditions.is_device_there,
    )  # fmt: skip
    if choice is not None:
        require_size(recipe, choice)
    files = {file.sha256: file.planned for file in (found, *parts)} | as_files(pictures)
    files |= {each.use.picture: each.file for each in controls} | {each.use.picture: each.file for each in references}
    files |= {image.sha256: file for image, file in edited}
    tiles += tuple(dict.fromkeys(each.notice for each in references if each.notice))
    files |= {each.sha256: each for each in details.masks}
    few = usual or (None if choice else few_steps_notice_of(recipe, found))
    told = (notice for each in passes for notice in each.notices)
    return Planned(
        recipe, tuple(files.values()), choice.memory(recipe) if choice else memory_of(recipe, found, further, parts),
        (*checkpoint.notices, *further.notices, *((few,) if few else ()), *warned, *limited, *without,
         *hastened, *slot_notices(request, recipe), *told, *tiles, *left_out,
         *(() if is_comfyui else _prompt_notices(texts, passes, recipe))),
        conditions.allow_partial or conditions.force,
        keeps_noise=conditions.force,
        typed=None if typed == (recipe.prompt, recipe.negative_prompt) else TypedPrompts(*typed),
        licence=terms,
    )  # fmt: skip


def plan_recipe(index: Index, recipe: Recipe, pictures: Sequence[Path] = (), *, on_event: OnEvent = ignore) -> Planned:
    """Plan a recipe unchanged. `pictures`: the files of its input image, mask and other images.

    Files are found by SHA-256. Raises: NotFound: a model file is missing. UsageError: an input image is missing.
    CannotRender, IntegrityError.
    """
    require_render_extra()
    if recipe.emphasis != "comfyui":
        prompt_references.read(recipe.prompt, recipe.negative_prompt)
    prompt_stages.require_readable(recipe)
    finder = Finder(index, on_event)
    found = finder.with_digest("checkpoint", recipe.checkpoint)
    choice = recorded_choice(finder, found, recipe)
    if choice is not None:
        vae, checkpoint = choice.vae, choice.facts()
    else:
        vae = finder.with_digest("vae", recipe.vae) if recipe.vae else None
        checkpoint = read_checkpoint(found, vae=vae, config=recipe.config, prediction=recipe.prediction)
    parts = [finder.with_digest("lora", digest) for digest in recipe.digests["lora"]]
    # leave out embeddings that are packed in an adapter's file, because that file is already in the list
    adapters = {part.sha256 for part in parts}
    parts += [finder.with_digest("embedding", use.sha256) for use in recipe.embeddings if use.sha256 not in adapters]
    parts += [vae] if vae else []
    parts += [*choice.parts.values()] if choice else []
    for role in _OTHER_ROLES:
        parts += [finder.with_digest(role, digest) for digest in recipe.digests[role]]
    further = recorded_checkpoints(finder, recipe, checkpoint, vae)
    parts += further.files
    require_encoder(recipe, checkpoint, further)
    require_channels(recipe, checkpoint)
    require_levels(recipe, checkpoint)
    files = {file.sha256: file.planned for file in (found, *parts)}
    files |= _start_files(recipe, pictures) | control_files(recipe, pictures) | reference_files(recipe, pictures)
    files |= detail_files(recipe, pictures) | edit_files(recipe, choice, pictures)
    return Planned(
        recipe, tuple(files.values()), choice.memory(recipe) if choice else memory_of(recipe, found, further, parts),
        checkpoint.notices, licence=plan_terms(index, (found, *parts)),
    )  # fmt: skip


def _start_files(recipe: Recipe, pictures: Sequence[Path]) -> dict[Sha256, PlannedFile]:
    """Find a recipe's input image and mask among `pictures` by SHA-256.

    Raises: UsageError (`no-start-image`): one of the two is missing; the message says which.
    """
    if recipe.start is None:
        return {}
    here = {picture.sha256: picture for picture in map(read_picture, pictures)}
    if error := missing_inputs(recipe.start, {digest: picture.path for digest, picture in here.items()}):
        raise error
    return as_files([here[digest] for digest in (recipe.start.sha256, recipe.start.mask_sha256) if digest])


def plan_replay(index: Index, source: RecipeSource, pictures: Sequence[Path], *, on_event: OnEvent = ignore) -> Planned:
    """Plan a recipe for a replay: unchanged, with the parent and the typed prompts of the original's record.

    Raises: the errors of `plan_recipe`.
    """
    planned = plan_recipe(index, recipe_of(source), pictures, on_event=on_event)
    record = source.record
    parent, typed = (record.parent, record.typed) if record else (None, None)
    # accept adapters that fit only partly, and images of pure noise, because the replay is compared with the original
    # anyway
    return replace(planned, allow_partial=True, keeps_noise=True, parent=parent, typed=typed)


def _rules_for(request: RenderRequest, passes: Sequence[PassParts]) -> str:
    """Return the rules for reading the prompts of all passes; empty if none needs rules."""
    found = [prompt_stages.rules_for(each.prompt, each.negative, request.prompt_rules) for each in passes]
    return next(filter(None, found), "")


def _texts(request: RenderRequest, first: PassParts, own: SecondResolved, sampler: samplers.Sampler) -> tuple[str, ...]:
    """All texts that the text encoders will read in both passes."""
    steps, hires_steps = steps_of(request)
    second, hires = None, request.hires
    if hires_steps is not None and hires is not None:
        named = samplers.BY_NAME[hires.sampler] if hires.sampler else sampler
        second = prompt_stages.SecondPass(hires_steps, named, own.prompt, own.negative_prompt)
    both = prompt_stages.passes(
        first.prompt, first.negative, request.prompt_rules or "", sampler=sampler, steps=steps, second=second
    )
    parts = [part_of(text).text for text in (*request.prompt_parts, *request.negative_parts)]
    return tuple(dict.fromkeys([*(text for each in both if each is not None for text in each.texts()), *parts]))


def _embeddings(
    finder: Finder, request: RenderRequest, texts: Sequence[str], checkpoint: Found, loras: Sequence[ScaledLora]
) -> tuple[list[Found], list[EmbeddingUse], tuple[str, ...]]:
    """Find the embeddings in the texts, in A1111's or ComfyUI's syntax. Returns files, uses and notices."""
    if request.emphasis == "comfyui":
        return comfyui_embeddings.embeddings(
            finder, request.embeddings, texts, called=request.called, fits=lambda file: _fits(checkpoint, file)
        )
    found, uses = prompt_references.embeddings(
        finder, request.embeddings, texts, called=request.called, loras=[lora.found for lora in loras],
        fits=lambda file: _fits(checkpoint, file),
    )  # fmt: skip
    return found, uses, ()


def _named_second_pass(request: RenderRequest, sampler: samplers.Sampler) -> RenderRequest:
    """Convert the names of the second pass's sampler and schedule to civman's names.

    If the request contains noise levels, the number of steps is set to fit them.
    """
    hires = request.hires
    if hires is not None and (hires.sampler or hires.schedule):
        own, schedule = sampler_names.parse(hires.sampler or sampler.name, hires.schedule or request.schedule)
        if schedule is Schedule.AUTOMATIC and not own.own_table:
            schedule = own.automatic
        hires = replace(hires, sampler=own.name, schedule=schedule.value)
    return replace(request, hires=hires, steps=steps_of(request)[0] if request.sigmas else request.steps)


def _config_json(found: Found, config: str | None) -> str:
    """Return, as JSON, the config values that replace those implied by the file's shapes; empty if there are none.

    `config`: a folder with config files, or JSON from a recipe, which is returned unchanged.
    """
    if config is None or config.startswith("{"):
        return config or ""
    return differing_config(found, Path(config))


_NOISE_OPTIONS = {
    "eta": "eta", "eta_ddim": "eta-ddim", "noise_scale": "s-noise", "s_churn": "s-churn", "s_tmin": "s-tmin",
    "s_tmax": "s-tmax",
}  # fmt: skip


def _without_what_has_no_effect(
    request: RenderRequest, sampler: samplers.Sampler
) -> tuple[RenderRequest, tuple[str, ...]]:
    """Remove the noise settings that the sampler ignores from a request, and return a notice for each."""
    left = sampler.without_effect(sampling(request))
    options = [_NOISE_OPTIONS[name] for name in left]
    unset: dict[str, Any] = {option.replace("-", "_"): None for option in options}
    return replace(request, **unset), tuple(f"--{option} has no effect with {sampler.name}" for option in options)


def _prompt_notices(texts: tuple[str, str], passes: Sequence[PassParts], recipe: Recipe) -> tuple[str, ...]:
    """Return notices about how the prompts are read, and about words that other programs would read as syntax.

    `texts`: the first pass's prompts as requested.
    """
    found: list[str] = []
    for number, each in enumerate(passes):
        own, negative = map(foreign_notices, (each.prompt, each.negative) if number else texts)
        found += (*own, *(f"negative prompt: {notice}" for notice in negative))
    for each in passes:
        found += prompt_stages.notices(each.prompt, each.negative, recipe.prompt_rules)
    return tuple(dict.fromkeys(found))


def _fits(checkpoint: Found, file: Found) -> bool:
    try:
        check(checkpoint.part, [in_role(file.part, file.role)]).raise_if_blocked()
    except Incompatible:
        return False
    return True


def _fitting(
    checkpoint: Found, passes: Sequence[PassParts], further: FurtherCheckpoints, shared: Sequence[Found],
    conditions: Conditions,
) -> tuple[str, ...]:  # fmt: skip
    """Check that each checkpoint fits the files used with it, and return the warnings from these checks.

    `shared`: the files that are used in all passes.
    """
    of_passes = [[lora.found for lora in each.loras] for each in passes]
    found = [*_compatible(checkpoint, [*of_passes[0], *shared], conditions)]
    if len(passes) > 1 or further.second is not None:
        other = further.second.found if further.second is not None else checkpoint
        found += _compatible(other, [*of_passes[-1], *shared], conditions)
    if further.refiner is not None:
        adapted = [file for files in of_passes for file in files] if further.refiner.is_same_family else []
        kept = shared if further.refiner.is_same_family else [file for file in shared if file.role == "vae"]
        parts = {file.sha256: file for file in (*adapted, *kept)}
        found += _compatible(further.refiner.found, [*parts.values()], conditions)
    return tuple(dict.fromkeys(found))


def _compatible(checkpoint: Found, parts: Sequence[Found], conditions: Conditions) -> tuple[str, ...]:
    found: Compatibility = check(checkpoint.part, [in_role(part.part, part.role) for part in parts])
    if not conditions.force:
        try:
            found.raise_if_blocked(allow_partial=conditions.allow_partial)
        except Incompatible as error:
            is_partial = error.code is Cause.PARTLY_APPLIES
            option = "--allow-partial applies the layers that fit" if is_partial else "--force ignores this check"
            error.hint = f"`civman list --fits CHECKPOINT` lists the files that fit; {option}"
            raise
    return found.cautions
