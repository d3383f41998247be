"""The table of samplers: each sampler's name, solver and defaults.

`match` is measured (tests/diffusion/sampler_oracles.py, docs/samplers.md): "same" means that the final latents, and the
noise that the steps add, differ from those of `against` by at most 1e-5. Names are parsed in `sampler_names`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from civman.diffusion import solvers, solvers_dpm, solvers_rare
from civman.diffusion.noise_levels import TRAIN_STEPS, NoiseLevels, Schedule, ddim_times, drop_penultimate, table
from civman.diffusion.solvers import Tuning
from civman.domain.recipes.recipe import RULES, Sampling
from civman.errors import Cause, UsageError


class Kind(StrEnum):
    """The source of the fresh noise that a sampler adds during its steps."""

    NONE = "none"
    ANCESTRAL = "ancestral"
    BROWNIAN = "brownian"


class Table(StrEnum):
    """The table of noise levels that a sampler uses for the Automatic schedule; NONE: that of a named schedule."""

    NONE = ""
    DDIM = "ddim"
    UNIPC = "unipc"


@dataclass(frozen=True, slots=True)
class Sampler:
    """A sampler: one row of the table of samplers.

    `diffusers`: the closest scheduler class of diffusers; users may also write this name.
    """

    name: str
    solver: solvers.Solver
    match: str
    against: str
    diffusers: str = ""
    aliases: tuple[str, ...] = ()
    automatic: Schedule = Schedule.NORMAL
    noise: Kind = Kind.NONE
    drops_penultimate: bool = False
    own_table: Table = Table.NONE
    every: int = 1
    """n if models for this sampler were trained only on every n-th timestep; 1 for other samplers."""
    takes_churn: bool = False
    takes_s_noise: bool = False
    guidance_factor: float = 1.0
    """The guidance scale is multiplied by this factor before use."""
    is_cfgpp: bool = False
    """Whether the sampler steps along the unguided prediction (CFG++), which means that the negative prompt is always
    evaluated.
    """
    has_ends_only: bool = False
    """Whether the sampler uses only the first level, the last nonzero level and the length of its table of levels."""
    is_adaptive: bool = False
    """Whether the number of model evaluations depends on the model's outputs."""

    @property
    def calls_per_step(self) -> int:
        """The number of model evaluations that A1111 counts per step when prompts change during the steps."""
        return 2 if self.name in _COUNTED_TWICE else 1

    def levels(
        self, *, is_zero_snr: bool = False, rules: int = RULES, is_half: bool = False, program: str = "a1111"
    ) -> NoiseLevels:
        """Return the noise levels of the models that this sampler is made for."""
        by_alpha = self.own_table is Table.UNIPC and rules > 1
        half = "" if not is_half else "alphas" if self.is_variance_preserving else "levels"
        return NoiseLevels.of_model(
            is_zero_snr=is_zero_snr,
            every=self.every,
            by_alpha=by_alpha,
            is_single=rules > 2,
            half=half,
            program=program,
        )

    @property
    def is_variance_preserving(self) -> bool:
        """Whether the sampler scales latents as the model does (variance-preserving), like DDIM, PLMS and UniPC."""
        return self.own_table is not Table.NONE

    @property
    def takes_eta(self) -> bool:
        """Whether `eta` controls how much noise the sampler's steps add; DDIM has its own setting, `eta_ddim`."""
        return not self.is_variance_preserving and (
            self.noise is Kind.BROWNIAN or (self.noise is Kind.ANCESTRAL and self.name not in _WITHOUT_ETA)
        )

    @property
    def takes_eta_ddim(self) -> bool:
        """Whether `eta_ddim` controls how much noise the sampler's steps add."""
        return self.own_table is Table.DDIM and self.name != "PLMS"

    def tuning(self, sampling: Sampling, rules: int = RULES) -> Tuning:
        """Return the settings of a recipe that this sampler uses; other settings have no effect."""
        return Tuning(
            eta=sampling.eta_ddim if self.is_variance_preserving else sampling.eta if self.takes_eta else 1.0,
            s_noise=sampling.noise_scale if self.takes_s_noise else 1.0,
            s_churn=sampling.s_churn if self.takes_churn else 0.0,
            s_tmin=sampling.s_tmin,
            s_tmax=sampling.s_tmax or math.inf,
            is_single=rules > 1,
        )

    def without_effect(self, sampling: Sampling) -> dict[str, float]:
        """Map each setting in `sampling` that this sampler ignores to the setting's default.

        Settings that have their default value are left out.
        """
        taken = {
            "eta": self.takes_eta, "eta_ddim": self.takes_eta_ddim, "noise_scale": self.takes_s_noise,
            "s_churn": self.takes_churn, "s_tmin": self.takes_churn, "s_tmax": self.takes_churn,
        }  # fmt: skip
        usual = Sampling()
        return {
            name: getattr(usual, name)
            for name, is_taken in taken.items()
            if not is_taken and getattr(sampling, name) != getattr(usual, name)
        }


