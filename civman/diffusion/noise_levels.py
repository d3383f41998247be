"""The noise levels that a model was trained on, and the schedules: named tables of levels for n steps.

All numbers are plain Python floats (double precision), so that a table does not depend on device, dtype or library.
Every table falls to 0, except KL Optimal's, which ends at the lowest level.

Sources: Karras et al. 2022 (table 1, equation 5); Lin et al. 2023 (zero terminal SNR); Lee et al. 2024 (beta); Sabour
et al. 2024 (Align Your Steps, the tables on the paper's web page); Li et al. 2024 (KL optimal, tan-spaced);
AUTOMATIC1111's web UI (names, and the first and last levels).
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache, lru_cache
from typing import Final

from civman.diffusion import single_precision
from civman.diffusion.single_precision import single
from civman.domain.recipes.recipe import SAMPLING

TRAIN_STEPS: Final = SAMPLING.train_steps
# the value that replaces the last ᾱ of a model with zero terminal SNR, because ᾱ = 0 would give an infinite noise level
_ZERO_SNR_ALPHA: Final = 4.8973451890853435e-08


class Schedule(StrEnum):
    """A schedule: how the steps are distributed over the model's noise levels."""

    AUTOMATIC = "Automatic"
    NORMAL = "Normal"
    KARRAS = "Karras"
    EXPONENTIAL = "Exponential"
    POLYEXPONENTIAL = "Polyexponential"
    SGM_UNIFORM = "SGM Uniform"
    SIMPLE = "Simple"
    BETA = "Beta"
    KL_OPTIMAL = "KL Optimal"
    ALIGN_YOUR_STEPS = "Align Your Steps"
    DDIM = "DDIM"
    TURBO = "Turbo"


