"""Rarer solvers, written as generators (see `solvers`): Restart, Heun++, iPNDM, DEIS over time, RES, CFG++ and others.

Sources: Xu et al. 2023 (Restart); Zhang & Chen 2022 (iPNDM, DEIS); Liu et al. 2022 (iPNDM); Chung et al. 2024 (CFG++);
Permenter & Yuan 2023 (gradient estimation); Zhang et al. 2023 (RES); Ho et al. 2020 (DDPM). For CFG++ solvers, each
evaluation returns two predictions: (guided, unguided).
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Final

from civman.diffusion.solvers import ADAMS_BASHFORTH, PLAIN, Noise, Steps, Tuning, X, ancestral, churned, step_width


def restart(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:
    """Restart: Heun's method; with 20 or more steps, the part from σ near 2 down to σ near 0.1 is repeated.

    With restarts, the levels follow the Karras schedule between the table's ends, whichever schedule was chosen.
    """
    before: float | None = None
    for here, after in _restart_steps(sigmas):
        if before is not None and before < here:
            x = x + noise(before, here) * (tuning.s_noise * math.sqrt(here**2 - before**2))
        clean = yield x, here
        slope = (x - clean) / here
        ahead = x + slope * (after - here)
        if after > 0:
            clean = yield ahead, after
            ahead = x + (slope + (ahead - clean) / after) * ((after - here) / 2)
        x, before = ahead, after
    return x


def _restart_steps(sigmas: Sequence[float]) -> list[tuple[float, float]]:
    count = len(sigmas) - 1
    if count < 20:
        return list(pairwise(sigmas))
    width, times = (count // 4, 2) if count >= 36 else (9, 1)
    levels = [*_karras(count - width * times, sigmas[-2], sigmas[0]), 0.0]
    steps = list(pairwise(levels))
    low, high = (min(range(len(levels)), key=lambda i: abs(levels[i] - level)) for level in (0.1, 2.0))
    if high < low and low > 0:
        steps[low:low] = list(pairwise(_karras(width + 1, levels[low], levels[high]))) * times
    return steps


def _karras(count: int, low: float, high: float, rho: float = 7.0) -> list[float]:
    ends = high ** (1 / rho), low ** (1 / rho)
    return [(ends[0] + (ends[1] - ends[0]) * i / max(count - 1, 1)) ** rho for i in range(count)]


def heunpp(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:
    """Heun++: averages the slopes at the current level and at up to two levels ahead, weighted by level.

    Three evaluations per step, fewer in the last steps.
    """
    count, end = len(sigmas) - 1, sigmas[-1]
    for place, (begin, after) in enumerate(pairwise(sigmas)):
        x, here = churned(x, begin, after, count, noise, tuning)
        clean = yield x, here
        slope = (x - clean) / here
        mixed = slope
        if after != end:
            ahead = x + slope * (after - here)
            clean = yield ahead, after
            second = (ahead - clean) / after
            beyond = sigmas[place + 2]
            if beyond == end:
                weight = after / (2 * sigmas[0])
                mixed = slope * (1 - weight) + second * weight
            else:
                ahead = ahead + second * (beyond - after)
                clean = yield ahead, beyond
                weight, further = after / (3 * sigmas[0]), beyond / (3 * sigmas[0])
                mixed = slope * (1 - weight - further) + second * weight + (ahead - clean) * (further / beyond)
        x = x + mixed * (after - here)
    return x


def ipndm(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:  # noqa: ARG001
    """iPNDM: Adams-Bashforth with fixed weights; the first step is an Euler step."""
    slopes: list[X] = []
    for here, after in pairwise(sigmas):
        clean = yield x, here
        slopes = [(x - clean) / here, *slopes[:3]]
        mixed = sum(part * weight for part, weight in zip(slopes, ADAMS_BASHFORTH[len(slopes) - 1], strict=True))
        x = x + mixed * (after - here)
    return x


def ipndm_v(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:  # noqa: ARG001
    """iPNDM-v: Adams-Bashforth with weights for steps of unequal width."""
    slopes: list[X] = []
    for place, (here, after) in enumerate(pairwise(sigmas)):
        clean = yield x, here
        slopes = [(x - clean) / here, *slopes[:3]]
        widths = [sigmas[place - back + 1] - sigmas[place - back] for back in range(len(slopes))]
        mixed = sum(part * weight for part, weight in zip(slopes, _unequal_weights(widths), strict=True))
        x = x + mixed * (after - here)
    return x


def _unequal_weights(widths: Sequence[float]) -> list[float]:
    """Compute Adams-Bashforth weights, latest slope first.

    `widths`: the widths of the next step and of the previous steps, in this order.
    """
    if len(widths) == 1:
        return [1.0]
    now, one = widths[0], widths[1]
    weights = [1 + now / one / 2, -now / one / 2]
    if len(widths) == 2:
        return weights
    two = widths[2]
    bend = (1 - now / (3 * (now + one)) * (now * (now + one)) / (one * (one + two))) / 2
    weights = [weights[0] + bend, weights[1] - (1 + one / two) * bend, bend * one / two]
    if len(widths) == 3:
        return weights
    three = widths[3]
    reach = (1 - now / (3 * (now + one))) / 2 + (1 - now / (2 * (now + one))) * now / (6 * (now + one + two))
    twist = reach * (now * (now + one) * (now + one + two)) / (one * (one + two) * (one + two + three))
    ratio = one * (one + two) / (two * (two + three))
    return [
        weights[0] + twist,
        weights[1] - (1 + one / two + ratio) * twist,
        weights[2] + (one / two + ratio * (1 + two / three)) * twist,
        -twist * ratio * one / two,
    ]


_DEIS_POINTS = 10000
_DEIS_LOW, _DEIS_HIGH, _DEIS_BEGIN = 0.002, 80.0, 1e-3


def deis_over_time(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:  # noqa: ARG001
    """Third-order DEIS, integrated over the time of a diffusion process with linear β and σ from 0.002 to 80.

    The first step, and a last step to σ = 0, are Euler steps.
    """
    high, low = math.log(_DEIS_HIGH**2 + 1), math.log(_DEIS_LOW**2 + 1)
    growth = 2 * (low / _DEIS_BEGIN - high) / (_DEIS_BEGIN - 1)
    first = high - growth / 2
    times = [(math.sqrt(first**2 + 2 * growth * math.log(sigma**2 + 1)) - first) / growth for sigma in sigmas]
    slopes: list[X] = []
    for place, (here, after) in enumerate(pairwise(sigmas)):
        clean = yield x, here
        slopes = [(x - clean) / here, *slopes[:2]]
        if len(slopes) == 1 or after <= 0:
            x = x + slopes[0] * (after - here)
            continue
        nodes = [times[place - back] for back in range(len(slopes))]
        for slope, weight in zip(slopes, _time_weights(nodes, times[place + 1], first, growth), strict=True):
            x = x + slope * weight
    return x


def _time_weights(nodes: Sequence[float], end: float, first: float, growth: float) -> list[float]:
    """Integrate dσ/dt times each Lagrange polynomial as a sum over evenly spaced points, as other programs do."""
    import numpy as np  # imported here, because importing numpy takes 0.1 s and only this solver needs it

    points = np.linspace(nodes[0], end, _DEIS_POINTS)
    exponent = growth / 2 * points**2 + first * points
    slope = 0.5 * (growth * points + first) * np.exp(exponent) / np.sqrt(np.expm1(exponent))
    weights = []
    for which, node in enumerate(nodes):
        value = slope.copy()
        for other in (*nodes[:which], *nodes[which + 1 :]):
            value *= (points - other) / (node - other)
        weights.append(float(value.sum() * (end - nodes[0]) / _DEIS_POINTS))
    return weights


def ddpm(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:  # noqa: ARG001
    """DDPM, the original sampler: a step towards the denoised prediction, then noise with the posterior's variance."""
    for here, after in pairwise(sigmas):
        clean = yield x, here
        signal, signal_after = 1 / (1 + here**2), 1 / (1 + after**2)
        kept = signal / signal_after
        moved = (x * math.sqrt(signal) - (x - clean) * ((1 - kept) / math.sqrt(1 - signal) / here)) / math.sqrt(kept)
        if after > 0:
            moved = moved + noise(here, after) * math.sqrt((1 - kept) * (1 - signal_after) / (1 - signal))
        x = moved / math.sqrt(signal_after)
    return x


