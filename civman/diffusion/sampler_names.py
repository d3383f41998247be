"""Parses the names of samplers and schedules as A1111, Forge, ComfyUI, diffusers, InvokeAI and CivitAI write them.

Comparison ignores case; `_`, `-` and spaces are equivalent, and so are `pp` and `++`: "dpmpp_2m_sde_karras" is "DPM++
2M SDE Karras". The longest matching sampler name is chosen; the rest is the schedule.
"""

import difflib
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Final

from civman.diffusion import samplers
from civman.diffusion.flow_levels import FlowLevels
from civman.diffusion.noise_levels import NoiseLevels, Schedule
from civman.diffusion.samplers import BY_NAME, SAMPLERS, Sampler
from civman.domain.recipes.recipe import Recipe
from civman.errors import Cause, UsageError

NOT_OFFERED: Final = {
    "SA-Solver": ("a stochastic Adams solver in ComfyUI and diffusers", "DPM++ 2M SDE"),
    "SA-Solver PECE": ("a stochastic Adams solver in ComfyUI", "DPM++ 2M SDE"),
    "SEEDS 2": ("an exponential SDE solver in ComfyUI", "DPM++ SDE"),
    "SEEDS 3": ("an exponential SDE solver in ComfyUI", "DPM++ SDE"),
    "TCD": ("the sampler of trajectory-consistency models", "LCM"),
    "DPM++ 2S": ("DPM++ 2S a without added noise", "DPM++ 2S a"),
    "DPM++ 3M": ("DPM++ 3M SDE without added noise", "DPM++ 2M"),
    "DPM++ 2S a CFG++": ("ComfyUI's combination of DPM++ 2S a with CFG++", "Euler a CFG++"),
    "RES multistep CFG++": ("ComfyUI's combination of RES multistep with CFG++", "DPM++ 2M CFG++"),
    "RES multistep ancestral CFG++": ("ComfyUI's combination of RES multistep ancestral with CFG++", "Euler a CFG++"),
    "Gradient Estimation CFG++": ("ComfyUI's combination of Gradient Estimation with CFG++", "Gradient Estimation"),
    "DPM++ 2M alt": ("a private variant of DPM++ 2M that occurs only in its authors' images", "DPM++ 2M"),
    "DPM++ 2M Test": ("a private variant of DPM++ 2M that occurs only in its authors' images", "DPM++ 2M"),
    "uni_pc_bh2": ("UniPC with another B(h), the function of the step size", "UniPC"),
    "Euler SMEA": ("a sampler from an extension; it enlarges the latents during sampling", "Euler"),
    "Euler a2": ("a sampler from an extension; it adds thresholding to Euler a", "Euler a"),
    "Kohaku LoNyu Yog": ("a sampler that only an extension provides", "Euler a"),
    "Euler Dy": ("a sampler from an extension; it enlarges the latents during sampling", "Euler"),
    "Euler Max": ("a sampler that only an extension provides", "Euler"),
    "FlowMatchEulerDiscreteScheduler": ("diffusers' Euler scheduler for flow-matching models", "Euler"),
    "FlowMatchHeunDiscreteScheduler": ("diffusers' Heun scheduler for flow-matching models", "Heun"),
    "FlowMatchLCMScheduler": ("diffusers' LCM scheduler for flow-matching models", "LCM"),
    "EDMEulerScheduler": ("made for models trained on noise levels, not timesteps", "Euler"),
    "EDMDPMSolverMultistepScheduler": ("made for models trained on noise levels, not timesteps", "DPM++ 2M"),
    "IPNDMScheduler": ("diffusers' variant of iPNDM, which has its own noise levels", "iPNDM"),
    "SASolverScheduler": ("diffusers' stochastic Adams solver", "DPM++ 2M SDE"),
    "TCDScheduler": ("the sampler of trajectory-consistency models", "LCM"),
    "DDPMParallelScheduler": ("DDPM for training on several devices", "DDPM"),
    "DDIMParallelScheduler": ("DDIM for use on several devices", "DDIM"),
    "DDIMInverseScheduler": ("a scheduler that adds noise instead of removing it", "DDIM"),
    "DPMSolverMultistepInverseScheduler": ("a scheduler that adds noise instead of removing it", "DPM++ 2M"),
    "CosineDPMSolverMultistepScheduler": ("made for audio models", "DPM++ 2M"),
    "KarrasVeScheduler": ("made for models trained on noise levels, not timesteps", "Euler"),
    "ScoreSdeVeScheduler": ("made for models trained on noise levels, not timesteps", "Euler a"),
    "RePaintScheduler": ("a method of inpainting", "DDIM"),
    "UnCLIPScheduler": ("made for Karlo", "DDPM"),
    "VQDiffusionScheduler": ("made for VQ diffusion", "DDPM"),
    "AmusedScheduler": ("made for aMUSEd", "DDPM"),
    "DDPMWuerstchenScheduler": ("made for Würstchen", "DDPM"),
    "CMStochasticIterativeScheduler": ("made for consistency models", "LCM"),
    "ConsistencyDecoderScheduler": ("made for consistency decoders", "LCM"),
}
"""Known samplers that civman does not implement: a description of each, and the sampler to try instead."""

