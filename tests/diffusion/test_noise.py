# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""A seed means one picture: alone, in a batch, on any device."""

import math
from itertools import pairwise

import k_oracle
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from civman.diffusion.noise import BrownianPath, PhiloxDraws, PictureNoise, Rng, Variation, draws
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


def test_zero_terminal_snr_is_rescaled_in_single_precision_as_in_the_web_uis() -> None:
    # NumPy rounds every root correctly; torch's last bit depends on the processor
    roots = np.sqrt(np.array(NoiseLevels.of_model().alphas, dtype=np.float32))
    first, last = roots[0], roots[-1]
    alphas = ((roots - last) * (first / (first - last))) ** 2
    theirs = torch.from_numpy(np.sqrt((1 - alphas[:-1]) / alphas[:-1]).astype(np.float64))

    now, before = (
        torch.tensor(NoiseLevels.of_model(is_zero_snr=True, is_single=is_single).sigmas[:-1], dtype=torch.float64)
        for is_single in (True, False)
    )

    assert float(((now - theirs) / theirs).abs().max()) < 1e-6
    assert float(((before - theirs) / theirs).abs().max()) > 1e-5


# --- a card's threads, variation seeds, seeds of another size


def philox(seed: int, block: int, thread: int) -> list[int]:
    """Philox4x32-10 in Python's own integers (Salmon et al. 2011)."""
    words, keys = [block, 0, thread, 0], [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        left, right = words[0] * 0xD2511F53, words[2] * 0xCD9E8D57
        words = [
            right >> 32 ^ words[1] ^ keys[0], right & 0xFFFFFFFF, left >> 32 ^ words[3] ^ keys[1], left & 0xFFFFFFFF,
        ]  # fmt: skip
        keys = [(keys[0] + 0x9E3779B9) & 0xFFFFFFFF, (keys[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return words


def cards_number(seed: int, element: int, threads: int, first_block: int) -> float:
    """One element of what a card with so many threads draws: PyTorch's loop over blocks of four numbers a thread."""
    block, rest = divmod(element, 4 * threads)
    k, thread = divmod(rest, threads)
    words = philox(seed, first_block + block, thread)
    u, v = ((words[k // 2 * 2 + i] + 0.5) * 2.0**-32 for i in (0, 1))
    return math.sqrt(-2 * math.log(u)) * (math.cos if k % 2 else math.sin)(2 * math.pi * v)


def test_the_cards_generator_is_philox_as_published() -> None:
    # the known answer of Random123 for a counter and a key of zeros
    assert philox(0, 0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("threads", [256, 512, 1024, 4096])
def test_a_card_with_fewer_threads_than_values_numbers_them_differently(threads: int) -> None:
    shape = (4, 24, 32)  # 3072 values: three blocks, two, one, and fewer than the threads
    stream = draws(f"nv:{threads}", 2**33 + 5)
    drawn = [stream.randn(shape).flatten().tolist() for _ in range(2)]
    blocks = 3072 // (4 * threads) + (3072 % (4 * threads) > 0) if threads < 3072 else 1

    for number, values in enumerate(drawn):
        for element in (0, 1, 255, 256, 511, 767, 1023, 1024, 1300, 2047, 2048, 3071):
            lanes = min(3072, threads)
            wanted = cards_number(2**33 + 5, element, lanes, number * blocks)
            assert values[element] == pytest.approx(wanted, abs=1e-6)
    if threads == 4096:
        assert drawn[0] == PhiloxDraws(2**33 + 5).randn(shape).flatten().tolist()


def test_a_variation_turns_each_column_of_each_channel() -> None:
    one, two = PictureNoise(3).start(SHAPE), PictureNoise(4).start(SHAPE)
    mixed = PictureNoise(3, variation=Variation(4, 0.3)).start(SHAPE)

    for channel in range(4):
        for column in range(8):
            a, b = one[channel, :, column].double(), two[channel, :, column].double()
            angle = math.acos(float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)))
            wanted = (math.sin(0.7 * angle) * a + math.sin(0.3 * angle) * b) / math.sin(angle)
            assert torch.allclose(mixed[channel, :, column].double(), wanted, atol=1e-5)
    assert torch.allclose(PictureNoise(3, variation=Variation(3, 0.3)).start(SHAPE), one, atol=1e-6)


@pytest.mark.parametrize("size", [(4, 6), (12, 8), (8, 14), (7, 3), (13, 5)])
def test_a_seed_of_another_size_is_pasted_into_the_middle(size: tuple[int, int]) -> None:
    whole, small = PictureNoise(3).start(SHAPE), PictureNoise(3).start((4, *size))
    noise = PictureNoise(3, variation=Variation(drawn_for=size))
    drawn = noise.start(SHAPE)
    down, across = ((8 - length) // 2 for length in size)  # how far the small one's corner lies inside

    for row in range(8):
        for column in range(8):
            y, x = row - down, column - across
            # what is larger is cut at both sides by the same number of latents, rounded up
            inside = (max(-down, 0) <= y < size[0] - max(-down, 0)) and (
                max(-across, 0) <= x < size[1] - max(-across, 0)
            )
            wanted = small[:, y, x] if inside else whole[:, row, column]
            assert torch.equal(drawn[:, row, column], wanted), (row, column)
    plain = PictureNoise(3)
    plain.start(SHAPE)
    assert torch.equal(noise.next(SHAPE), plain.next(SHAPE)), "the steps' noise goes on as without"
