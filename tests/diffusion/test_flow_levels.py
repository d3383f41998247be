# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""The noise levels and solvers of flow matching: ComfyUI's formulas and diffusers' scheduler, each computed again."""

import math
from itertools import pairwise
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers import FlowMatchEulerDiscreteScheduler

from civman.diffusion import flow_solvers
from civman.diffusion.flow_levels import FlowLevels, dynamic_shift, flow_table
from civman.diffusion.noise_levels import Schedule
from civman.diffusion.solvers import Tuning, solve


def shifted(t: Any, shift: float) -> Any:
    return shift * t / (1 + (shift - 1) * t)


@pytest.mark.parametrize(("shift", "entries"), [(1.0, 1000), (3.0, 1000), (math.exp(1.15), 10000)])
@pytest.mark.parametrize("steps", [1, 4, 7, 20, 28])
def test_simple_normal_and_sgm_uniform_are_comfyui_s(shift: float, entries: int, steps: int) -> None:
    table = shifted(torch.arange(1, entries + 1, dtype=torch.float64) / entries, shift)
    ends = torch.linspace(1.0, float(table[0]), steps, dtype=torch.float64)
    wider = torch.linspace(1.0, float(table[0]), steps + 1, dtype=torch.float64)[:-1]
    levels = FlowLevels(shift, entries)
    expected = {
        Schedule.SIMPLE: [float(table[-(1 + int(i * (len(table) / steps)))]) for i in range(steps)],
        Schedule.NORMAL: shifted(ends, shift).tolist(),
        Schedule.SGM_UNIFORM: shifted(wider, shift).tolist(),
    }

    for schedule, wanted in expected.items():
        assert flow_table(schedule, steps, levels) == pytest.approx([*wanted, 0.0], abs=1e-6)


@pytest.mark.parametrize("steps", [4, 9, 25])
def test_normal_is_diffusers_set_timesteps(steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)

    assert flow_table(Schedule.NORMAL, steps, FlowLevels(3.0)) == pytest.approx(scheduler.sigmas.tolist(), abs=1e-5)


@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_the_dynamic_shift_is_diffusers_flux_pipeline_s(tokens: int) -> None:
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    assert dynamic_shift(tokens) == pytest.approx(math.exp(calculate_shift(tokens, 256, 4096, 0.5, 1.15)))


SIGMAS = (0.9997, 0.9, 0.75, 0.5, 0.2, 0.0)


def clean_of(x: Any, sigma: float) -> Any:
    return torch.tanh(x * 0.7) * (1 - 0.3 * sigma)


class Draws:
    """The same numbers for both sides, in order."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(5)

    def __call__(self, *_: Any) -> Any:
        return torch.randn(4, dtype=torch.float64, generator=self._generator)


def start() -> Any:
    return torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def euler_a(x: Any, draw: Draws, eta: float) -> Any:
    for here, after in pairwise(SIGMAS):
        clean = clean_of(x, here)
        if after == 0:
            return clean
        down = after * (1 + (after / here - 1) * eta)
        alpha, alpha_down = 1 - after, 1 - down
        renoise = (after**2 - down**2 * alpha**2 / alpha_down**2) ** 0.5
        x = down / here * x + (1 - down / here) * clean
        x = alpha / alpha_down * x + draw() * renoise
    return x


def er_sde(x: Any, draw: Draws) -> Any:
    """ComfyUI's er_sde with its scaling of the signal, for a model whose signal is 1 − σ."""

    def scale(lam: Any) -> Any:
        return lam * (torch.exp(lam**0.3) + 10.0)

    sigmas = torch.tensor(SIGMAS, dtype=torch.float64)
    lambdas = sigmas / (1 - sigmas)
    old = old_d = None
    for i in range(len(SIGMAS) - 1):
        clean = clean_of(x, SIGMAS[i])
        if SIGMAS[i + 1] == 0:
            return clean
        begin, end = lambdas[i], lambdas[i + 1]
        alpha_s, alpha_t = sigmas[i] / begin, sigmas[i + 1] / end
        r = scale(end) / scale(begin)
        new = alpha_t / alpha_s * r * x + alpha_t * (1 - r) * clean
        if old is not None:
            step = -(end - begin) / 200
            places = end + torch.arange(200, dtype=torch.float64) * step
            slope = (clean - old) / (begin - lambdas[i - 1])
            new = new + alpha_t * ((end - begin) + (1 / scale(places)).sum() * step * scale(end)) * slope
            if old_d is not None:
                bend = (slope - old_d) / ((begin - lambdas[i - 2]) / 2)
                inner = ((places - begin) / scale(places)).sum() * step
                new = new + alpha_t * ((end - begin) ** 2 / 2 + inner * scale(end)) * bend
            old_d = slope
        old = clean
        x = new + alpha_t * draw() * (end**2 - begin**2 * r**2).sqrt()
    return x


def sde_2m(x: Any, draw: Draws) -> Any:
    """ComfyUI's dpmpp_2m_sde (midpoint, eta 1) over half the logarithm of the signal-to-noise ratio."""
    old = last = None
    for here, after in pairwise(SIGMAS):
        clean = clean_of(x, here)
        if after == 0:
            return clean
        begin, end = (math.log((1 - sigma) / sigma) for sigma in (here, after))
        h = end - begin
        alpha = after * math.exp(end)
        x = after / here * math.exp(-h) * x - alpha * math.expm1(-2 * h) * clean
        if old is not None and last is not None:
            x = x - 0.5 * alpha * math.expm1(-2 * h) * (h / last) * (clean - old)
        x = x + draw() * after * math.sqrt(-math.expm1(-2 * h))
        old, last = clean, h
    return x


@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_euler_ancestral_is_comfyui_s_form_for_flow_matching(eta: float) -> None:
    ours = solve(flow_solvers.euler_ancestral, start(), SIGMAS, Draws(), clean_of, Tuning(eta=eta))

    assert torch.allclose(ours, euler_a(start(), Draws(), eta), rtol=1e-9, atol=1e-9)


def test_solvers_that_run_in_the_ratio_are_comfyui_s_formulas_with_a_scaled_signal() -> None:
    for name, formula in (("ER SDE", er_sde), ("DPM++ 2M SDE", sde_2m)):
        ours = solve(flow_solvers.RATIO_SOLVERS[name], start(), SIGMAS, Draws(), clean_of)

        assert torch.allclose(ours, formula(start(), Draws()), rtol=1e-8, atol=1e-8), name