_SCHEDULE_ALIASES: Final = {
    "auto": Schedule.AUTOMATIC, "default": Schedule.AUTOMATIC, "uniform": Schedule.NORMAL,
    "poly": Schedule.POLYEXPONENTIAL, "poly exponential": Schedule.POLYEXPONENTIAL,
    "sgm": Schedule.SGM_UNIFORM, "sgmuniform": Schedule.SGM_UNIFORM, "ays": Schedule.ALIGN_YOUR_STEPS,
    "alignyoursteps": Schedule.ALIGN_YOUR_STEPS, "align your steps 11": Schedule.ALIGN_YOUR_STEPS,
    "kl": Schedule.KL_OPTIMAL, "ddim uniform": Schedule.DDIM, "k": Schedule.KARRAS, "ka": Schedule.KARRAS,
}  # fmt: skip
_FROM_EXTENSION: Final = "a schedule that only an extension provides"
_NO_SCHEDULES: Final = {
    "align your steps gits": "Forge's noise levels from the GITS paper",
    "align your steps 32": "Forge's Align Your Steps noise levels for 32 steps",
    "linear quadratic": "ComfyUI's schedule for video models", "turbo discrete": "the schedule of SDXL Turbo",
    "karras exponential": _FROM_EXTENSION, "karras dynamic": _FROM_EXTENSION, "polyexponential test": _FROM_EXTENSION,
    "cosine": _FROM_EXTENSION, "cosine exponential blend": _FROM_EXTENSION, "phi": _FROM_EXTENSION,
    "laplace": _FROM_EXTENSION, "bong tangent": _FROM_EXTENSION,
}  # fmt: skip


def parse(text: str, schedule: str | None = None) -> tuple[Sampler, Schedule]:
    """Parse a sampler and a schedule; the sampler's name may include the schedule ("DPM++ 2M SDE Karras").

    A schedule that is passed separately applies only if the name includes none or Automatic.

    Raises: UsageError: a name is unknown (`facts["nearest"]` lists similar names) or not supported, or two different
    schedules are given.
    """
    wanted = plain(text)
    for spelling, sampler in _spellings():
        if wanted == spelling or wanted.startswith(f"{spelling} "):
            if sampler is None:
                raise _not_offered(spelling)
            rest = wanted[len(spelling) :].strip().removeprefix("gpu").strip()
            named = _schedule(rest or "automatic", text)
            apart = _schedule(plain(schedule), schedule) if schedule else Schedule.AUTOMATIC
            if Schedule.AUTOMATIC not in (named, apart) and named is not apart:
                raise UsageError(f"the sampler was given with two schedules, {named} and {apart}",
                                 hint="pass the schedule only once: in the sampler's name or separately",
                                 code=Cause.TWO_SCHEDULES)  # fmt: skip
            return sampler, apart if named is Schedule.AUTOMATIC else named
    raise _unknown(text, wanted)


def of_recipe(recipe: Recipe) -> tuple[Sampler, Schedule, NoiseLevels | FlowLevels]:
    """Return a recipe's sampler, schedule and noise levels; they follow the recipe's sampling settings."""
    return _of_pass(recipe, recipe.sampler, recipe.schedule)


def of_second_pass(recipe: Recipe) -> tuple[Sampler, Schedule, NoiseLevels | FlowLevels]:
    """Return a recipe's sampler, schedule and noise levels for the second pass; the first pass may use others."""
    hires = recipe.hires
    own, schedule = (hires.sampler, hires.schedule) if hires else ("", "")
    if hires is not None and hires.checkpoint is not None:
        recipe = replace(recipe, is_zero_snr=hires.checkpoint.is_zero_snr, files=())
    return _of_pass(recipe, own or recipe.sampler, schedule or ("" if own else recipe.schedule))


def _of_pass(recipe: Recipe, name: str, stated: str) -> tuple[Sampler, Schedule, NoiseLevels | FlowLevels]:
    named, schedule = parse(name, stated)
    sampling = recipe.sampling
    sampler = with_options(samplers.of_recipe(named.name, recipe.rules), drop_penultimate=sampling.drop_penultimate)
    if recipe.flow is not None:
        return sampler, schedule, FlowLevels(recipe.flow.shift, recipe.flow.entries)
    if sampling.program == "comfyui":
        sampler = _of_comfyui(sampler)
    levels = sampler.levels(
        is_zero_snr=recipe.is_zero_snr, rules=recipe.rules, is_half=sampling.half_levels, program=sampling.program
    )
    return sampler, schedule, levels


