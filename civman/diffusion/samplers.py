"""Samplers and schedules by the names people know, joined to what computes them: one table.

`match` is measured, not claimed (tests/render/sampler_oracles.py, docs/samplers.md): "same" means that the latents
after 20 steps lie within 1e-5 of those of `against`, with every schedule that it has and with the same noise draws;
"near" that the method is the same and details differ. Names that nothing here computes are in `NOT_OFFERED`, so that
they can be refused by name.
"""

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from civman.diffusion import solvers
from civman.diffusion.noise_levels import TRAIN_STEPS, NoiseLevels, Schedule, ddim_times, drop_penultimate, table
from civman.errors import Cause, UsageError


class Kind(StrEnum):
    """Where a sampler's fresh noise comes from."""

    NONE = "none"
    ANCESTRAL = "ancestral"
    BROWNIAN = "brownian"


@dataclass(frozen=True, slots=True)
class Sampler:
    """One row of the table. `diffusers` is the class that comes nearest, accepted as a name too."""

    name: str
    solver: solvers.Solver
    match: str
    against: str
    diffusers: str
    aliases: tuple[str, ...] = ()
    automatic: Schedule = Schedule.NORMAL
    noise: Kind = Kind.NONE
    drops_penultimate: bool = False
    own_table: str = ""
    """The table it uses under Automatic where that is none of the named ones: "ddim" or "unipc"."""
    every: int = 1
    """The models it is for know every so many-th time only."""

    def levels(self, *, is_zero_snr: bool = False) -> NoiseLevels:
        """The noise levels of the models it is for."""
        return NoiseLevels.of_model(is_zero_snr=is_zero_snr, every=self.every)

    @property
    def is_variance_preserving(self) -> bool:
        """Whether it starts from plain unit noise and ends in the model's own scale (DDIM's relatives)."""
        return self.own_table in ("ddim", "unipc")


SAMPLERS: Final = (
    Sampler("Euler", solvers.euler, "same", "k-diffusion sample_euler", "EulerDiscreteScheduler", ("k_euler",)),
    Sampler(
        "Euler a", solvers.euler_ancestral, "same", "k-diffusion sample_euler_ancestral",
        "EulerAncestralDiscreteScheduler", ("euler ancestral", "k_euler_a", "k_euler_ancestral"), noise=Kind.ANCESTRAL,
    ),
    Sampler("Heun", solvers.heun, "same", "k-diffusion sample_heun", "HeunDiscreteScheduler", ("k_heun",)),
    Sampler(
        "DPM2", solvers.dpm2, "same", "k-diffusion sample_dpm_2", "KDPM2DiscreteScheduler", ("dpm_2", "k_dpm_2"),
        automatic=Schedule.KARRAS, drops_penultimate=True,
    ),
    Sampler(
        "DPM2 a", solvers.dpm2_ancestral, "same", "k-diffusion sample_dpm_2_ancestral",
        "KDPM2AncestralDiscreteScheduler", ("dpm2 ancestral", "dpm_2_ancestral", "k_dpm_2_a", "k_dpm_2_ancestral"),
        automatic=Schedule.KARRAS, noise=Kind.ANCESTRAL, drops_penultimate=True,
    ),
    Sampler("LMS", solvers.lms, "same", "k-diffusion sample_lms", "LMSDiscreteScheduler", ("k_lms",)),
    Sampler(
        "DPM++ 2M", solvers.dpmpp_2m, "same", "k-diffusion sample_dpmpp_2m", "DPMSolverMultistepScheduler",
        ("dpmpp_2m", "k_dpmpp_2m"), automatic=Schedule.KARRAS,
    ),
    Sampler(
        "DPM++ 2M SDE", solvers.dpmpp_2m_sde, "same", "k-diffusion sample_dpmpp_2m_sde",
        "", ("dpmpp_2m_sde", "k_dpmpp_2m_sde"), automatic=Schedule.EXPONENTIAL, noise=Kind.BROWNIAN,
    ),
    Sampler(
        "DPM++ 2M SDE Heun", solvers.dpmpp_2m_sde_heun, "same", "k-diffusion sample_dpmpp_2m_sde(solver_type='heun')",
        "", ("dpmpp_2m_sde_heun",), automatic=Schedule.EXPONENTIAL, noise=Kind.BROWNIAN,
    ),
    Sampler(
        "DPM++ 3M SDE", solvers.dpmpp_3m_sde, "same", "k-diffusion sample_dpmpp_3m_sde", "", ("dpmpp_3m_sde",),
        automatic=Schedule.EXPONENTIAL, noise=Kind.BROWNIAN, drops_penultimate=True,
    ),
    Sampler(
        "DPM++ SDE", solvers.dpmpp_sde, "same", "k-diffusion sample_dpmpp_sde", "DPMSolverSDEScheduler",
        ("dpmpp_sde", "k_dpmpp_sde"), automatic=Schedule.KARRAS, noise=Kind.BROWNIAN,
    ),
    Sampler(
        "DPM++ 2S a", solvers.dpmpp_2s_ancestral, "same", "k-diffusion sample_dpmpp_2s_ancestral",
        "DPMSolverSinglestepScheduler", ("dpm++ 2s ancestral", "dpmpp_2s_a", "dpmpp_2s_ancestral", "k_dpmpp_2s_a"),
        automatic=Schedule.KARRAS, noise=Kind.ANCESTRAL,
    ),
    Sampler("DDIM", solvers.euler, "same", "diffusers DDIMScheduler (eta 0)", "DDIMScheduler", own_table="ddim"),
    Sampler(
        "PLMS", solvers.plms, "same", "diffusers PNDMScheduler (skip_prk_steps)", "PNDMScheduler", own_table="ddim",
    ),
    Sampler(
        "UniPC", solvers.unipc, "same", "diffusers UniPCMultistepScheduler (order 3, bh1)", "UniPCMultistepScheduler",
        ("uni_pc",), own_table="unipc",
    ),
    Sampler(
        "LCM", solvers.lcm, "same", "A1111's LCM, its rule written a second time", "LCMScheduler",
        noise=Kind.ANCESTRAL, every=20,
    ),
    Sampler("DEIS", solvers.deis, "same", "diffusers DEISMultistepScheduler (order 2)", "DEISMultistepScheduler"),
)  # fmt: skip

