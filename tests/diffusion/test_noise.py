# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""A seed means one picture: alone, in a batch, on any device."""

import math
from itertools import pairwise

import k_oracle
import pytest

torch = pytest.importorskip("torch")

from civman.diffusion.noise import BrownianPath, PhiloxDraws, PictureNoise, Rng
from civman.diffusion.noise_levels import NoiseLevels, Schedule, beta_quantile, table

SHAPE = (4, 8, 8)


def test_the_card_s_numbers_are_those_torch_prints_for_seed_0() -> None:
    # torch.manual_seed(0); torch.randn(3, 4, device="cuda"), as printed in many public notebooks
    known = [-0.9247, -0.4253, -2.6438, 0.1452, -0.1209, -0.5797, -0.6229, -0.3284, -1.0745, -0.3631, -1.6711, 2.2655]

    drawn = PhiloxDraws(0).randn((3, 4)).flatten().tolist()

    assert drawn == pytest.approx(known, abs=5e-5)


def test_cpu_noise_is_torch_s_own_generator_and_goes_on_with_the_same_stream() -> None:
    generator = torch.Generator().manual_seed(5)
    noise = PictureNoise(5)

    assert torch.equal(noise.start(SHAPE), torch.randn(SHAPE, generator=generator))
    assert torch.equal(noise.next(SHAPE), torch.randn(SHAPE, generator=generator))


def test_eta_seed_delta_moves_the_steps_noise_to_its_own_stream() -> None:
    noise = PictureNoise(5, eta_seed_delta=31337)

    assert torch.equal(noise.start(SHAPE), PictureNoise(5).start(SHAPE))
    assert torch.equal(noise.next(SHAPE), torch.randn(SHAPE, generator=torch.Generator().manual_seed(5 + 31337)))


@pytest.mark.parametrize("rng", Rng)
def test_seeds_and_kinds_differ_and_repeat(rng: Rng) -> None:
    assert torch.equal(PictureNoise(1, rng=rng).start(SHAPE), PictureNoise(1, rng=rng).start(SHAPE))
    assert not torch.equal(PictureNoise(1, rng=rng).start(SHAPE), PictureNoise(2, rng=rng).start(SHAPE))
    assert not torch.equal(PictureNoise(1).start(SHAPE), PictureNoise(1, rng=Rng.NV).start(SHAPE))


@pytest.mark.parametrize("schedule", [Schedule.KARRAS, Schedule.NORMAL])
@pytest.mark.parametrize("seed", [0, 123, 2**40 + 7, 2**64 - 1])
@pytest.mark.filterwarnings("ignore:Should have")  # torchsde rounds its own ends
def test_the_brownian_noise_is_k_diffusion_s(schedule: Schedule, seed: int) -> None:
    oracle = k_oracle.sampling()
    levels = torch.tensor(table(schedule, 12, NoiseLevels.of_model())[:-1])
    theirs = oracle.BrownianTreeNoiseSampler(torch.zeros(1, *SHAPE), levels[-1], levels[0], seed=[seed])
    path = BrownianPath(seed, SHAPE, float(levels[-1]), float(levels[0]), rng=Rng.CPU)

    for here, after in pairwise(levels):
        assert float((path.noise(float(here), float(after)) - theirs(here, after)[0]).abs().max()) < 5e-6
        assert float((path.noise(float(after), float(here)) - theirs(after, here)[0]).abs().max()) < 5e-6


def test_by_rules_1_the_brownian_noise_has_the_opposite_sign() -> None:
    now, before = (BrownianPath(3, SHAPE, 0.03, 14.6, rng=Rng.CPU, falls_upwards=is_old) for is_old in (False, True))

    assert torch.equal(now.noise(5.0, 2.0), -before.noise(5.0, 2.0))


def test_the_brownian_path_does_not_depend_on_what_was_asked_before() -> None:
    asked = BrownianPath(3, SHAPE, 0.03, 14.6, rng=Rng.NV)
    asked.noise(14.6, 3.0)
    fresh = BrownianPath(3, SHAPE, 0.03, 14.6, rng=Rng.NV)

    assert torch.equal(asked.noise(5.0, 2.0), fresh.noise(5.0, 2.0))


def test_brownian_noise_has_unit_variance() -> None:
    path = BrownianPath(3, (64, 64), 0.03, 14.6, rng=Rng.CPU)

    for here, after in ((14.6, 7.0), (1.0, 0.5), (0.05, 0.03)):
        assert math.isclose(float(path.noise(here, after).std()), 1, abs_tol=0.05)


def test_the_beta_quantile_is_scipy_s() -> None:
    stats = pytest.importorskip("scipy.stats")

    for i in range(101):
        assert beta_quantile(i / 100, 0.6) == pytest.approx(float(stats.beta.ppf(i / 100, 0.6, 0.6)), abs=1e-12)


def test_the_noise_levels_are_those_everybody_prints() -> None:
    levels = NoiseLevels.of_model()

    assert levels.least == pytest.approx(0.0292, abs=5e-5)
    assert levels.greatest == pytest.approx(14.6146, abs=5e-5)
    assert levels.time(levels.sigma(123.4)) == pytest.approx(123.4)
    assert NoiseLevels.of_model(is_zero_snr=True).greatest > 4000