_COUNTED_TWICE: Final = ("Heun", "DPM2", "DPM2 a", "DPM++ SDE", "DPM++ 2S a", "Restart")
_WITHOUT_ETA: Final = ("LCM", "Restart", "DDPM", "ER SDE")

SAMPLERS: Final = (
    Sampler("Euler", solvers.euler, "same", "k-diffusion sample_euler", "EulerDiscreteScheduler", ("k_euler",),
            takes_churn=True, takes_s_noise=True),
    Sampler(
        "Euler a", solvers.euler_ancestral, "same", "k-diffusion sample_euler_ancestral",
        "EulerAncestralDiscreteScheduler", ("euler ancestral", "k_euler_a", "k_euler_ancestral"), noise=Kind.ANCESTRAL,
    ),
    Sampler("Heun", solvers.heun, "same", "k-diffusion sample_heun", "HeunDiscreteScheduler", ("k_heun",),
            takes_churn=True, takes_s_noise=True),
    Sampler(
        "DPM2", solvers.dpm2, "same", "k-diffusion sample_dpm_2", "KDPM2DiscreteScheduler",
        ("dpm_2", "k_dpm_2", "kdpm_2"),
        automatic=Schedule.KARRAS, drops_penultimate=True, takes_churn=True, takes_s_noise=True,
    ),
    Sampler(
        "DPM2 a", solvers.dpm2_ancestral, "same", "k-diffusion sample_dpm_2_ancestral",
        "KDPM2AncestralDiscreteScheduler",
        ("dpm2 ancestral", "dpm_2_ancestral", "dpm_2_a", "k_dpm_2_a", "k_dpm_2_ancestral", "kdpm_2_a"),
        automatic=Schedule.KARRAS, noise=Kind.ANCESTRAL, drops_penultimate=True, takes_s_noise=True,
    ),
    Sampler("LMS", solvers.lms, "same", "k-diffusion sample_lms", "LMSDiscreteScheduler", ("k_lms",)),
    Sampler(
        "DPM++ 2M", solvers_dpm.dpmpp_2m, "same", "k-diffusion sample_dpmpp_2m", "DPMSolverMultistepScheduler",
        ("k_dpmpp_2m",), automatic=Schedule.KARRAS,
    ),
    Sampler(
        "DPM++ 2M SDE", solvers_dpm.dpmpp_2m_sde, "same", "k-diffusion sample_dpmpp_2m_sde", "",
        ("k_dpmpp_2m_sde",), automatic=Schedule.EXPONENTIAL, noise=Kind.BROWNIAN, takes_s_noise=True,
    ),
    Sampler(
        "DPM++ 2M SDE Heun", solvers_dpm.dpmpp_2m_sde_heun, "same",
        "k-diffusion sample_dpmpp_2m_sde(solver_type='heun')", "", ("k_dpmpp_2m_sde_heun",),
        automatic=Schedule.EXPONENTIAL, noise=Kind.BROWNIAN, takes_s_noise=True,
    ),
    Sampler(
        "DPM++ 3M SDE", solvers_dpm.dpmpp_3m_sde, "same", "k-diffusion sample_dpmpp_3m_sde", "",
        ("k_dpmpp_3m_sde",), automatic=Schedule.EXPONENTIAL, noise=Kind.BROWNIAN, drops_penultimate=True,
        takes_s_noise=True,
    ),
    Sampler(
        "DPM++ SDE", solvers_dpm.dpmpp_sde, "same", "k-diffusion sample_dpmpp_sde", "DPMSolverSDEScheduler",
        ("k_dpmpp_sde",), automatic=Schedule.KARRAS, noise=Kind.BROWNIAN, takes_s_noise=True,
    ),
    Sampler(
        "DPM++ 2S a", solvers_dpm.dpmpp_2s_ancestral, "same", "k-diffusion sample_dpmpp_2s_ancestral",
        "DPMSolverSinglestepScheduler", ("dpm++ 2s ancestral", "k_dpmpp_2s_a", "k_dpmpp_2s_ancestral"),
        automatic=Schedule.KARRAS, noise=Kind.ANCESTRAL, takes_s_noise=True,
    ),
    Sampler(
        "DPM fast", solvers_dpm.dpm_fast, "same", "k-diffusion sample_dpm_fast", "", ("k_dpm_fast",),
        noise=Kind.ANCESTRAL, has_ends_only=True, takes_s_noise=True,
    ),
    Sampler(
        "DPM adaptive", solvers_dpm.dpm_adaptive, "same", "k-diffusion sample_dpm_adaptive", "", ("k_dpm_ad",),
        noise=Kind.ANCESTRAL, has_ends_only=True, is_adaptive=True,
    ),
    Sampler(
        "Restart", solvers_rare.restart, "same", "an independent implementation of A1111's Restart", "", (),
        automatic=Schedule.KARRAS, noise=Kind.ANCESTRAL,
    ),
    Sampler("DDIM", solvers.ddim, "same", "an independent implementation of A1111's DDIM", "DDIMScheduler",
            own_table=Table.DDIM, noise=Kind.ANCESTRAL),
    Sampler("DDIM CFG++", solvers_rare.ddim_cfgpp, "same", "an independent implementation of A1111's DDIM CFG++",
            own_table=Table.DDIM, noise=Kind.ANCESTRAL, is_cfgpp=True, guidance_factor=1 / 12.5),
    Sampler("PLMS", solvers.plms, "same", "an independent implementation of A1111's PLMS", "PNDMScheduler",
            own_table=Table.DDIM),
    Sampler(
        "UniPC", solvers.unipc, "same", "an independent implementation of A1111's UniPC (order 3, bh1, uniform times)",
        "UniPCMultistepScheduler", ("uni_pc",), own_table=Table.UNIPC,
    ),
    Sampler(
        "LCM", solvers.lcm, "same", "an independent implementation of A1111's LCM", "LCMScheduler", ("k_lcm",),
        noise=Kind.ANCESTRAL, every=20,
    ),
    Sampler("Heun++", solvers_rare.heunpp, "same", "an independent implementation of Forge's HeunPP2", "",
            ("heunpp2", "heun++ 2", "heun++2"), takes_churn=True, takes_s_noise=True),
    Sampler("iPNDM", solvers_rare.ipndm, "same", "an independent implementation of Forge's IPNDM"),
    Sampler("iPNDM_v", solvers_rare.ipndm_v, "same", "an independent implementation of Forge's IPNDM_V"),
    Sampler("DEIS", solvers_rare.deis_over_time, "same", "an independent implementation of Forge's DEIS"),
    Sampler("DEIS multistep", solvers.deis, "same", "diffusers DEISMultistepScheduler (order 2)",
            "DEISMultistepScheduler"),
    Sampler("DDPM", solvers_rare.ddpm, "same", "an independent implementation of Forge's DDPM", "DDPMScheduler",
            noise=Kind.ANCESTRAL),
    Sampler("Gradient Estimation", solvers_rare.gradient_estimation, "same",
            "an independent implementation of ComfyUI's gradient_estimation"),
    Sampler("RES multistep", solvers_rare.res_multistep, "same",
            "an independent implementation of ComfyUI's res_multistep"),
    Sampler("RES multistep a", solvers_rare.res_multistep_ancestral, "same",
            "an independent implementation of ComfyUI's res_multistep_ancestral", "", ("res_multistep_ancestral",),
            noise=Kind.ANCESTRAL, takes_s_noise=True),
    Sampler("ER SDE", solvers_rare.er_sde, "same", "an independent implementation of ComfyUI's er_sde",
            noise=Kind.ANCESTRAL, takes_s_noise=True),
    Sampler("Euler CFG++", solvers_rare.euler_cfgpp, "same", "an independent implementation of ComfyUI's euler_cfg_pp",
            is_cfgpp=True),
    Sampler("Euler a CFG++", solvers_rare.euler_ancestral_cfgpp, "same",
            "an independent implementation of ComfyUI's euler_ancestral_cfg_pp", "", ("euler_ancestral_cfg_pp",),
            noise=Kind.ANCESTRAL, is_cfgpp=True, takes_s_noise=True),
    Sampler("DPM++ 2M CFG++", solvers_rare.dpmpp_2m_cfgpp, "same",
            "an independent implementation of ComfyUI's dpmpp_2m_cfg_pp", is_cfgpp=True, automatic=Schedule.KARRAS),
)  # fmt: skip
BY_NAME: Final = {sampler.name: sampler for sampler in SAMPLERS}


