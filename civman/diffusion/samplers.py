"""Samplers and schedules by the names people know, joined to what computes them: one table.

`match` is measured, not claimed (tests/diffusion/sampler_oracles.py, docs/samplers.md): "same" means that the last
latents lie within 1e-5 of those of `against`, its noise included. How names are read is in `sampler_names`.
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
    """Where a sampler's fresh noise comes from."""

    NONE = "none"
    ANCESTRAL = "ancestral"
    BROWNIAN = "brownian"


class Table(StrEnum):
    """The table of levels that a sampler uses under Automatic, where that is none of the named ones."""

    NONE = ""
    DDIM = "ddim"
    UNIPC = "unipc"


@dataclass(frozen=True, slots=True)
class Sampler:
    """One row of the table. `diffusers` is the class that comes nearest, accepted as a name too."""

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
    """The models it is for know every so many-th time only."""
    takes_churn: bool = False
    takes_s_noise: bool = False
    guidance_factor: float = 1.0
    """What the guidance is multiplied with before it is used."""
    is_cfgpp: bool = False
    """It steps along the picture without guidance, so the negative prompt is always asked."""
    has_ends_only: bool = False
    """Of a table it uses the two ends and the length."""
    is_adaptive: bool = False
    """How often it asks the model depends on the answers."""

    def levels(self, *, is_zero_snr: bool = False, rules: int = RULES) -> NoiseLevels:
        """The noise levels of the models it is for."""
        by_alpha = self.own_table is Table.UNIPC and rules > 1
        return NoiseLevels.of_model(is_zero_snr=is_zero_snr, every=self.every, by_alpha=by_alpha)

    @property
    def is_variance_preserving(self) -> bool:
        """Whether it starts from plain unit noise and ends in the model's own scale (DDIM's relatives)."""
        return self.own_table is not Table.NONE

    @property
    def takes_eta(self) -> bool:
        """Whether `eta` says how much noise its steps add; DDIM's relatives have their own, `eta_ddim`."""
        return not self.is_variance_preserving and (
            self.noise is Kind.BROWNIAN or (self.noise is Kind.ANCESTRAL and self.name not in _WITHOUT_ETA)
        )

    @property
    def takes_eta_ddim(self) -> bool:
        """Whether `eta_ddim` says how much noise its steps add."""
        return self.own_table is Table.DDIM and self.name != "PLMS"

    def tuning(self, sampling: Sampling, rules: int = RULES) -> Tuning:
        """The numbers of a recipe that this sampler takes; the others have no effect on it."""
        return Tuning(
            eta=sampling.eta_ddim if self.is_variance_preserving else sampling.eta if self.takes_eta else 1.0,
            s_noise=sampling.noise_scale if self.takes_s_noise else 1.0,
            s_churn=sampling.s_churn if self.takes_churn else 0.0,
            s_tmin=sampling.s_tmin,
            s_tmax=sampling.s_tmax or math.inf,
            is_single=rules > 1,
        )

    def without_effect(self, sampling: Sampling) -> dict[str, float]:
        """The numbers of a recipe that differ from the usual and that this sampler does not take, by name."""
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


_WITHOUT_ETA: Final = ("LCM", "Restart", "DDPM")

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
        "Restart", solvers_rare.restart, "same", "A1111's Restart, its rule written a second time", "", (),
        automatic=Schedule.KARRAS, noise=Kind.ANCESTRAL,
    ),
    Sampler("DDIM", solvers.ddim, "same", "A1111's DDIM, its rule written a second time", "DDIMScheduler",
            own_table=Table.DDIM, noise=Kind.ANCESTRAL),
    Sampler("DDIM CFG++", solvers_rare.ddim_cfgpp, "same", "A1111's DDIM CFG++, its rule written a second time",
            own_table=Table.DDIM, noise=Kind.ANCESTRAL, is_cfgpp=True, guidance_factor=1 / 12.5),
    Sampler("PLMS", solvers.plms, "same", "A1111's PLMS, its rule written a second time", "PNDMScheduler",
            own_table=Table.DDIM),
    Sampler(
        "UniPC", solvers.unipc, "same", "A1111's UniPC (order 3, bh1, uniform times), its rule written a second time",
        "UniPCMultistepScheduler", ("uni_pc",), own_table=Table.UNIPC,
    ),
    Sampler(
        "LCM", solvers.lcm, "same", "A1111's LCM, its rule written a second time", "LCMScheduler", ("k_lcm",),
        noise=Kind.ANCESTRAL, every=20,
    ),
    Sampler("Heun++", solvers_rare.heunpp, "same", "Forge's HeunPP2, its rule written a second time", "",
            ("heunpp2", "heun++ 2", "heun++2"), takes_churn=True, takes_s_noise=True),
    Sampler("iPNDM", solvers_rare.ipndm, "same", "Forge's IPNDM, its rule written a second time"),
    Sampler("iPNDM_v", solvers_rare.ipndm_v, "same", "Forge's IPNDM_V, its rule written a second time"),
    Sampler("DEIS", solvers_rare.deis_over_time, "same", "Forge's DEIS, its rule written a second time"),
    Sampler("DEIS multistep", solvers.deis, "same", "diffusers DEISMultistepScheduler (order 2)",
            "DEISMultistepScheduler"),
    Sampler("DDPM", solvers_rare.ddpm, "same", "Forge's DDPM, its rule written a second time", "DDPMScheduler",
            noise=Kind.ANCESTRAL),
    Sampler("Gradient Estimation", solvers_rare.gradient_estimation, "same",
            "ComfyUI's gradient_estimation, its rule written a second time"),
    Sampler("RES multistep", solvers_rare.res_multistep, "same",
            "ComfyUI's res_multistep, its rule written a second time"),
    Sampler("RES multistep a", solvers_rare.res_multistep_ancestral, "same",
            "ComfyUI's res_multistep_ancestral, its rule written a second time", "", ("res_multistep_ancestral",),
            noise=Kind.ANCESTRAL, takes_s_noise=True),
    Sampler("Euler CFG++", solvers_rare.euler_cfgpp, "same", "ComfyUI's euler_cfg_pp, its rule written a second time",
            is_cfgpp=True),
    Sampler("Euler a CFG++", solvers_rare.euler_ancestral_cfgpp, "same",
            "ComfyUI's euler_ancestral_cfg_pp, its rule written a second time", "", ("euler_ancestral_cfg_pp",),
            noise=Kind.ANCESTRAL, is_cfgpp=True, takes_s_noise=True),
    Sampler("DPM++ 2M CFG++", solvers_rare.dpmpp_2m_cfgpp, "same",
            "ComfyUI's dpmpp_2m_cfg_pp, its rule written a second time", is_cfgpp=True, automatic=Schedule.KARRAS),
)  # fmt: skip
BY_NAME: Final = {sampler.name: sampler for sampler in SAMPLERS}