NOT_OFFERED: Final = {
    "Restart": "Heun", "DPM fast": "DPM++ 2M", "DPM adaptive": "DPM++ 2M", "DDIM CFG++": "DDIM",
    "Euler CFG++": "Euler", "Euler a CFG++": "Euler a", "Heun++ 2": "Heun", "IPNDM": "DEIS", "IPNDM_V": "DEIS",
    "SA-Solver": "DPM++ 2M SDE", "ER SDE": "DPM++ 3M SDE", "RES multistep": "DPM++ 2M", "TCD": "LCM",
    "DDPM": "Euler a", "DPM++ 2S": "DPM++ 2M", "DPM++ 3M": "DPM++ 2M", "Gradient Estimation": "DPM++ 2M",
}  # fmt: skip
"""Samplers known by name that nothing here computes, and which one to try instead."""

_SCHEDULE_ALIASES: Final = {
    "auto": Schedule.AUTOMATIC, "default": Schedule.AUTOMATIC, "uniform": Schedule.NORMAL,
    "poly": Schedule.POLYEXPONENTIAL, "poly exponential": Schedule.POLYEXPONENTIAL,
    "sgm": Schedule.SGM_UNIFORM, "ays": Schedule.ALIGN_YOUR_STEPS,
    "kl": Schedule.KL_OPTIMAL, "ddim uniform": Schedule.DDIM,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """A sampler with its levels for one run: what is left once all names and defaults are resolved.

    `start_scale` multiplies unit noise to make the first x; `end_scale` the last x to make latents.
    """

    sampler: Sampler
    schedule: Schedule
    sigmas: tuple[float, ...]
    start_scale: float
    end_scale: float

    @property
    def steps(self) -> int:
        """Moves from one level to the next."""
        return len(self.sigmas) - 1

    def tail(self, steps: int) -> "Plan":
        """The last `steps` moves, for starting from a picture; starts from it plus noise of the first level."""
        sigmas = self.sigmas[-(steps + 1) :]
        return Plan(self.sampler, self.schedule, sigmas, sigmas[0], self.end_scale)


def parse(text: str, schedule: str | None = None) -> tuple[Sampler, Schedule]:
    """A sampler and a schedule from their names; the sampler's may carry the schedule ("DPM++ 2M SDE Karras").

    Longest sampler name wins, what is left is the schedule. diffusers' class names and the usual short ones
    ("dpmpp_2m") are understood. A schedule given apart wins over Automatic only.

    Raises: UsageError: unknown (`facts["nearest"]` says what is close), not offered, or two different schedules.
    """
    wanted = _plain(text)
    for spelling, sampler in _spellings():
        if wanted == spelling or wanted.startswith(f"{spelling} "):
            rest = _schedule(wanted[len(spelling) :].strip() or "automatic", text)
            apart = _schedule(_plain(schedule), schedule) if schedule else Schedule.AUTOMATIC
            if Schedule.AUTOMATIC not in (rest, apart) and rest is not apart:
                raise UsageError(f"two schedules for one sampler: {rest} and {apart}", code=Cause.TWO_SCHEDULES,
                                 hint="name one of them")  # fmt: skip
            return sampler, apart if rest is Schedule.AUTOMATIC else rest
    raise _unknown(text, wanted)


def plan(sampler: Sampler, schedule: Schedule, steps: int, levels: NoiseLevels, *, is_xl: bool = False) -> Plan:
    """The levels that `steps` steps pass; `levels` as `sampler.levels` gives them.

    Raises: UsageError: fewer than one step, or more than the model has.
    """
    if not 1 <= steps <= TRAIN_STEPS:
        raise UsageError(f"steps must be 1 to {TRAIN_STEPS}, not {steps}", code=Cause.BAD_STEPS)
    if schedule is Schedule.AUTOMATIC and sampler.own_table:
        sigmas = _own_table(sampler.own_table, steps, levels)
    else:
        schedule = sampler.automatic if schedule is Schedule.AUTOMATIC else schedule
        sigmas = table(schedule, steps + sampler.drops_penultimate, levels, is_xl=is_xl)
        if sampler.drops_penultimate:
            sigmas = drop_penultimate(sigmas)
    # with hundreds of steps the discrete tables repeat levels, and a step between equal levels divides by zero
    sigmas = [s for i, s in enumerate(sigmas) if i == 0 or s < sigmas[i - 1]]
    if sampler.is_variance_preserving:
        start, end = math.sqrt(1 + sigmas[0] ** 2), 1 / math.sqrt(1 + sigmas[-1] ** 2)
    else:
        start, end = sigmas[0], 1.0
    return Plan(sampler, schedule, tuple(sigmas), start, end)


def _own_table(name: str, steps: int, levels: NoiseLevels) -> list[float]:
    if name == "ddim":
        times: list[float] = [float(t) for t in ddim_times(steps)]
        return [levels.sigma(t) for t in times] if len(times) > 1 else [levels.sigma(times[0]), levels.sigma(0)]
    return [levels.sigma((TRAIN_STEPS - 1) * (1 - i / steps)) for i in range(steps + 1)]


def _spellings() -> Iterator[tuple[str, Sampler]]:
    """Every accepted spelling, longest first."""
    found = [
        (_plain(spelling), sampler)
        for sampler in SAMPLERS
        for spelling in (sampler.name, sampler.diffusers, *sampler.aliases)
        if spelling
    ]
    found += [(s.removesuffix("scheduler"), sampler) for s, sampler in found if s.endswith("scheduler")]
    yield from sorted(found, key=lambda pair: -len(pair[0]))


def _schedule(plain: str, original: str) -> Schedule:
    known = {_plain(member.value): member for member in Schedule} | _SCHEDULE_ALIASES
    if plain not in known:
        near = difflib.get_close_matches(plain, known, n=1, cutoff=0.5)
        nearest = known[near[0]].value if near else ""
        samplers = {_plain(sampler.name): sampler.name for sampler in SAMPLERS}
        if not near and (near := difflib.get_close_matches(_plain(original), samplers, n=1, cutoff=0.8)):
            nearest = samplers[near[0]]
        raise UsageError(
            f"unknown schedule in `{original}`: {plain}",
            hint=f"did you mean `{nearest}`?" if nearest else "schedules: " + ", ".join(Schedule),
            code=Cause.UNKNOWN_SCHEDULE,
            nearest=[nearest] if nearest else [],
        )
    return known[plain]


def _unknown(text: str, wanted: str) -> UsageError:
    for name, instead in NOT_OFFERED.items():
        if wanted == _plain(name) or wanted.startswith(_plain(name) + " "):
            return UsageError(
                f"civman has no sampler `{name}`", hint=f"`{instead}` comes nearest", code=Cause.UNKNOWN_SAMPLER,
                nearest=[instead],
            )  # fmt: skip
    names = {_plain(sampler.name): sampler.name for sampler in SAMPLERS}
    near = [names[match] for match in difflib.get_close_matches(wanted, names, n=3, cutoff=0.4)]
    hint = (
        "did you mean " + ", ".join(f"`{name}`" for name in near) + "?"
        if near
        else "samplers: " + ", ".join(names.values())
    )
    return UsageError(f"unknown sampler: `{text}`", hint=hint, code=Cause.UNKNOWN_SAMPLER, nearest=near)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