@dataclass(frozen=True, slots=True)
class Plan:
    """A sampler and its noise levels for one run, with all names and defaults resolved.

    The sampler starts from `picture_scale` · start image + `start_scale` · unit noise; the latents are `end_scale` ·
    its result. `span`: the lowest and highest level of the Brownian path.
    """

    sampler: Sampler
    schedule: Schedule
    sigmas: tuple[float, ...]
    start_scale: float
    end_scale: float
    span: tuple[float, float]
    picture_scale: float = 1.0

    @property
    def steps(self) -> int:
        """The number of steps, each from one level to the next."""
        return len(self.sigmas) - 1

    def tail(self, steps: int) -> "Plan":
        """Return a plan with only the last `steps` steps, for img2img with version 1 of the recipe rules.

        The first remaining noise level determines how much noise is added.
        """
        sigmas = self.sigmas[-(steps + 1) :]
        return replace(self, sigmas=sigmas, start_scale=sigmas[0], span=_span(sigmas))


@dataclass(frozen=True, slots=True)
class Start:
    """Where an img2img run or second pass starts: `strength` is the denoising strength.

    `keeps_steps`: run as many steps as requested, at the end of a longer table, as A1111's second pass does; otherwise,
    only a part of the requested steps is run, as in A1111's img2img.
    """

    strength: float
    keeps_steps: bool = False


