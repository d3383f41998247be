"""How far civman's samplers and schedules are from the stacks they are named after; writes docs/samplers.md.

`python tests/render/sampler_oracles.py` needs k-diffusion, torchsde, scipy and diffusers. A test holds the page to it.
"""

import math
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import k_oracle
import numpy as np
import pytest
import torch

from civman.diffusion.noise import BrownianPath, Rng
from civman.diffusion.noise_levels import NoiseLevels, Schedule, ddim_times, table
from civman.diffusion.sampler_names import NOT_OFFERED
from civman.diffusion.samplers import SAMPLERS, Kind, Plan, Sampler, plan
from civman.diffusion.solvers import Tuning, solve
from civman.domain.recipes.recipe import SAMPLING

NOT_OFFERED_NEAREST = [(name, instead) for name, (_, instead) in NOT_OFFERED.items()]
PAGE = Path(__file__).parents[2] / "docs" / "samplers.md"
LEVELS = NoiseLevels.of_model()
STEPS = 20
SHAPE = (1, 4, 8, 8)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
SAME = 1e-5


def USUAL(made: Plan) -> Tuning:  # noqa: N802
    return made.sampler.tuning(SAMPLING)


_generator = torch.Generator().manual_seed(0)
MIX, SHIFT = torch.randn(4, 4, generator=_generator) * 0.4, torch.randn(4, generator=_generator)
START = torch.randn(SHAPE, generator=_generator)


def clean(x: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
    """A small fixed denoiser, smooth in both arguments."""
    sigma = float(torch.as_tensor(sigma).flatten()[0])
    inner = torch.einsum("oc,bchw->bohw", MIX, x / math.sqrt(sigma**2 + 1)) + SHIFT[None, :, None, None]
    return torch.tanh(inner) * 1.2 + x / (1 + sigma**2)


def noise(here: object, after: object) -> torch.Tensor:
    """Unit noise that depends on the two levels, to a thousandth."""
    seed = round(float(here) * 1000) * 7919 + round(float(after) * 1000)  # type: ignore[arg-type]
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def ours(made: Plan) -> torch.Tensor:
    drawn = noise
    if made.sampler.noise is Kind.BROWNIAN:
        path = BrownianPath(5, SHAPE[1:], *made.span, rng=Rng.CPU)
        drawn = lambda here, after: path.noise(float(here), float(after))[None]  # type: ignore[arg-type]  # noqa: E731
    model = (lambda x, sigma: (clean(x, sigma), clean(x, sigma))) if made.sampler.is_cfgpp else clean
    return solve(made.sampler.solver, START * made.start_scale, made.sigmas, drawn, model, USUAL(made)) * made.end_scale


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def measured(sampler: Sampler, schedule: Schedule) -> float | None:
    """Relative distance of the last latents after 20 steps, same table, same noise; None where nobody else has it."""
    made = plan(sampler, schedule, STEPS, sampler.levels())
    own = schedule is Schedule.AUTOMATIC
    if sampler.name == "DDIM":
        return distance(ours(made), _ddim() if own else _k_diffusion(made, "sample_euler") * made.end_scale)
    if sampler.name == "PLMS":
        return distance(ours(made), _plms()) if own else None
    if sampler.name in ("UniPC", "DEIS multistep"):
        return _diffusers_with_our_table(made)
    if sampler.name == "LCM":
        return distance(ours(made), _lcm(made))
    if not sampler.against.startswith("k-diffusion") or sampler.has_ends_only:
        return None
    return distance(ours(made), _k_diffusion(made, sampler.against.split()[1].partition("(")[0]))


def _k_diffusion(made: Plan, function: str) -> torch.Tensor:
    oracle = k_oracle.sampling()
    options: dict[str, object] = (
        {"noise_sampler": noise} if made.sampler.noise is Kind.ANCESTRAL and not made.sampler.own_table else {}
    )
    if made.sampler.noise is Kind.BROWNIAN:
        low, high = (torch.tensor(level) for level in made.span)
        options["noise_sampler"] = oracle.BrownianTreeNoiseSampler(START, low, high, seed=[5])
    if "heun" in made.sampler.against.partition("(")[2]:
        options["solver_type"] = "heun"
    result: torch.Tensor = getattr(oracle, function)(
        clean, START * made.start_scale, torch.tensor(made.sigmas), disable=True, **options
    )
    return result


def _model_output(scaled: torch.Tensor, sigma: float) -> torch.Tensor:
    x = scaled * math.sqrt(1 + sigma**2)
    return (x - clean(x, sigma)) / sigma


def _ddim() -> torch.Tensor:
    diffusers = pytest.importorskip("diffusers")
    times = ddim_times(STEPS)
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False)
    x = START
    for here, after in pairwise(times):
        scheduler.num_inference_steps = 1000 // (here - after)
        x = scheduler.step(_model_output(x, LEVELS.sigmas[here]), here, x).prev_sample
    return x