@dataclass(frozen=True, slots=True)
class NoiseLevels:
    """The noise levels that a model was trained on.

    `alphas[t]` is ᾱ, the fraction of signal at timestep t; it falls as t grows.

    `every`: the model was trained only on every n-th timestep (LCM: 19, 39, … 999); levels are interpolated between
    these timesteps, and the model is evaluated at the nearest one. `is_by_alpha`: interpolate log ᾱ between timesteps
    (UniPC) instead of log σ. `is_half`: the levels and their logarithms are rounded to half precision. `program`: the
    program whose rules apply, one of `civman.domain.recipes.sampling.PROGRAMS`.
    """

    alphas: tuple[float, ...]
    sigmas: tuple[float, ...]
    every: int
    _logs: tuple[float, ...]
    is_by_alpha: bool = False
    is_half: bool = False
    program: str = "a1111"

    @classmethod
    @cache
    def of_model(
        cls,
        *,
        is_zero_snr: bool = False,
        every: int = 1,
        by_alpha: bool = False,
        is_single: bool = True,
        half: str = "",
        program: str = "a1111",
    ) -> "NoiseLevels":
        """Compute the levels of Stable Diffusion: β from .00085 to .012, linear in √β, 1000 steps.

        `is_single`: rescale to zero terminal SNR in single precision, as the web UIs do; because two nearly equal roots
        are subtracted, this changes the highest levels by up to 1.6e-5. `half`: which values are rounded
        to half precision, as in A1111 before 1.8, which converted whole models: "" (none), "alphas", or "levels" (the
        alphas and also the levels computed from them).
        With ComfyUI's rules, everything is computed in double precision, and the levels and their logarithms are
        rounded to single precision once.

        Source: Rombach et al. 2022.
        """
        low, high = math.sqrt(SAMPLING.beta_start), math.sqrt(SAMPLING.beta_end)
        alphas, product = [], 1.0
        for t in range(TRAIN_STEPS):
            product *= 1.0 - (low + (high - low) * t / (TRAIN_STEPS - 1)) ** 2
            # round ᾱ to single precision, as all programs except ComfyUI do; in double precision, the lowest level
            # would differ in its fifth digit
            alphas.append(product if program == "comfyui" else single(product))
        if is_zero_snr and is_single and program != "comfyui":
            alphas = single_precision.zero_snr(alphas)
        elif is_zero_snr:
            first, last = math.sqrt(alphas[0]), math.sqrt(alphas[-1])
            alphas = [((math.sqrt(a) - last) * first / (first - last)) ** 2 for a in alphas]
        if is_zero_snr:
            alphas[-1] = _ZERO_SNR_ALPHA
        if half:
            alphas = [single_precision.half(alpha) for alpha in alphas]
        if half == "levels":
            halves = [single_precision.half_level(alpha) for alpha in alphas]
            logs = [single_precision.half(math.log(sigma)) for sigma in halves]
            return cls(tuple(alphas), tuple(halves), every, tuple(logs[every - 1 :: every]), False, True)
        sigmas = [math.sqrt((1 - a) / a) for a in alphas]
        values = [-math.log(a) for a in alphas] if by_alpha else [math.log(s) for s in sigmas]
        if program == "comfyui":
            values = [single(math.log(s)) for s in sigmas]
            return cls(tuple(alphas), tuple(map(single, sigmas)), 1, tuple(values), program=program)
        return cls(tuple(alphas), tuple(sigmas), every, tuple(values[every - 1 :: every]), by_alpha)

    @property
    def first_time(self) -> int:
        """The first timestep that the model was trained on; 0 if it was trained on all timesteps."""
        return self.every - 1

    @property
    def known(self) -> tuple[float, ...]:
        """σ at the timesteps that the model was trained on, in ascending order."""
        return self.sigmas[self.first_time :: self.every]

    @property
    def least(self) -> float:
        """The lowest noise level: σ at the first timestep that the model was trained on."""
        return self.sigmas[self.first_time]

    @property
    def logs(self) -> tuple[float, ...]:
        """The logarithms of the noise levels, which are interpolated between timesteps."""
        return self._logs

    @property
    def greatest(self) -> float:
        """The highest noise level: σ at timestep 999."""
        return self.sigmas[-1]

    def sigma(self, time: float) -> float:
        """Return σ at a timestep; between timesteps, log σ or log ᾱ (`is_by_alpha`) is interpolated linearly."""
        place = min(max((time - self.first_time) / self.every, 0.0), len(self._logs) - 1.0)
        low = int(place)
        high = min(low + 1, len(self._logs) - 1)
        value = self._logs[low] + (place - low) * (self._logs[high] - self._logs[low])
        return math.sqrt(math.expm1(value)) if self.is_by_alpha else math.exp(value)

    def time(self, sigma: float) -> float:
        """Return the timestep (0 to 999, not rounded) at which the model is evaluated for σ: the inverse of `sigma`.

        If the model was trained on only some timesteps, or ComfyUI's rules apply, return the trained timestep that is
        nearest in log σ.
        """
        log = math.log1p(sigma**2) if self.is_by_alpha else math.log(sigma)
        if self.every > 1 or self.program == "comfyui":
            return min(range(len(self._logs)), key=lambda i: abs(self._logs[i] - log)) * self.every + self.first_time
        low = min(max(bisect_right(self._logs, log) - 1, 0), TRAIN_STEPS - 2)
        share = (log - self._logs[low]) / (self._logs[low + 1] - self._logs[low])
        return low + min(max(share, 0.0), 1.0)


