"""The samplers' arithmetic, in the notation of Karras et al.: x = clean image + σ · noise.

A solver is a generator. It yields (x, σ) to request a model evaluation, receives the denoised prediction through
`send`, and returns the final x. So it can keep its history in local variables, evaluate the model any number of times
per step, and run on tensors as well as on plain floats (which is how `evaluations` lists the noise levels in advance).
`noise(σ, σ')` returns unit noise for the step between two levels. This module contains the Euler and Adams-Bashforth
families; the DPM family is in `solvers_dpm`, rarer solvers are in `solvers_rare`.

Sources: Karras et al. 2022 (Euler, Heun, DPM2's midpoint in log σ); Liu et al. 2022 (PLMS); Zhang & Chen 2022 (DEIS);
Zhao et al. 2023 (UniPC); Luo et al. 2023 (LCM); Song et al. 2021 (DDIM). Ancestral steps split σ' so that σ_down² +
σ_up² = σ'². tests/diffusion/test_schedulers.py compares the solvers with k-diffusion and diffusers.
"""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Final, TypeVar

# x is a tensor when sampling and a float in a dry run; torch's type annotations cannot express this
X = Any
T = TypeVar("T")
Calls = Generator[Any, Any, T]
"""A computation that yields the UNet calls that it needs, and returns T; see `civman.diffusion.unet_calls`."""
Noise = Callable[[float, float], X]
Steps = Generator[tuple[X, float], Any, X]


@dataclass(frozen=True, slots=True)
class Tuning:
    """Settings for the fresh noise that a sampler adds.

    `eta`: the fraction (0 to 1) of an ancestral or SDE step's noise that is added; `s_noise`: a factor on that noise.
    `s_churn`: how much noise Euler, Heun and DPM2 add, in all steps together, before steps whose level is between
    `s_tmin` and `s_tmax`. Source of `s_noise`, `s_churn`, `s_tmin` and `s_tmax`: Karras et al. 2022, algorithm 2.
    """

    eta: float = 1.0
    s_noise: float = 1.0
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    is_single: bool = False
    """Whether the noise levels at which a Brownian path is queried are rounded as in k-diffusion."""


PLAIN: Final = Tuning()
Solver = Callable[[X, Sequence[float], Noise, Tuning], Steps]


def solve(
    solver: Solver, x: X, sigmas: Sequence[float], noise: Noise, clean: Callable[[X, float], Any],
    tuning: Tuning = PLAIN,
) -> X:  # fmt: skip
    """Run a solver to its end; `clean(x, σ)` evaluates the model, and for CFG++ solvers returns (guided, unguided)."""
    steps = solver(x, sigmas, noise, tuning)
    answer = None
    while True:
        try:
            asked = steps.send(answer)
        except StopIteration as stop:
            return stop.value
        answer = clean(*asked)


def solved(
    solver: Solver, x: X, sigmas: Sequence[float], noise: Noise, evaluate: Callable[[X, float], Calls[Any]],
    tuning: Tuning = PLAIN,
) -> Calls[X]:  # fmt: skip
    """Run a solver like `solve`, for a model whose evaluations yield calls of the UNet."""
    steps = solver(x, sigmas, noise, tuning)
    clean = None
    while True:
        try:
            asked = steps.send(clean)
        except StopIteration as stop:
            return stop.value
        clean = yield from evaluate(*asked)


@dataclass(frozen=True, slots=True)
class Requests:
    """What a solver requests, in order: the levels of evaluations, and the level pairs between which it adds noise."""

    evaluations: tuple[float, ...]
    noises: tuple[tuple[float, float], ...]


def requests_of(solver: Solver, sigmas: Sequence[float], tuning: Tuning = PLAIN, *, in_pairs: bool = False) -> Requests:
    """Run a solver on plain numbers to list its requests; set `in_pairs` for CFG++ solvers (see `solve`).

    Cannot be used with adaptive solvers, whose steps depend on the image.
    """
    levels: list[float] = []
    noises: list[tuple[float, float]] = []

    def note(_: X, sigma: float) -> Any:
        levels.append(sigma)
        return (0.0, 0.0) if in_pairs else 0.0

    def noise(here: float, after: float) -> float:
        noises.append((here, after))
        return 0.0

    solve(solver, 0.0, sigmas, noise, note, tuning)
    return Requests(tuple(levels), tuple(noises))