def _of_comfyui(sampler: Sampler) -> Sampler:
    """Return the sampler as ComfyUI runs it.

    Raises: UsageError (`unknown-sampler`): civman does not support it with ComfyUI's rules.
    """
    if sampler.own_table:
        is_ddim = sampler.name == "DDIM"
        instead = "Euler" if is_ddim else "DPM++ 2M"
        hint = "use Euler, which is what ComfyUI runs as `ddim`" if is_ddim else f"`{instead}` is the closest sampler"
        raise UsageError(
            f"civman does not support {sampler.name} with ComfyUI's sampling rules", hint=hint,
            code=Cause.UNKNOWN_SAMPLER, nearest=[instead],
        )  # fmt: skip
    return replace(sampler, every=1, drops_penultimate=sampler.name in ("DPM2", "DPM2 a"), automatic=Schedule.NORMAL)


def with_options(sampler: Sampler, *, drop_penultimate: bool) -> Sampler:
    """Return the sampler with `sampling.drop_penultimate` applied; DDIM, PLMS and UniPC ignore this setting."""
    return replace(sampler, drops_penultimate=True) if drop_penultimate and not sampler.own_table else sampler


def plain(text: str) -> str:
    """Normalise a name for comparison."""
    words = re.sub(r"[\s_\-]+", " ", text.casefold()).strip()
    return re.sub(r"\bdpmpp\b", "dpm++", re.sub(r"\bcfg ?pp\b", "cfg++", words)).replace("heunpp", "heun++")


@cache
def _spellings() -> tuple[tuple[str, Sampler | None], ...]:
    """List the known spellings of sampler names, longest first, each with its sampler (None: not supported)."""
    return tuple(sorted(_found(), key=lambda pair: -len(pair[0])))


def _found() -> Iterator[tuple[str, Sampler | None]]:
    for name in NOT_OFFERED:
        yield plain(name), None
    for sampler in SAMPLERS:
        for spelling in (sampler.name, sampler.diffusers, *sampler.aliases):
            if not spelling:
                continue
            short = plain(spelling)
            yield short, sampler
            if short.endswith("scheduler"):
                yield short.removesuffix("scheduler"), sampler
            if short.endswith(" a") or " a " in short:  # ComfyUI spells out "ancestral"
                yield re.sub(r" a\b", " ancestral", short), sampler


def _schedule(wanted: str, original: str) -> Schedule:
    known = {plain(member.value): member for member in Schedule} | _SCHEDULE_ALIASES
    if wanted in _NO_SCHEDULES:
        raise UsageError(
            f"civman has no schedule `{wanted}`: it is {_NO_SCHEDULES[wanted]}",
            hint="the schedules are " + ", ".join(Schedule), code=Cause.UNKNOWN_SCHEDULE, nearest=[],
        )  # fmt: skip
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
        nearest = known[near[0]].value if near else ""
        samplers = {plain(sampler.name): sampler.name for sampler in SAMPLERS}
        if not near and (near := difflib.get_close_matches(plain(original), samplers, n=1, cutoff=0.8)):
            nearest = samplers[near[0]]
        raise UsageError(
            f"unknown schedule in `{original}`: {wanted}",
            hint=f"did you mean `{nearest}`?" if nearest else "the schedules are " + ", ".join(Schedule),
            code=Cause.UNKNOWN_SCHEDULE,
            nearest=[nearest] if nearest else [],
        )
    return known[wanted]


def _not_offered(spelling: str) -> UsageError:
    name = next(name for name in NOT_OFFERED if plain(name) == spelling)
    what, instead = NOT_OFFERED[name]
    return UsageError(
        f"civman has no sampler `{name}`: it is {what}",
        hint=f"`{instead}` is the closest sampler",
        code=Cause.UNKNOWN_SAMPLER,
        nearest=[instead],
    )


def _unknown(text: str, wanted: str) -> UsageError:
    names = {plain(name): name for name in BY_NAME}
    near = [names[match] for match in difflib.get_close_matches(wanted, names, n=3, cutoff=0.4)]
    hint = (
        "did you mean " + ", ".join(f"`{name}`" for name in near) + "?"
        if near
        else "samplers: " + ", ".join(names.values())
    )
    return UsageError(f"unknown sampler: `{text}`", hint=hint, code=Cause.UNKNOWN_SAMPLER, nearest=near)