def gradient_estimation(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:  # noqa: ARG001
    """Gradient estimation: an Euler step along twice the current slope minus the previous one."""
    before = None
    for here, after in pairwise(sigmas):
        clean = yield x, here
        slope = (x - clean) / here
        if after == 0:
            return clean
        x = x + (slope if before is None else slope * 2 - before) * (after - here)
        before = slope
    return x


def res_multistep(
    x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN, *, is_ancestral: bool = False
) -> Steps:
    """RES multistep: a second-order exponential integrator that reuses the evaluation of the previous step."""
    before, down_before = None, 0.0
    for place, (here, after) in enumerate(pairwise(sigmas)):
        clean = yield x, here
        down, up = ancestral(here, after, tuning.eta if is_ancestral else 0.0)
        if down == 0 or before is None:
            x = x + (x - clean) * ((down - here) / here)
        else:
            width = step_width(here, down)
            reach = (math.log(down_before) - math.log(sigmas[place - 1])) / width
            first = -math.expm1(-width) / width
            lean = (1 - first) / width / reach
            x = x * math.exp(-width) + clean * (width * (first - lean)) + before * (width * lean)
        if after > 0 and is_ancestral:
            x = x + noise(here, after) * (tuning.s_noise * up)
        before, down_before = clean, down
    return x


def euler_cfgpp(
    x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN, *, is_ancestral: bool = False
) -> Steps:
    """Euler CFG++: start from the guided prediction and step along the slope of the unguided one."""
    for here, after in pairwise(sigmas):
        clean, unguided = yield x, here
        down, up = ancestral(here, after, tuning.eta if is_ancestral else 0.0)
        x = clean + (x - unguided) * (down / here)
        if up > 0:
            x = x + noise(here, after) * (tuning.s_noise * up)
    return x


def ddim_cfgpp(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:
    """DDIM CFG++: start from the guided prediction and step along the unguided slope; `eta` is as in DDIM."""
    for here, after in pairwise(sigmas):
        clean, unguided = yield x, here
        signal, signal_after = 1 / (1 + here**2), 1 / (1 + after**2)
        share = (1 - signal_after) / (1 - signal) * max(1 - signal / signal_after, 0.0)
        fresh = tuning.eta * math.sqrt(share)
        down = math.sqrt(max(1 - signal_after - fresh**2, 0.0) / signal_after) if fresh else after
        x = clean + (x - unguided) * (down / here)
        if fresh:
            x = x + noise(here, after) * (fresh / math.sqrt(signal_after))
    return x


def dpmpp_2m_cfgpp(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:  # noqa: ARG001
    """DPM++ 2M CFG++: second-order multistep from the guided prediction along the slope of the unguided one."""
    before, width_before = None, 0.0
    for here, after in pairwise(sigmas):
        clean, unguided = yield x, here
        width = step_width(here, after)
        x_next = clean + (x - unguided) * (after / here)
        if before is not None and after > 0:
            x_next = x_next - (clean - before) * (math.expm1(-width) * width / (2 * width_before))
        x, before, width_before = x_next, unguided, width
    return x


def er_sde(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:
    """ER SDE: a third-order multistep solver of the extended reverse-time equation (Cui et al. 2023), over σ.

    Source: ComfyUI's `er_sde`, with the noise scale σ · (exp(σ^0.3) + 10) and 200 points for the integrals.
    """
    cleans: list[X] = []
    slopes: list[X] = []
    for place, (here, after) in enumerate(pairwise(sigmas)):
        clean = yield x, here
        if after == 0:
            return clean
        ratio = _er_scale(after) / _er_scale(here)
        x = x * ratio + clean * (1 - ratio)
        if cleans:
            width = after - here
            points = [after - width * number / _ER_POINTS for number in range(_ER_POINTS)]
            part = -width / _ER_POINTS
            slope = (clean - cleans[-1]) / (here - sigmas[place - 1])
            first = sum(1 / _er_scale(point) for point in points) * part
            x = x + slope * (width + first * _er_scale(after))
            if slopes:
                second = sum((point - here) / _er_scale(point) for point in points) * part
                bend = (slope - slopes[-1]) / ((here - sigmas[place - 2]) / 2)
                x = x + bend * (width**2 / 2 + second * _er_scale(after))
            slopes.append(slope)
        if tuning.s_noise > 0:
            fresh = math.sqrt(max(after**2 - here**2 * ratio**2, 0.0))
            x = x + noise(here, after) * (tuning.s_noise * fresh)
        cleans.append(clean)
    return x


_ER_POINTS: Final = 200


def _er_scale(sigma: float) -> float:
    return sigma * (math.exp(sigma**0.3) + 10)


euler_ancestral_cfgpp = partial(euler_cfgpp, is_ancestral=True)
res_multistep_ancestral = partial(res_multistep, is_ancestral=True)