def plan(
    sampler: Sampler, schedule: Schedule, steps: int, levels: NoiseLevels, *, is_xl: bool = False,
    start: Start | None = None, rules: int = RULES, sigmas: Sequence[float] = (),
) -> Plan:  # fmt: skip
    """Plan a run of `steps` steps; `levels` is the result of `sampler.levels`.

    `sigmas`: noise levels to use instead of a schedule's.

    Raises: UsageError: fewer than one step, or more than the model has timesteps.
    """
    if levels.program == "comfyui":
        return _by_comfyui(sampler, schedule, steps, levels, is_xl=is_xl, start=start, sigmas=sigmas)
    if sigmas:
        return Plan(sampler, schedule, tuple(sigmas), sigmas[0], 1.0, _span(sigmas))
    # as in A1111, run only int(strength · steps) + 1 of the steps, unless `keeps_steps` is set
    share = min(start.strength, 0.999) if start else 1.0
    whole = int(steps / share) if start and start.keeps_steps else steps
    taken = (steps - 1 if start.keeps_steps else int(share * steps)) if start else None
    if not 1 <= steps <= whole <= TRAIN_STEPS:
        raise _bad_steps(steps, share, whole, TRAIN_STEPS)
    if schedule is Schedule.AUTOMATIC and sampler.own_table:
        if rules > 1:
            return _by_times(sampler, whole, levels, taken)
        sigmas = _own_table_1(sampler.own_table, whole, levels)
    else:
        schedule = sampler.automatic if schedule is Schedule.AUTOMATIC else schedule
        sigmas = table(schedule, whole + sampler.drops_penultimate, levels, is_xl=is_xl, is_single=rules > 1)
        if sampler.drops_penultimate:
            sigmas = drop_penultimate(sigmas)
    span = _span(sigmas)
    if rules > 1 and taken is not None:
        sigmas = sigmas[whole - taken - 1 :]
    scale = sigmas[0]
    # as in A1111, use the model's lowest and highest levels, not those of the table
    if sampler.has_ends_only and taken is None:
        sigmas = [levels.greatest, *sigmas[1:-2], levels.least, 0.0] if steps > 1 else [levels.greatest, levels.least]
    # remove repeated levels, which discrete tables have with hundreds of steps: a step between equal levels divides by
    # zero
    sigmas = [s for i, s in enumerate(sigmas) if i == 0 or s < sigmas[i - 1]]
    end = 1.0
    if sampler.is_variance_preserving:
        end = 1 / math.sqrt(1 + sigmas[-1] ** 2)
        scale = math.sqrt(1 + sigmas[0] ** 2) if taken is None else scale
    made = Plan(sampler, schedule, tuple(sigmas), scale, end, span)
    if rules == 1 and taken is not None:
        made = made.tail(min(taken + 1, made.steps))
    return made