@dataclass(frozen=True, slots=True)
class Plan:
    """A sampler with its levels for one run: what is left once all names and defaults are resolved.

    The first x is the picture to start from times `picture_scale` plus unit noise times `start_scale`; the last x times
    `end_scale` is the latents. `span`: the levels between which a Brownian path runs.
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
        """Moves from one level to the next."""
        return len(self.sigmas) - 1

    def tail(self, steps: int) -> "Plan":
        """By rules 1: the last `steps` moves, for starting from a picture, with noise of the first of their levels."""
        sigmas = self.sigmas[-(steps + 1) :]
        return replace(self, sigmas=sigmas, start_scale=sigmas[0], span=_span(sigmas))


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run begins that does not begin with noise alone: `strength` of the noise on a picture.

    `keeps_steps`: as many steps as asked for out of a longer table, as A1111's second pass does; otherwise strength
    shortens the table, as its img2img does.
    """

    strength: float
    keeps_steps: bool = False


def plan(
    sampler: Sampler, schedule: Schedule, steps: int, levels: NoiseLevels, *, is_xl: bool = False,
    start: Start | None = None, rules: int = RULES,
) -> Plan:  # fmt: skip
    """The levels that `steps` steps pass; `levels` as `sampler.levels` gives them.

    Raises: UsageError: fewer than one step, or more than the model has.
    """
    # as A1111 counts: strength shortens the table, and one step more than its share is taken
    share = min(start.strength, 0.999) if start else 1.0
    whole = int(steps / share) if start and start.keeps_steps else steps
    taken = (steps - 1 if start.keeps_steps else int(share * steps)) if start else None
    if not 1 <= steps <= whole <= TRAIN_STEPS:
        asked = f"{steps}" if whole == steps else f"{steps} from strength {share:g}, which makes {whole}"
        raise UsageError(f"steps must be 1 to {TRAIN_STEPS}, not {asked}", code=Cause.BAD_STEPS)
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
    if sampler.has_ends_only and taken is None:  # A1111 takes the model's ends there, whatever the table's are
        sigmas = [levels.greatest, *sigmas[1:-2], levels.least, 0.0] if steps > 1 else [levels.greatest, levels.least]
    # with hundreds of steps the discrete tables repeat levels, and a step between equal levels divides by zero
    sigmas = [s for i, s in enumerate(sigmas) if i == 0 or s < sigmas[i - 1]]
    end = 1.0
    if sampler.is_variance_preserving:
        end = 1 / math.sqrt(1 + sigmas[-1] ** 2)
        scale = math.sqrt(1 + sigmas[0] ** 2) if taken is None else scale
    made = Plan(sampler, schedule, tuple(sigmas), scale, end, span)
    if rules == 1 and taken is not None:
        made = made.tail(min(taken + 1, made.steps))
    return made


def of_recipe(name: str, rules: int) -> Sampler:
    """The sampler that a recipe's name means by its rules. Raises: KeyError: none of the table."""
    return BY_NAME["DEIS multistep" if name == "DEIS" and rules == 1 else name]


def _span(sigmas: Sequence[float]) -> tuple[float, float]:
    return min(sigma for sigma in sigmas if sigma > 0), max(sigmas)


def _by_times(sampler: Sampler, steps: int, levels: NoiseLevels, taken: int | None) -> Plan:
    """DDIM's relatives, which count in times, and begin and end in the model's own scale.

    From a picture A1111 adds the noise of one time more than the model is asked at first.
    """
    times = [float(time) for time in reversed(ddim_times(steps))]
    used = times if taken is None else times[:taken]
    noisy = None if taken is None else levels.sigma(times[min(taken, len(times) - 1)])
    if not used:  # a strength so small that nothing is drawn: the picture with the least noise
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
    """By rules 1."""
    if name is Table.DDIM:
        times: list[float] = [float(t) for t in ddim_times(steps)]
        return [levels.sigma(t) for t in times] if len(times) > 1 else [levels.sigma(times[0]), levels.sigma(0)]
    return [levels.sigma((TRAIN_STEPS - 1) * (1 - i / steps)) for i in range(steps + 1)]