def table(
    schedule: Schedule, steps: int, levels: NoiseLevels, *, is_xl: bool = False, is_single: bool = False
) -> list[float]:
    """Compute a schedule's n+1 noise levels for n steps; they fall to 0 (KL Optimal ends at the lowest level).

    `is_xl` selects SDXL's Align Your Steps table instead of SD 1's; `is_single` rounds to single precision as the web
    UIs do. With many steps, Simple, DDIM and Beta may repeat a level; repeated levels are kept, as in the web UIs.

    Raises: ValueError: fewer than one step, or AUTOMATIC, which only a sampler can resolve.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    if schedule is Schedule.AUTOMATIC:
        raise ValueError("Automatic means the sampler's default schedule, so it has no noise levels by itself")
    if levels.program == "comfyui":
        return _of_comfyui(schedule, steps, levels, is_xl=is_xl)
    if is_single:
        levels = _rounded(levels)
        if schedule.value in single_precision.TABLES and levels.every == 1:
            rounded = single_precision.half if levels.is_half else single
            return [*single_precision.TABLES[schedule.value](steps, levels.sigmas, rounded), 0.0]
    if schedule is Schedule.ALIGN_YOUR_STEPS:
        made = _align_your_steps(steps, is_xl=is_xl)
    else:
        made = _TABLES[schedule](steps, levels)
    return [single(sigma) for sigma in made] if is_single else made


def _of_comfyui(schedule: Schedule, steps: int, levels: NoiseLevels, *, is_xl: bool) -> list[float]:
    """Compute a schedule's noise levels as ComfyUI does, where the levels of every schedule fall to 0."""
    if schedule.value in single_precision.TABLES:
        compute = single_precision.TABLES[schedule.value]
        if schedule in (Schedule.NORMAL, Schedule.SGM_UNIFORM):
            return [*single_precision.interpolated(steps, levels.logs, is_sgm=schedule is Schedule.SGM_UNIFORM), 0.0]
        return [*compute(steps, levels.sigmas, single), 0.0]
    if schedule is Schedule.BETA:
        last = len(levels.sigmas) - 1
        # round to 9 digits first: for a value halfway between two timesteps, the quantile's error of 1e-13 would
        # otherwise decide the rounding
        places = (round(beta_quantile(1 - i / steps, SAMPLING.beta_shape) * last, 9) for i in range(steps))
        times = [round(place) for place in places]
        return [*(levels.sigmas[time] for time in dict.fromkeys(times)), 0.0]
    if schedule is Schedule.KL_OPTIMAL:
        return [*single_precision.kl_optimal(steps, levels.least, levels.greatest), 0.0]
    made = (
        _align_your_steps(steps, is_xl=is_xl)
        if schedule is Schedule.ALIGN_YOUR_STEPS
        else _TABLES[schedule](steps, levels)
    )
    return [single(sigma) for sigma in made]


@lru_cache(maxsize=8)
def _rounded(levels: NoiseLevels) -> NoiseLevels:
    """Compute σ of all levels in single precision."""
    if levels.is_half:
        return levels
    return replace(levels, sigmas=tuple(single_precision.level(single(alpha)) for alpha in levels.alphas))


def _normal(n: int, levels: NoiseLevels) -> list[float]:
    return [*(levels.sigma(t) for t in _line(TRAIN_STEPS - 1, levels.first_time, n)), 0.0]


def _karras(n: int, levels: NoiseLevels) -> list[float]:
    root = 1 / SAMPLING.rho
    return [*(r**SAMPLING.rho for r in _line(levels.greatest**root, levels.least**root, n)), 0.0]


def _exponential(n: int, levels: NoiseLevels) -> list[float]:
    return [*(math.exp(r) for r in _line(math.log(levels.greatest), math.log(levels.least), n)), 0.0]


def _sgm_uniform(n: int, levels: NoiseLevels) -> list[float]:
    return [*(levels.sigma(t) for t in _line(TRAIN_STEPS - 1, levels.first_time, n + 1)[:-1]), 0.0]


def _simple(n: int, levels: NoiseLevels) -> list[float]:
    known = levels.known
    return [*(known[-(1 + int(i * len(known) / n))] for i in range(n)), 0.0]


def _beta(n: int, levels: NoiseLevels) -> list[float]:
    span = levels.greatest - levels.least
    return [*(levels.least + beta_quantile(1 - x, SAMPLING.beta_shape) * span for x in _line(0, 1, n)), 0.0]


def _kl_optimal(n: int, levels: NoiseLevels) -> list[float]:
    high, low = math.atan(levels.greatest), math.atan(levels.least)
    return [math.tan(high + (low - high) * i / n) for i in range(n + 1)]


