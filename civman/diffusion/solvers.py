"""The samplers' arithmetic, in the form of Karras et al.: x = clean picture + σ · noise.

A solver is a generator. It yields (x, σ) where it wants the model asked, is sent the model's clean picture back, and
returns the last x. So it keeps its history in local variables, may ask as often as it likes per step, and runs the
same on tensors and on plain numbers (which is how `evaluations` lists the levels it will ask for). `noise(σ, σ')`
gives unit noise for the step between two levels. Here are the solvers of the Euler and Adams-Bashforth kinds; those of
the DPM kind are in `solvers_dpm`, rarer ones in `solvers_rare`.

Sources: Karras et al. 2022 (Euler, Heun, DPM2's midpoint in log σ); Liu et al. 2022 (PLMS); Zhang & Chen 2022 (DEIS);
Zhao et al. 2023 (UniPC); Luo et al. 2023 (LCM); Song et al. 2021 (DDIM). Ancestral steps split σ' so that
σ_down² + σ_up² = σ'². Measured against k-diffusion and diffusers in tests/diffusion/test_schedulers.py.
"""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Final

# a tensor in use, a float when dry-run; torch's own types would shut the second out
X = Any
Noise = Callable[[float, float], X]
Steps = Generator[tuple[X, float], Any, X]


@dataclass(frozen=True, slots=True)
class Tuning:
    """How much fresh noise a sampler adds.

    `eta`: the share of what an ancestral or SDE step may add; `s_noise`: factor on it. `s_churn`, over all steps: noise
    that Euler, Heun and DPM2 add before each step whose level lies within `s_tmin` and `s_tmax`. Source of the last
    four: Karras et al. 2022, algorithm 2.
    """

    eta: float = 1.0
    s_noise: float = 1.0
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    is_single: bool = False
    """Levels at which a Brownian path is asked are rounded as k-diffusion rounds them."""


PLAIN: Final = Tuning()
Solver = Callable[[X, Sequence[float], Noise, Tuning], Steps]


def solve(
    solver: Solver, x: X, sigmas: Sequence[float], noise: Noise, clean: Callable[[X, float], Any],
    tuning: Tuning = PLAIN,
) -> X:  # fmt: skip
    """Runs a solver to its end; `clean(x, σ)` is the model. CFG++ solvers want (clean, clean without the prompt)."""
    steps = solver(x, sigmas, noise, tuning)
    answer = None
    while True:
        try:
            asked = steps.send(answer)
        except StopIteration as stop:
            return stop.value
        answer = clean(*asked)


def evaluations(
    solver: Solver, sigmas: Sequence[float], tuning: Tuning = PLAIN, *, in_pairs: bool = False
) -> list[float]:
    """The levels at which the model will be asked, in order; `in_pairs`: the solver wants two clean pictures."""
    levels: list[float] = []

    def note(_: X, sigma: float) -> Any:
        levels.append(sigma)
        return (0.0, 0.0) if in_pairs else 0.0

    solve(solver, 0.0, sigmas, lambda _, __: 0.0, note, tuning)
    return levels


def ancestral(here: float, after: float, eta: float = 1.0) -> tuple[float, float]:
    """(σ_down, σ_up): how far to step down so that adding σ_up of fresh noise ends at `after`."""
    if not eta:
        return after, 0.0
    # of two levels that differ in their last digits the rounded difference may be negative
    up = min(after, eta * math.sqrt(max(after**2 * (here**2 - after**2) / here**2, 0.0)))
    return math.sqrt(after**2 - up**2), up


def churned(x: X, here: float, after: float, count: int, noise: Noise, tuning: Tuning) -> tuple[X, float]:
    """(x, σ) with the noise that `s_churn` adds before a step; unchanged where it adds none."""
    if not tuning.s_churn:
        return x, here
    fresh = noise(here, after)  # drawn in every step, also where it is not added: the stream goes on as elsewhere
    if not tuning.s_tmin <= here <= tuning.s_tmax:
        return x, here
    above = here * (1 + min(tuning.s_churn / count, math.sqrt(2) - 1))
    return x + fresh * (tuning.s_noise * math.sqrt(above**2 - here**2)), above


