"""Solvers of the DPM family, written as generators (see `solvers`): exponential integrators over λ = −log σ.

Sources: Lu et al. 2022 (DPM-Solver, with its fast and adaptive variants; DPM-Solver++).
tests/diffusion/test_schedulers.py compares the solvers with k-diffusion, including the noise.
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Final

from civman.diffusion import single_precision
from civman.diffusion.solvers import PLAIN, Noise, Steps, Tuning, X, ancestral, step_width


def dpmpp_2m(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:  # noqa: ARG001
    """DPM++ 2M: second-order multistep DPM-Solver++, which reuses the evaluation of the previous step."""
    before, width_before = None, 0.0
    for here, after in pairwise(sigmas):
        clean = yield x, here
        width = step_width(here, after)
        aim = clean
        if before is not None and after > 0:
            lean = width / (2 * width_before)
            aim = clean * (1 + lean) - before * lean
        x = x * (after / here) - aim * math.expm1(-width)
        before, width_before = clean, width
    return x


def dpmpp_2m_sde(
    x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN, *, is_heun: bool = False
) -> Steps:
    """DPM++ 2M SDE: second-order multistep for the SDE; `is_heun` selects the Heun form of the second-order term."""
    before, width_before = None, 0.0
    for here, after in pairwise(sigmas):
        clean = yield x, here
        if after == 0:
            return clean
        width = step_width(here, after)
        wide = (1 + tuning.eta) * width
        gain = -math.expm1(-wide)
        x = x * (after / here * math.exp(-tuning.eta * width)) + clean * gain
        if before is not None:
            lean = (1 - gain / wide) if is_heun else gain / 2
            x = x + (clean - before) * (lean * width / width_before)
        x = _freshened(x, here, after, noise, tuning)
        before, width_before = clean, width
    return x


def dpmpp_3m_sde(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:
    """DPM++ 3M SDE: third-order multistep for the SDE, which reuses the evaluations of the previous two steps."""
    cleans: list[X] = []
    widths: list[float] = []
    for here, after in pairwise(sigmas):
        clean = yield x, here
        if after == 0:
            return clean
        width = step_width(here, after)
        wide = (1 + tuning.eta) * width
        gain = -math.expm1(-wide)
        x = x * math.exp(-wide) + clean * gain
        second = 1 - gain / wide
        if len(cleans) == 2:
            r0, r1 = widths[0] / width, widths[1] / width
            near, far = (clean - cleans[0]) / r0, (cleans[0] - cleans[1]) / r1
            bend = (near - far) / (r0 + r1)
            x = x + (near + bend * r0) * second - bend * (second / wide - 0.5)
        elif cleans:
            x = x + (clean - cleans[0]) * (second * width / widths[0])
        x = _freshened(x, here, after, noise, tuning)
        cleans, widths = [clean, *cleans[:1]], [width, *widths[:1]]
    return x


def dpmpp_sde(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:
    """DPM++ SDE: two evaluations per step, with fresh noise at both."""
    for here, after in pairwise(sigmas):
        clean = yield x, here
        if after == 0:
            x = x + (x - clean) * ((after - here) / here)
            continue
        middle = math.sqrt(here * after)
        levels = here, middle, after
        if tuning.is_single:
            middle = single_precision.middle(here, after)
            levels = single_precision.through_log(here), middle, single_precision.through_log(after)
        down, up = ancestral(here, middle, tuning.eta)
        fresh = noise(levels[0], levels[1]) * (tuning.s_noise * up)
        ahead = x * (down / here) - clean * math.expm1(math.log(down / here)) + fresh
        clean = yield ahead, middle
        down, up = ancestral(here, after, tuning.eta)
        fresh = noise(levels[0], levels[2]) * (tuning.s_noise * up)
        x = x * (down / here) - clean * math.expm1(math.log(down / here)) + fresh
    return x


def dpmpp_2s_ancestral(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:
    """DPM++ 2S ancestral: a two-evaluation step to below the next level, then fresh noise to arrive at that level."""
    for here, after in pairwise(sigmas):
        clean = yield x, here
        down, up = ancestral(here, after, tuning.eta)
        if down == 0:
            x = x + (x - clean) * ((down - here) / here)
        else:
            middle = math.sqrt(here * down)
            ahead = x * (middle / here) - clean * math.expm1(-step_width(here, middle))
            clean = yield ahead, middle
            x = x * (down / here) - clean * math.expm1(-step_width(here, down))
        if after > 0:
            x = x + noise(here, after) * (tuning.s_noise * up)
    return x


dpmpp_2m_sde_heun = partial(dpmpp_2m_sde, is_heun=True)


def _freshened(x: X, here: float, after: float, noise: Noise, tuning: Tuning) -> X:
    """Add the noise of an SDE step between these two levels to x."""
    if not tuning.eta:
        return x
    gain = -math.expm1(-2 * tuning.eta * step_width(here, after))
    return x + noise(here, after) * (tuning.s_noise * (after * math.sqrt(gain)))


def dpm_fast(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:
    """DPM fast: as many evaluations as the table has steps, in third-order steps, with lower orders at the end.

    Uses only the table's first level, second-to-last level and length; the solver's own steps are evenly spaced in λ.
    """
    count, (start, end) = len(sigmas) - 1, _ends(sigmas)
    parts = count // 3 + 1
    orders = [3] * (parts - 2) + [2, 1] if count % 3 == 0 else [3] * (parts - 1) + [count % 3]
    for place, order in enumerate(orders):
        here, after = (start + (end - start) * at / parts for at in (place, place + 1))
        target, up = _towards(here, after, end, tuning)
        slope = (x - (yield x, math.exp(-here))) / math.exp(-here)
        x = yield from _dpm_step(x, here, target, order, slope)
        x = x + noise(math.exp(-here), math.exp(-after)) * (tuning.s_noise * up)
    return x


_RELATIVE: Final = 0.05
_ABSOLUTE: Final = 0.0078
_FIRST_WIDTH: Final = 0.05
_ACCEPTED: Final = 0.81
_CLOSE: Final = 1e-5


def dpm_adaptive(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:
    """DPM adaptive: the difference between the second-order and the third-order result controls the step size.

    Uses only the table's first and second-to-last levels. Runs only on tensors, because the number of evaluations
    depends on the model's outputs.
    """
    here, end = _ends(sigmas)
    width, power = _FIRST_WIDTH, 1 / (1.5 if tuning.eta else 3)
    before = x
    while here < end - _CLOSE:
        after = min(end, here + width)
        target, up = _towards(here, after, end, tuning)
        slope = (x - (yield x, math.exp(-here))) / math.exp(-here)
        low, third = yield from _dpm_pair(x, here, target, slope)
        allowed = (low.abs().maximum(before.abs()) * _RELATIVE).clamp(min=_ABSOLUTE)
        error = float(((low - third) / allowed).norm()) / math.sqrt(x.numel())
        factor = 1 + math.atan((1 / (error + 1e-8)) ** power - 1)
        if factor >= _ACCEPTED:
            before = low
            x = third + noise(math.exp(-here), math.exp(-after)) * (tuning.s_noise * up)
            here = after
        width *= factor
    return x


def _ends(sigmas: Sequence[float]) -> tuple[float, float]:
    """Return λ of a table's first and second-to-last levels.

    If the table has only two levels, both above 0, the last level is used instead of the second-to-last.
    """
    low = sigmas[-2] if len(sigmas) > 2 or sigmas[-1] == 0 else sigmas[-1]
    return -math.log(sigmas[0]), -math.log(low)


def _towards(here: float, after: float, end: float, tuning: Tuning) -> tuple[float, float]:
    """Split a step from `here` to `after`: return (the λ to step to, the σ of the noise that is then added).

    The returned λ is at most `end`.
    """
    if not tuning.eta:
        return after, 0.0
    down, _ = ancestral(math.exp(-here), math.exp(-after), tuning.eta)
    target = min(end, -math.log(down)) if down > 0 else end
    return target, math.sqrt(max(math.exp(-2 * after) - math.exp(-2 * target), 0.0))


def _dpm_step(x: X, here: float, after: float, order: int, slope: X) -> Any:
    """Take one DPM-Solver step of this order; yields once for each evaluation besides the one that gave `slope`."""
    if order == 3:
        return (yield from _dpm_pair(x, here, after, slope))[1]
    width, sigma = after - here, math.exp(-after)
    moved = x - slope * (sigma * math.expm1(width))
    if order == 1:
        return moved
    between = yield from _slope_at(x - slope * (math.exp(-here - width / 2) * math.expm1(width / 2)), here + width / 2)
    return moved - (between - slope) * (sigma * math.expm1(width))


def _dpm_pair(x: X, here: float, after: float, slope: X) -> Any:
    """Compute a step in second and in third order; the evaluation at one third of the step is used for both."""
    width, sigma = after - here, math.exp(-after)
    third, twice = width / 3, 2 * width / 3
    first = yield from _slope_at(x - slope * (math.exp(-here - third) * math.expm1(third)), here + third)
    moved = x - slope * (sigma * math.expm1(width))
    low = moved - (first - slope) * (sigma * 1.5 * math.expm1(width))
    bend = math.exp(-here - twice) * 2 * (math.expm1(twice) / twice - 1)
    ahead = x - slope * (math.exp(-here - twice) * math.expm1(twice)) - (first - slope) * bend
    second = yield from _slope_at(ahead, here + twice)
    return low, moved - (second - slope) * (sigma * 1.5 * (math.expm1(width) / width - 1))


def _slope_at(x: X, place: float) -> Any:
    sigma = math.exp(-place)
    return (x - (yield x, sigma)) / sigma
