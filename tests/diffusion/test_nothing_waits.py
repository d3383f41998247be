# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""What is made ready before the loop, or read after it, is what the loop would have made or read itself."""

import math
import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from civman.diffusion import solvers
from civman.diffusion.environment import deterministic
from civman.diffusion.guard import Checks, check_latents, check_pixels, find_noise, refuse_noise
from civman.diffusion.noise import BrownianPath
from civman.diffusion.noise_levels import NoiseLevels, Schedule
from civman.diffusion.samplers import SAMPLERS, Sampler, plan
from civman.diffusion.step_noise import DrawnAhead, step_noise
from civman.errors import CannotRender, Cause

CPU = torch.device("cpu")


@pytest.mark.parametrize("tuning", [solvers.PLAIN, solvers.Tuning(eta=0.7, s_churn=5.0, s_tmin=0.5)])
@pytest.mark.parametrize("sampler", [each for each in SAMPLERS if not each.is_adaptive], ids=lambda each: each.name)
def test_a_solver_asks_an_image_for_what_the_dry_run_says(sampler: Sampler, tuning: solvers.Tuning) -> None:
    planned = plan(sampler, Schedule.AUTOMATIC, 6, NoiseLevels.of_model(), is_xl=False)
    levels, noises = [], []

    def clean(x: Any, sigma: float) -> Any:
        levels.append(sigma)
        return (x * 0.7, x * 0.6) if sampler.is_cfgpp else x * 0.7

    def noise(here: float, after: float) -> Any:
        noises.append((here, after))
        return torch.ones(1, 4, 2, 2)

    solvers.solve(sampler.solver, torch.ones(1, 4, 2, 2), planned.sigmas, noise, clean, tuning)

    wanted = solvers.requests_of(sampler.solver, planned.sigmas, tuning, in_pairs=sampler.is_cfgpp)
    assert list(wanted.evaluations) == levels
    assert list(wanted.noises) == noises


def path() -> BrownianPath:
    return BrownianPath(3, (4, 8, 8), 0.03, 14.6, rng="cpu")


LEVELS = [14.6 * (0.03 / 14.6) ** (step / 40) for step in range(41)]
PAIRS = list(pairwise(LEVELS))


def test_noise_drawn_ahead_has_the_bits_of_noise_drawn_when_needed() -> None:
    ahead = DrawnAhead(path().noise, PAIRS)
    try:
        for here, after in PAIRS:
            assert torch.equal(ahead(here, after), path().noise(here, after))
    finally:
        ahead.close()


def test_noise_is_drawn_in_another_thread_and_stops_with_the_loop() -> None:
    drawn_by = []

    def draw(here: float, after: float) -> Any:
        drawn_by.append((threading.current_thread().name, here, after))
        return torch.zeros(1)

    with step_noise(draw, PAIRS, torch.device("meta")) as noise:
        noise(*PAIRS[0])

    assert all(name.startswith("civman noise") for name, *_ in drawn_by)
    assert len(drawn_by) < len(PAIRS), "no more is drawn than a few steps ahead"
    assert not [each for each in threading.enumerate() if each.name.startswith("civman noise")]


def test_noise_for_other_levels_than_were_announced_is_an_error() -> None:
    ahead = DrawnAhead(path().noise, PAIRS)
    try:
        with pytest.raises(RuntimeError, match="out of order"):
            ahead(*PAIRS[1])
    finally:
        ahead.close()


def test_an_error_while_drawing_ahead_reaches_the_step_that_needs_the_noise() -> None:
    def draw(here: float, after: float) -> Any:
        raise MemoryError("no room")

    ahead = DrawnAhead(draw, PAIRS)
    try:
        with pytest.raises(MemoryError, match="no room"):
            ahead(*PAIRS[0])
    finally:
        ahead.close()


