# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Noise levels of a model that was converted to half precision as a whole, and a level that is dropped."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import k_oracle

from civman.diffusion import sampler_names, samplers
from civman.diffusion.noise_levels import NoiseLevels, Schedule, table
from civman.diffusion.samplers import BY_NAME

ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0).float()


LEVELS = NoiseLevels.of_model(half="levels")


@pytest.fixture(scope="module")
def halves() -> Any:
    """k-diffusion's denoiser around a model whose ᾱ was converted to half precision."""
    model = torch.nn.Identity()
    model.apply_model = None  # type: ignore[assignment]
    return k_oracle.external().DiscreteEpsDDPMDenoiser(model, ALPHAS.half(), quantize=False)


def test_levels_in_half_precision_are_k_diffusion_s(halves: Any) -> None:
    assert list(LEVELS.sigmas) == halves.sigmas.tolist()
    plain = NoiseLevels.of_model().sigmas
    assert max(abs(mine - other) / other for mine, other in zip(LEVELS.sigmas, plain, strict=True)) > 2e-4


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 33, 150])
def test_tables_between_half_levels_are_k_diffusion_s(halves: Any, steps: int) -> None:
    k = k_oracle.sampling()
    low, high = halves.sigmas[0].item(), halves.sigmas[-1].item()

    for schedule, made in (
        (Schedule.NORMAL, halves.get_sigmas(steps)),
        (Schedule.KARRAS, k.get_sigmas_karras(steps, low, high)),
        (Schedule.EXPONENTIAL, k.get_sigmas_exponential(steps, low, high)),
    ):
        assert table(schedule, steps, LEVELS, is_single=True) == pytest.approx(made.tolist(), rel=3e-7)


@pytest.mark.parametrize("sigma", [0.02, 0.0292, 0.05, 0.31, 1.0, 2.7, 9.99, 14.6, 14.9])
def test_the_time_of_a_level_is_found_between_half_logarithms(halves: Any, sigma: float) -> None:
    assert LEVELS.time(sigma) == pytest.approx(float(halves.sigma_to_t(torch.tensor([sigma]))), abs=2e-3)


def test_ddim_and_unipc_round_only_the_share_of_signal() -> None:
    for name in ("DDIM", "PLMS", "UniPC"):
        levels = BY_NAME[name].levels(is_half=True)
        alphas = ALPHAS.half().double()
        assert list(levels.alphas) == alphas.tolist()
        assert list(levels.sigmas) == pytest.approx(((1 - alphas) / alphas).sqrt().tolist(), rel=1e-12)


@pytest.mark.parametrize("name", ["Euler", "DPM++ 2M", "DPM++ SDE", "DPM2", "Heun", "LMS", "DPM++ 3M SDE"])
@pytest.mark.parametrize("steps", [1, 2, 8])
def test_a_dropped_level_is_the_second_to_last_of_one_step_more(name: str, steps: int) -> None:
    k = k_oracle.sampling()
    sampler = sampler_names.with_options(BY_NAME[name], drop_penultimate=True)
    levels = sampler.levels()
    made = samplers.plan(sampler, Schedule.KARRAS, steps, levels)
    sigmas = k.get_sigmas_karras(steps + 1, levels.least, levels.greatest).tolist()

    assert list(made.sigmas) == pytest.approx([*sigmas[:-2], 0.0], rel=1e-6)
    second = samplers.plan(sampler, Schedule.KARRAS, steps, levels, start=samplers.Start(0.5, keeps_steps=True))
    whole = k.get_sigmas_karras(2 * steps + 1, levels.least, levels.greatest).tolist()
    assert list(second.sigmas) == pytest.approx([*whole[:-2], 0.0][steps:], rel=1e-6)
    assert second.steps == steps


def test_ddim_has_no_level_to_drop() -> None:
    for name in ("DDIM", "PLMS", "UniPC"):
        assert sampler_names.with_options(BY_NAME[name], drop_penultimate=True) == BY_NAME[name]