def _ddim(n: int, levels: NoiseLevels) -> list[float]:
    known = levels.known
    return [*(known[i] for i in reversed(range(1, len(known), max(len(known) // n, 1)))), 0.0]


def _turbo(n: int, levels: NoiseLevels) -> list[float]:
    return [*(levels.sigmas[min(max(round(TRAIN_STEPS / n * i - 1), 0), 999)] for i in range(n, 0, -1)), 0.0]


_AYS: Final = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
_AYS_XL: Final = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)


def _align_your_steps(n: int, *, is_xl: bool) -> list[float]:
    logs = [math.log(s) for s in (_AYS_XL if is_xl else _AYS)]
    return [*(math.exp(_between(logs, x)) for x in _line(0, len(logs) - 1, n)), 0.0]


_TABLES: Final[dict[Schedule, Callable[[int, NoiseLevels], list[float]]]] = {
    Schedule.NORMAL: _normal,
    Schedule.KARRAS: _karras,
    Schedule.EXPONENTIAL: _exponential,
    Schedule.POLYEXPONENTIAL: _exponential,  # with the default exponent 1, polyexponential is the same as exponential
    Schedule.SGM_UNIFORM: _sgm_uniform,
    Schedule.SIMPLE: _simple,
    Schedule.BETA: _beta,
    Schedule.KL_OPTIMAL: _kl_optimal,
    Schedule.DDIM: _ddim,
    Schedule.TURBO: _turbo,
}


def _line(start: float, end: float, count: int) -> list[float]:
    if count == 1:
        return [float(start)]
    return [start + (end - start) * i / (count - 1) for i in range(count)]


def _between(values: Sequence[float], position: float) -> float:
    low = min(int(position), len(values) - 2)
    return values[low] + (position - low) * (values[low + 1] - values[low])


def beta_quantile(probability: float, shape: float) -> float:
    """Compute the quantile of the symmetric Beta(shape, shape) distribution at `probability`, to about 1e-13.

    The distribution function is computed by Gauss quadrature in t = sin²θ, where the integrand is smooth, and inverted
    by bisection. scipy could compute the quantile, too, but importing it takes 0.4 s.
    """
    if probability <= 0 or probability >= 1:
        return float(min(max(probability, 0.0), 1.0))
    if probability > 0.5:
        return 1 - beta_quantile(1 - probability, shape)
    power = 2 * shape - 1
    whole = _sine_integral(math.pi / 2, power)
    low, high = 0.0, math.pi / 4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _sine_integral(middle, power) < probability * whole else (low, middle)
    return math.sin((low + high) / 2) ** 2


def _sine_integral(end: float, power: float) -> float:
    """Compute ∫₀ᵉ (sin θ cos θ)ᵖ dθ for p > 0; substituting θ = e·u⁵ removes the singularity at the lower end."""
    if end > math.pi / 4:
        return 2 * _sine_integral(math.pi / 4, power) - _sine_integral(math.pi / 2 - end, power)
    total = 0.0
    panels = 3
    for panel in range(panels):
        for node, weight in _GAUSS:
            u = (panel + node) / panels
            theta = end * u**5
            total += weight * (math.sin(theta) * math.cos(theta)) ** power * 5 * end * u**4
    return total / panels


def _gauss_legendre(count: int) -> list[tuple[float, float]]:
    """Compute Gauss-Legendre nodes and weights on [0, 1] by Newton's method on the Legendre polynomial."""
    pairs = []
    for index in range(count):
        x = math.cos(math.pi * (index + 0.75) / (count + 0.5))
        for _ in range(50):
            before, here = 1.0, x
            for k in range(2, count + 1):
                before, here = here, ((2 * k - 1) * x * here - (k - 1) * before) / k
            slope = count * (x * here - before) / (x * x - 1)
            x -= here / slope
        pairs.append(((1 + x) / 2, 1 / ((1 - x * x) * slope * slope)))
    return pairs


_GAUSS: Final = _gauss_legendre(12)


def drop_penultimate(sigmas: list[float]) -> list[float]:
    """Drop the second-to-last level, for samplers that become inaccurate when the last steps are small."""
    return [*sigmas[:-2], sigmas[-1]]


def ddim_times(steps: int) -> list[int]:
    """Return the timesteps of DDIM and PLMS for n steps in descending order: …, 1 + 1000//n, 1."""
    return [min(t + 1, TRAIN_STEPS - 1) for t in range(0, TRAIN_STEPS, TRAIN_STEPS // steps)][::-1]