def euler(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:
    """One evaluation a step, first order."""
    for begin, after in pairwise(sigmas):
        x, here = churned(x, begin, after, len(sigmas) - 1, noise, tuning)
        clean = yield x, here
        x = x + (x - clean) * ((after - here) / here)
    return x


def euler_ancestral(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:
    """Euler to below the next level, then fresh noise up to it."""
    for here, after in pairwise(sigmas):
        clean = yield x, here
        down, up = ancestral(here, after, tuning.eta)
        x = x + (x - clean) * ((down - here) / here)
        if after > 0:
            x = x + noise(here, after) * (tuning.s_noise * up)
    return x


def ddim(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:
    """Euler; with `eta` above 0, fresh noise takes the place of a share of the predicted one (Song et al. 2021)."""
    for here, after in pairwise(sigmas):
        clean = yield x, here
        if not tuning.eta:
            x = x + (x - clean) * ((after - here) / here)
            continue
        signal, signal_after = 1 / (1 + here**2), 1 / (1 + after**2)
        share = (1 - signal_after) / (1 - signal) * max(1 - signal / signal_after, 0.0)
        fresh = tuning.eta * math.sqrt(share)
        down = math.sqrt(max(1 - signal_after - fresh**2, 0.0) / signal_after)
        x = clean + (x - clean) * (down / here) + noise(here, after) * (fresh / math.sqrt(signal_after))
    return x


def heun(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:
    """Two evaluations a step, second order, the last step Euler."""
    for begin, after in pairwise(sigmas):
        x, here = churned(x, begin, after, len(sigmas) - 1, noise, tuning)
        clean = yield x, here
        slope = (x - clean) / here
        ahead = x + slope * (after - here)
        if after > 0:
            clean = yield ahead, after
            ahead = x + (slope + (ahead - clean) / after) * ((after - here) / 2)
        x = ahead
    return x


def dpm2(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN, *, is_ancestral: bool = False) -> Steps:
    """Two evaluations a step: the second half way in log σ gives the slope; the last step Euler."""
    for begin, after in pairwise(sigmas):
        here, down, up = begin, after, 0.0
        if is_ancestral:
            down, up = ancestral(here, after, tuning.eta)
        else:
            x, here = churned(x, begin, after, len(sigmas) - 1, noise, tuning)
        clean = yield x, here
        slope = (x - clean) / here
        if down == 0:
            x = x + slope * (down - here)
            continue
        middle = math.sqrt(here * down)
        ahead = x + slope * (middle - here)
        clean = yield ahead, middle
        x = x + (ahead - clean) / middle * (down - here)
        if up > 0:
            x = x + noise(here, after) * (tuning.s_noise * up)
    return x


def lms(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:  # noqa: ARG001
    """Adams-Bashforth over σ with up to four slopes."""
    slopes: list[X] = []
    for step, (here, _) in enumerate(pairwise(sigmas)):
        clean = yield x, here
        slopes = [(x - clean) / here, *slopes[:3]]
        passed = [sigmas[step - back] for back in range(len(slopes))]
        for back, slope in enumerate(slopes):
            x = x + slope * _lagrange_integral(passed, back, here, sigmas[step + 1])
    return x


ADAMS_BASHFORTH: Final = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def plms(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:  # noqa: ARG001
    """Adams-Bashforth with fixed weights, begun with one step of Heun's kind."""
    slopes: list[X] = []
    for here, after in pairwise(sigmas):
        clean = yield x, here
        slopes = [(x - clean) / here, *slopes[:3]]
        slope = sum(part * weight for part, weight in zip(slopes, ADAMS_BASHFORTH[len(slopes) - 1], strict=True))
        if len(slopes) == 1 and after > 0:
            ahead = x + slope * (after - here)
            clean = yield ahead, after
            slope = (slope + (ahead - clean) / after) / 2
        x = x + slope * (after - here)
    return x


def deis(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:  # noqa: ARG001
    """Second order, exponential integrator over log σ."""
    before, sigma_before = None, 0.0
    for here, after in pairwise(sigmas):
        clean = yield x, here
        slope = (x - clean) / here
        if before is None or after == 0:
            x = x + slope * (after - here)
        else:
            here_part = _log_integral(here, after, zero=sigma_before) / math.log(here / sigma_before)
            x = x + slope * here_part + before * (after - here - here_part)
        before, sigma_before = slope, here
    return x


def unipc(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:  # noqa: ARG001
    """Third order, B(h) = h, corrector after every step but the last, order falling to 1 at the end."""
    count = len(sigmas) - 1
    cleans: list[X] = []
    base, order = x, 0
    for step, (here, after) in enumerate(pairwise(sigmas)):
        clean = yield x, here
        if step > 0:
            x = _unipc_move(base, cleans, sigmas, step - 1, order, arrived=clean)
        cleans.append(clean)
        base, order = x, min(3, count - step, step + 1)
        x = clean if after == 0 else _unipc_move(base, cleans, sigmas, step, order, arrived=None)
    return x


def _unipc_move(x: X, cleans: list[X], sigmas: Sequence[float], step: int, order: int, *, arrived: X | None) -> X:
    """From level `step` to the next; with `arrived`, the clean picture found there, the corrector's better version."""
    here, after = sigmas[step], sigmas[step + 1]
    width = step_width(here, after)
    latest = cleans[step]
    moved = x * (after / here) - latest * math.expm1(-width)
    ratios = [step_width(here, sigmas[step - back]) / width for back in range(1, order)]
    leans = [(cleans[step - back] - latest) / r for back, r in zip(range(1, order), ratios, strict=True)]
    if arrived is not None:
        ratios, leans = [*ratios, 1.0], [*leans, arrived - latest]
    if not ratios:
        return moved
    if len(ratios) == 1:
        weights = [0.5]  # the authors' own simplification, which all implementations share
    else:
        wanted, phi, factorial = [], math.expm1(-width) / -width - 1, 1.0
        for power in range(1, len(ratios) + 1):
            factorial *= power
            wanted.append(phi * factorial / -width)
            phi = phi / -width - 1 / (factorial * (power + 1))
        weights = _solve_vandermonde(ratios, wanted)
    for weight, lean in zip(weights, leans, strict=True):
        moved = moved + lean * (weight * width)
    return moved


def lcm(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:  # noqa: ARG001
    """The clean picture with fresh noise of the next level, each step."""
    for here, after in pairwise(sigmas):
        x = yield x, here
        if after > 0:
            x = x + noise(here, after) * after
    return x


dpm2_ancestral = partial(dpm2, is_ancestral=True)


def step_width(here: float, after: float) -> float:
    """Length of a step in −log σ; endless where it ends without noise."""
    return math.log(here / after) if after > 0 else math.inf


def _lagrange_integral(nodes: Sequence[float], which: int, start: float, end: float) -> float:
    """∫ of the polynomial that is 1 at nodes[which] and 0 at the others; exact for four nodes or fewer."""
    total = 0.0
    for place, weight in ((0.5 - math.sqrt(1 / 12), 0.5), (0.5 + math.sqrt(1 / 12), 0.5)):
        at = start + (end - start) * place
        value = 1.0
        for index, node in enumerate(nodes):
            if index != which:
                value *= (at - node) / (nodes[which] - node)
        total += weight * value
    return total * (end - start)


def _log_integral(start: float, end: float, *, zero: float) -> float:
    """∫ log(σ / zero) dσ."""
    return end * (math.log(end / zero) - 1) - start * (math.log(start / zero) - 1)


def _solve_vandermonde(nodes: Sequence[float], wanted: Sequence[float]) -> list[float]:
    """Weights w with Σ wₖ·nodesₖ^p = wanted[p] for p = 0, 1, …; at most four, by elimination."""
    size = len(nodes)
    rows = [[node**power for node in nodes] + [wanted[power]] for power in range(size)]
    for pivot in range(size):
        best = max(range(pivot, size), key=lambda r: abs(rows[r][pivot]))
        rows[pivot], rows[best] = rows[best], rows[pivot]
        for other in range(size):
            if other != pivot:
                factor = rows[other][pivot] / rows[pivot][pivot]
                rows[other] = [a - factor * b for a, b in zip(rows[other], rows[pivot], strict=True)]
    return [rows[i][size] / rows[i][i] for i in range(size)]
