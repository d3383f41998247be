"""The samplers' steps for flow matching, where x = (1 − σ)·clean + σ·noise, as ComfyUI computes them.

Solvers of the ordinary differential equation are the same as for diffusion models, since dx/dσ = (x − clean)/σ in both
cases. Solvers that add noise differ: Euler, DPM2 and DPM++ 2S ancestral have special formulas. Solvers of the
stochastic equation run in x/(1 − σ), where a flow-matching model behaves like a diffusion model with the noise level
σ/(1 − σ).

Source: ComfyUI, `comfy/k_diffusion/sampling.py`.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from civman.diffusion import solvers, solvers_dpm, solvers_rare
from civman.diffusion.solvers import PLAIN, Noise, Solver, Steps, Tuning, X


def _lowered(here: float, after: float, eta: float) -> tuple[float, float, float]:
    """Return (σ_down, the factor on x, the amount of noise) for an ancestral step that ends at the level `after`."""
    down = after * (1 + (after / here - 1) * eta)
    kept = (1 - after) / (1 - down)
    return down, kept, math.sqrt(max(after**2 - down**2 * kept**2, 0.0))


def euler_ancestral(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:
    """Euler ancestral for flow matching."""
    for here, after in pairwise(sigmas):
        clean = yield x, here
        if after == 0:
            return clean
        down, kept, fresh = _lowered(here, after, tuning.eta)
        x = x * (down / here) + clean * (1 - down / here)
        if tuning.eta > 0:
            x = x * kept + noise(here, after) * (tuning.s_noise * fresh)
    return x


def dpm2_ancestral(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:
    """DPM2 ancestral for flow matching."""
    for here, after in pairwise(sigmas):
        clean = yield x, here
        slope = (x - clean) / here
        down, kept, fresh = _lowered(here, after, tuning.eta)
        if down == 0:
            x = x + slope * (down - here)
            continue
        middle = math.sqrt(here * down)
        ahead = x + slope * (middle - here)
        clean = yield ahead, middle
        x = x + (ahead - clean) / middle * (down - here)
        x = x * kept + noise(here, after) * (tuning.s_noise * fresh)
    return x


def dpmpp_2s_ancestral(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:
    """DPM++ 2S ancestral for flow matching: the midpoint of each step is the middle in log((1 − σ)/σ)."""
    for here, after in pairwise(sigmas):
        clean = yield x, here
        down, kept, fresh = _lowered(here, after, tuning.eta)
        if after == 0:
            x = x + (x - clean) * ((down - here) / here)
            continue
        middle = 0.9999 if here == 1 else _middle(here, down)
        ahead = x * (middle / here) + clean * (1 - middle / here)
        clean = yield ahead, middle
        x = x * (down / here) + clean * (1 - down / here)
        if tuning.eta > 0:
            x = x * kept + noise(here, after) * (tuning.s_noise * fresh)
    return x


def _middle(here: float, down: float) -> float:
    ratio = math.sqrt((here / (1 - here)) * (down / (1 - down)))
    return ratio / (1 + ratio)


def lcm(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:  # noqa: ARG001
    """LCM for flow matching: each step mixes the denoised prediction with fresh noise at the next level."""
    for here, after in pairwise(sigmas):
        x = yield x, here
        if after > 0:
            x = x * (1 - after) + noise(here, after) * after
    return x


def _in_ratio(solver: Solver) -> Solver:
    """Adapt a diffusion model's solver to flow matching, by running it in x/(1 − σ) over the levels σ/(1 − σ)."""

    def made(x: X, sigmas: Sequence[float], noise: Noise, tuning: Tuning = PLAIN) -> Steps:
        ratios = [sigma / (1 - sigma) for sigma in sigmas]

        def fresh(here: float, after: float) -> X:
            return noise(here / (1 + here), after / (1 + after))

        steps = solver(x / (1 - sigmas[0]), ratios, fresh, tuning)
        answer = None
        while True:
            try:
                inner, ratio = steps.send(answer)
            except StopIteration as stop:
                return stop.value / (1 + ratios[-1])
            answer = yield inner / (1 + ratio), ratio / (1 + ratio)

    return made


FLOW_SOLVERS: Final[dict[str, Solver]] = {
    "Euler": solvers.euler, "Heun": solvers.heun, "DPM2": solvers.dpm2, "LMS": solvers.lms,
    "DPM++ 2M": solvers_dpm.dpmpp_2m, "iPNDM": solvers_rare.ipndm, "iPNDM_v": solvers_rare.ipndm_v,
    "DEIS": solvers_rare.deis_over_time, "RES multistep": solvers_rare.res_multistep,
    "Gradient Estimation": solvers_rare.gradient_estimation,
    "Euler a": euler_ancestral, "DPM2 a": dpm2_ancestral, "DPM++ 2S a": dpmpp_2s_ancestral, "LCM": lcm,
}  # fmt: skip
"""Maps each sampler to its solver for flow matching."""
RATIO_SOLVERS: Final[dict[str, Solver]] = {
    "ER SDE": _in_ratio(solvers_rare.er_sde), "DPM++ SDE": _in_ratio(solvers_dpm.dpmpp_sde),
    "DPM++ 2M SDE": _in_ratio(solvers_dpm.dpmpp_2m_sde), "DPM++ 2M SDE Heun": _in_ratio(solvers_dpm.dpmpp_2m_sde_heun),
    "DPM++ 3M SDE": _in_ratio(solvers_dpm.dpmpp_3m_sde),
}  # fmt: skip
"""Maps each sampler that runs in x/(1 − σ) to its solver. The first σ must be below 1 (see `FIRST_SHARE`)."""
FIRST_SHARE: Final = 1 - 1e-4
"""The time t (1 is pure noise) at which `RATIO_SOLVERS` start, because x/(1 − σ) is infinite at t = 1."""