def evaluations(
    solver: Solver, sigmas: Sequence[float], tuning: Tuning = PLAIN, *, in_pairs: bool = False
) -> list[float]:
    """List the noise levels of all model evaluations, in order; set `in_pairs` for CFG++ solvers (see `solve`)."""
    return list(requests_of(solver, sigmas, tuning, in_pairs=in_pairs).evaluations)


def ancestral(here: float, after: float, eta: float = 1.0) -> tuple[float, float]:
    """Return (σ_down, σ_up): the level to step down to, and how much noise to add there to arrive at level `after`."""
    if not eta:
        return after, 0.0
    # clamp to 0: if the two levels differ only in their last digits, the rounded difference may be negative
    up = min(after, eta * math.sqrt(max(after**2 * (here**2 - after**2) / here**2, 0.0)))
    return math.sqrt(after**2 - up**2), up


def churned(x: X, here: float, after: float, count: int, noise: Noise, tuning: Tuning) -> tuple[X, float]:
    """Add the noise of `s_churn` before a step and return the new (x, σ); unchanged if this level gets no noise."""
    if not tuning.s_churn:
        return x, here
    # draw the noise in every step, even if it is not added, so that the noise stream advances as in k-diffusion
    fresh = noise(here, after)
    if not tuning.s_tmin <= here <= tuning.s_tmax:
        return x, here
    above = here * (1 + min(tuning.s_churn / count, math.sqrt(2) - 1))
    return x + fresh * (tuning.s_noise * math.sqrt(above**2 - here**2)), above


def euler(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:
    """Euler's method: first order, one evaluation per step."""
    for begin, after in pairwise(sigmas):
        x, here = churned(x, begin, after, len(sigmas) - 1, noise, tuning)
        clean = yield x, here
        x = x + (x - clean) * ((after - here) / here)
    return x


def euler_ancestral(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:
    """Euler ancestral: an Euler step to below the next level, then fresh noise to arrive at the next level."""
    for here, after in pairwise(sigmas):
        clean = yield x, here
        down, up = ancestral(here, after, tuning.eta)
        x = x + (x - clean) * ((down - here) / here)
        if after > 0:
            x = x + noise(here, after) * (tuning.s_noise * up)
    return x


def ddim(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:
    """DDIM: an Euler step; `eta` > 0 replaces part of the predicted noise with fresh noise (Song et al. 2021)."""
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
    """Heun's method: second order, two evaluations per step; a last step to σ = 0 is an Euler step."""
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
    """DPM2: two evaluations per step; the slope is that at the midpoint in log σ. The last step is Euler's."""
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
    """LMS: Adams-Bashforth over σ with up to four slopes."""
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
    """PLMS: Adams-Bashforth with fixed weights; the first step is similar to Heun's."""
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
    """DEIS: second-order exponential integrator over log σ."""
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
    """UniPC: third order, B(h) = h, a corrector after every step but the last; the order falls to 1 at the end."""
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
    """Move x by UniPC's predictor from level `step` to the next, or by its corrector if `arrived` is given.

    `arrived` is the prediction at the next level.
    """
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
        weights = [0.5]  # use the simplified weight of the authors' own code, as all implementations do
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
    """LCM: each step adds fresh noise of the next level to the denoised prediction."""
    for here, after in pairwise(sigmas):
        x = yield x, here
        if after > 0:
            x = x + noise(here, after) * after
    return x


dpm2_ancestral = partial(dpm2, is_ancestral=True)


def step_width(here: float, after: float) -> float:
    """Return the length of a step in −log σ; infinite if it ends at σ = 0."""
    return math.log(here / after) if after > 0 else math.inf


def _lagrange_integral(nodes: Sequence[float], which: int, start: float, end: float) -> float:
    """Integrate the Lagrange polynomial that is 1 at nodes[which] and 0 at other nodes; exact for up to four nodes."""
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
    """Compute ∫ log(σ / zero) dσ from `start` to `end`."""
    return end * (math.log(end / zero) - 1) - start * (math.log(start / zero) - 1)


def _solve_vandermonde(nodes: Sequence[float], wanted: Sequence[float]) -> list[float]:
    """Find the weights w with Σ wₖ·nodesₖ^p = wanted[p] for p = 0, 1, …, by Gaussian elimination.

    Meant for at most four nodes.
    """
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