def _plms() -> torch.Tensor:
    diffusers = pytest.importorskip("diffusers")
    times = ddim_times(STEPS)
    scheduler = diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    scheduler.set_timesteps(STEPS)
    x = START
    for time in [times[0], times[1], *times[1:-1]]:
        x = scheduler.step(_model_output(x, LEVELS.sigmas[time]), time, x).prev_sample
    return x


def _diffusers_with_our_table(made: Plan) -> float:
    diffusers = pytest.importorskip("diffusers")
    options = {"UniPC": {"solver_order": 3, "solver_type": "bh1"}, "DEIS multistep": {"solver_order": 2}}[
        made.sampler.name
    ]
    # their last step to a level of exactly 0 is not a number when a table is put in: end just above it instead
    sigmas = [s or LEVELS.least / 10 for s in made.sigmas]
    scheduler = getattr(diffusers, made.sampler.diffusers)(**BETAS, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' own: numpy of tensors, log of 0
        scheduler.set_timesteps(STEPS)
        scheduler.sigmas = torch.tensor(sigmas)
        scheduler.timesteps = torch.tensor([LEVELS.time(s) for s in sigmas[:-1]])
        x = START * (made.start_scale / math.sqrt(1 + sigmas[0] ** 2))
        for sigma, time in zip(sigmas, scheduler.timesteps, strict=False):
            x = scheduler.step(_model_output(x, sigma), time, x).prev_sample
    mine = solve(made.sampler.solver, START * made.start_scale, sigmas, noise, clean)
    return distance(mine, x * math.sqrt(1 + sigmas[-1] ** 2))


def _lcm(made: Plan) -> torch.Tensor:
    """A1111's rule a second time, with the two factors (Luo et al. 2023, section 4) that civman leaves out."""
    times = np.arange(19, 1000, 20)
    logs = np.log([LEVELS.sigmas[time] for time in times])
    levels = list(made.sigmas)
    if made.schedule is Schedule.NORMAL:
        levels = [*np.exp(np.interp(np.linspace(999, 19, STEPS), times, logs)).tolist(), 0.0]
    x = START * levels[0]
    for here, after in pairwise(levels):
        time = float(times[np.abs(logs - math.log(here)).argmin()])
        assert time == made.sampler.levels().time(here)
        x = clean(x, here) * (time * 10 / math.hypot(time * 10, 0.5)) + x * (0.25 / ((time * 10) ** 2 + 0.25))
        if after > 0:
            x = x + noise(here, after) * after
    return x


def lcm_against_diffusers() -> float:
    """The largest relative difference of a level between civman's LCM and diffusers', 8 steps."""
    diffusers = pytest.importorskip("diffusers")
    sampler = next(s for s in SAMPLERS if s.name == "LCM")
    mine = plan(sampler, Schedule.AUTOMATIC, 8, sampler.levels())
    scheduler = diffusers.LCMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(8)
    theirs = [LEVELS.sigmas[int(time)] for time in scheduler.timesteps]
    return max(abs(a - b) / b for a, b in zip(mine.sigmas, theirs, strict=False))


def reference_table(schedule: Schedule, steps: int, *, is_xl: bool = False) -> list[float]:
    """The table by its definition (reference stacks' names), from k-diffusion and scipy where they have it."""
    oracle = k_oracle.sampling()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32) ** 2
    kept = torch.cumprod(1 - betas, 0).double().numpy()
    sigmas = np.sqrt((1 - kept) / kept)
    low, high = float(sigmas[0]), float(sigmas[-1])

    def at(times: np.ndarray) -> np.ndarray:
        return np.exp(np.interp(times, np.arange(1000), np.log(sigmas)))

    def ays() -> np.ndarray:
        known = ([14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029] if is_xl else
                 [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029])  # fmt: skip
        return np.exp(np.interp(np.linspace(0, 10, steps), np.arange(11), np.log(known)))

    def beta() -> np.ndarray:
        return low + pytest.importorskip("scipy.stats").beta.ppf(1 - np.linspace(0, 1, steps), 0.6, 0.6) * (high - low)

    made: dict[Schedule, Callable[[], np.ndarray]] = {
        Schedule.NORMAL: lambda: at(np.linspace(999, 0, steps)),
        Schedule.KARRAS: oracle.get_sigmas_karras(steps, low, high)[:-1].numpy,
        Schedule.EXPONENTIAL: oracle.get_sigmas_exponential(steps, low, high)[:-1].numpy,
        Schedule.POLYEXPONENTIAL: oracle.get_sigmas_polyexponential(steps, low, high)[:-1].numpy,
        Schedule.SGM_UNIFORM: lambda: at(np.linspace(999, 0, steps + 1)[:-1]),
        Schedule.SIMPLE: lambda: np.array([sigmas[-(1 + int(i * (1000 / steps)))] for i in range(steps)]),
        Schedule.BETA: beta,
        Schedule.KL_OPTIMAL: lambda: np.tan(
            np.arctan(high) + (np.arctan(low) - np.arctan(high)) * np.arange(steps + 1) / steps
        ),
        Schedule.ALIGN_YOUR_STEPS: ays,
        Schedule.DDIM: lambda: sigmas[1 :: max(1000 // steps, 1)][::-1],
        Schedule.TURBO: lambda: sigmas[np.round(np.arange(steps, 0, -1) * (1000 / steps) - 1).clip(0, 999).astype(int)],
    }
    levels = [float(sigma) for sigma in made[schedule]()]
    return levels if schedule is Schedule.KL_OPTIMAL else [*levels, 0.0]


def table_distance(schedule: Schedule) -> float:
    """The largest relative difference of a level, over 5, 11, 20 and 50 steps of SD and SDXL."""
    worst = 0.0
    for steps in (5, 11, 20, 50):
        for is_xl in (False, True):
            mine = table(schedule, steps, LEVELS, is_xl=is_xl)
            theirs = reference_table(schedule, steps, is_xl=is_xl)
            worst = max(worst, *(abs(a - b) / max(b, 1e-9) for a, b in zip(mine, theirs, strict=True)))
    return worst


def word(found: float | None) -> str:
    if found is None:
        return "own"
    return "same" if found < SAME else f"near ({found:.0e})"


def page() -> str:
    """The whole page, every word of it that is about sameness measured."""
    schedules = [schedule for schedule in Schedule if schedule is not Schedule.AUTOMATIC]
    parts = [
        "# Samplers and schedules",
        "",
        "Written by `python tests/render/sampler_oracles.py` from measurement; do not edit. Both are named as people",
        'name them ("DPM++ 2M Karras", `--sampler "DPM++ 2M" --schedule Karras`, diffusers\' class names). Each',
        "sampler goes with each schedule.",
        "",
        f"*same*: the last latents after {STEPS} steps on one fixed model, from one start and with one stream of",
        "noise, are within 1e-5 (relative) of those of the code named in the second column; *near*: the distance;",
        "*own*: goes, but nobody else has this pair. Ancestral and SDE samplers draw the noise that k-diffusion draws,",
        "from the CPU generator or as a CUDA card does.",
        "",
        "| sampler | measured against | Automatic | " + " | ".join(schedules) + " |",
        "|---|---|---|" + "---|" * len(schedules),
    ]
    for sampler in SAMPLERS:
        automatic = "its own" if sampler.own_table else sampler.automatic.value
        cells = [word(measured(sampler, schedule)) for schedule in schedules]
        usual = word(measured(sampler, Schedule.AUTOMATIC))
        parts.append(f"| {sampler.name} | {sampler.against} | {automatic}: {usual} | " + " | ".join(cells) + " |")
    parts += [
        "",
        "DDIM on a named schedule is Euler on it, and measured so; A1111's web UI gives DDIM, PLMS and UniPC no",
        "schedule but their own. LCM is A1111's: levels and times of the fifty that such models know; diffusers'",
        f"LCMScheduler has others (up to {lcm_against_diffusers():.0%} apart at 8 steps) and so makes another picture.",
        "",
        "## Schedules",
        "",
        "The levels themselves against k-diffusion's functions (Karras, Exponential, Polyexponential), scipy's beta",
        "distribution (Beta) or the definition written a second time (the others), for 5, 11, 20 and 50 steps.",
        '"Uniform" is Normal, "SGMUniform" SGM Uniform, "AYS" Align Your Steps.',
        "",
        "| schedule | levels |",
        "|---|---|",
        *(f"| {schedule} | {word(table_distance(schedule))} |" for schedule in schedules),
        "",
        "## Not available",
        "",
        "Refused by name, with what comes nearest:",
        "",
        "| sampler | nearest |",
        "|---|---|",
        *(f"| {name} | {nearest} |" for name, nearest in NOT_OFFERED_NEAREST),
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