def _bad_steps(steps: int, strength: float, whole: int, limit: int) -> UsageError:
    if whole == steps:
        return UsageError(f"steps must be 1 to {limit}, not {steps}", code=Cause.BAD_STEPS)
    return UsageError(
        f"{steps} steps at strength {strength:g} need a schedule of {whole} steps, but the limit is {limit}",
        code=Cause.BAD_STEPS,
    )


def _by_comfyui(
    sampler: Sampler, schedule: Schedule, steps: int, levels: NoiseLevels, *, is_xl: bool, start: Start | None,
    sigmas: Sequence[float],
) -> Plan:  # fmt: skip
    """Plan a run by ComfyUI's rules: a strength below 1 lengthens the table, and only its last `steps` steps are run.

    If the run starts at or above the model's highest level, the noise is scaled by √(1 + σ²), otherwise by σ.
    """
    share = start.strength if start and start.strength <= _WHOLE_STRENGTH else 1.0
    whole = int(steps / share)
    if not 1 <= steps <= whole <= _MOST_STEPS:
        raise _bad_steps(steps, share, whole, _MOST_STEPS)
    if not sigmas:
        schedule = sampler.automatic if schedule is Schedule.AUTOMATIC else schedule
        found = table(schedule, whole + sampler.drops_penultimate, levels, is_xl=is_xl)
        found = drop_penultimate(found) if sampler.drops_penultimate else found
        sigmas = found[-(steps + 1) :] if share < 1 else found
    is_whole = math.isclose(levels.greatest, sigmas[0], rel_tol=1e-5) or sigmas[0] > levels.greatest
    scale = math.sqrt(1 + sigmas[0] ** 2) if is_whole else sigmas[0]
    sigmas = [s for i, s in enumerate(sigmas) if i == 0 or s < sigmas[i - 1]]
    return Plan(sampler, schedule, tuple(sigmas), scale, 1.0, _span(sigmas))


_WHOLE_STRENGTH: Final = 0.9999
_MOST_STEPS: Final = 10000


def of_recipe(name: str, rules: int) -> Sampler:
    """Look up the sampler of a recipe by its name, whose meaning depends on the version of the recipe rules.

    Raises: KeyError: the name is unknown.
    """
    return BY_NAME["DEIS multistep" if name == "DEIS" and rules == 1 else name]


def _span(sigmas: Sequence[float]) -> tuple[float, float]:
    return min(sigma for sigma in sigmas if sigma > 0), max(sigmas)


def _by_times(sampler: Sampler, steps: int, levels: NoiseLevels, taken: int | None) -> Plan:
    """Plan DDIM, PLMS or UniPC, which count in timesteps and work in the model's variance-preserving scaling.

    In img2img, A1111 adds noise for a higher timestep than that of the first evaluation: the next one up in the table.
    """
    times = [float(time) for time in reversed(ddim_times(steps))]
    used = times if taken is None else times[:taken]
    noisy = None if taken is None else levels.sigma(times[min(taken, len(times) - 1)])
    if not used:  # the strength is too small for a single step, so take the table's lowest timestep
        used = times[:1]
    if sampler.own_table is Table.UNIPC:
        last, count = (TRAIN_STEPS - 1.0 if taken is None else used[-1]), len(used)
        used = [last * i / count for i in range(count + 1)]
    elif len(times) == 1:
        used = [0.0, *times]
    sigmas = [levels.sigma(time) for time in reversed(used)]
    here = math.sqrt(1 + sigmas[0] ** 2)
    end = 1 / math.sqrt(1 + sigmas[-1] ** 2)
    if noisy is None:
        return Plan(sampler, Schedule.AUTOMATIC, tuple(sigmas), here, end, _span(sigmas))
    signal = 1 / math.sqrt(1 + noisy**2)
    return Plan(
        sampler, Schedule.AUTOMATIC, tuple(sigmas), here * noisy * signal, end, _span(sigmas), here * signal
    )  # fmt: skip


def _own_table_1(name: Table, steps: int, levels: NoiseLevels) -> list[float]:
    """Compute the noise levels of a sampler's own table in version 1 of the recipe rules."""
    if name is Table.DDIM:
        times: list[float] = [float(t) for t in ddim_times(steps)]
        return [levels.sigma(t) for t in times] if len(times) > 1 else [levels.sigma(times[0]), levels.sigma(0)]
    return [levels.sigma((TRAIN_STEPS - 1) * (1 - i / steps)) for i in range(steps + 1)]