def test_a_step_reuses_the_nodes_on_the_way_to_the_level_where_it_begins() -> None:
    class Counted(BrownianPath):
        drawn = 0

        def _draw(self, seeds: Any) -> Any:
            Counted.drawn += 1
            return super()._draw(seeds)

    alone = 0
    together = Counted(3, (4, 8, 8), 0.03, 14.6, rng="cpu")
    for here, after in PAIRS:
        together.noise(here, after)
    once, Counted.drawn = Counted.drawn, 0
    for here, after in PAIRS:
        Counted(3, (4, 8, 8), 0.03, 14.6, rng="cpu").noise(here, after)
    alone = Counted.drawn

    assert once < 0.6 * alone


def latents(value: float = 1.0) -> Any:
    found = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    found[1] *= value
    return found


def pixels(value: float | None = None) -> Any:
    found = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    if value is not None:
        found[1] = value
    return found


CASES: list[tuple[Callable[[Checks], None], Cause | None]] = [
    (lambda checks: check_latents(checks, latents(), seeds=[7, 8]), None),
    (lambda checks: check_latents(checks, latents(math.nan), seeds=[7, 8]), Cause.NOT_A_NUMBER),
    (lambda checks: check_latents(checks, latents(math.inf), seeds=[7, 8]), Cause.NOT_A_NUMBER),
    (lambda checks: refuse_noise(checks, latents(), seeds=[7, 8], steps=20), None),
    (lambda checks: refuse_noise(checks, latents(20.0), seeds=[7, 8], steps=20), Cause.NO_STRUCTURE),
    (lambda checks: refuse_noise(checks, latents(20.0), seeds=[7, 8], steps=4), None),
    (lambda checks: check_pixels(checks, pixels(), seeds=[7, 8]), None),
    (lambda checks: check_pixels(checks, pixels(math.nan), seeds=[7, 8]), Cause.NOT_A_NUMBER),
    (lambda checks: check_pixels(checks, pixels(0.0), seeds=[7, 8]), Cause.BLACK_PICTURE),
    (lambda checks: check_pixels(checks, pixels(0.5), seeds=[7, 8]), Cause.FLAT_PICTURE),
]


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(("check", "cause"), CASES)
def test_a_check_that_waits_says_what_one_says_at_once(
    check: Callable[[Checks], None], cause: Cause | None, waits: bool
) -> None:
    def run() -> None:
        checks = Checks(waits=waits)
        check(checks)
        if waits:
            checks.settle(CPU)

    if cause is None:
        run()
        return
    with pytest.raises(CannotRender) as caught:
        run()
    assert caught.value.code == cause
    assert caught.value.facts["seed"] == 8


def test_waiting_checks_are_read_with_the_pixels_in_the_order_in_which_they_were_made() -> None:
    checks, told = Checks(waits=True), []
    image = torch.arange(2 * 5 * 3 * 3, dtype=torch.int16).to(torch.uint8).view(2, 5, 3, 3)
    checks.add(torch.tensor([1.5, -2.0]), told.extend)
    find_noise(checks, latents(20.0), steps=20, tell=lambda place, _: told.append(place))
    assert not told

    read = checks.read_with(image)

    assert told == [1.5, -2.0, 1]
    assert read.tolist() == image.tolist()
    assert checks.read_with(image).tolist() == image.tolist(), "nothing is checked twice"
    assert told == [1.5, -2.0, 1]


def test_fresh_tensors_are_not_filled_while_an_image_is_computed() -> None:
    settings: Any = torch.utils.deterministic
    for before in (True, False):
        settings.fill_uninitialized_memory = before
        try:
            with deterministic():
                assert not settings.fill_uninitialized_memory
            assert settings.fill_uninitialized_memory is before
        finally:
            settings.fill_uninitialized_memory = True


def test_attention_on_a_card_has_fixed_kernels() -> None:
    from torch.nn.attention import SDPBackend

    before = (torch._C._get_sdp_priority_order(), torch.backends.cuda.cudnn_sdp_enabled())
    with deterministic(torch.device("cuda", 0)):
        order = torch._C._get_sdp_priority_order()
        wanted = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
        assert order[:3] == [int(each) for each in wanted]
        assert not torch.backends.cuda.cudnn_sdp_enabled()

    assert (torch._C._get_sdp_priority_order(), torch.backends.cuda.cudnn_sdp_enabled()) == before
