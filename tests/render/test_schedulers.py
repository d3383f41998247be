# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""The table of samplers says what was measured; names are read as people write them."""

import math
from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

import k_oracle

from civman.errors import UsageError
from civman.render.schedulers import NOT_OFFERED, SAMPLERS, Kind, Plan, Sampler, parse, plan
from civman.render.sigmas import NoiseLevels, Schedule, ddim_times
from civman.render.solvers import evaluations, solve

LEVELS = NoiseLevels.of_model()
STEPS = 20
SHAPE = (1, 4, 8, 8)
BY_NAME = {sampler.name: sampler for sampler in SAMPLERS}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
_generator = torch.Generator().manual_seed(0)
MIX, SHIFT = torch.randn(4, 4, generator=_generator) * 0.4, torch.randn(4, generator=_generator)
START = torch.randn(SHAPE, generator=_generator)


def clean(x: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
    """A small fixed denoiser, smooth in both arguments."""
    sigma = float(torch.as_tensor(sigma).flatten()[0])
    inner = torch.einsum("oc,bchw->bohw", MIX, x / math.sqrt(sigma**2 + 1)) + SHIFT[None, :, None, None]
    return torch.tanh(inner) * 1.2 + x / (1 + sigma**2)


def noise(here: object, after: object) -> torch.Tensor:
    """Unit noise that depends on the two levels, to a thousandth."""
    seed = round(float(here) * 1000) * 7919 + round(float(after) * 1000)  # type: ignore[arg-type]
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def ours(made: Plan) -> torch.Tensor:
    return solve(made.sampler.solver, START * made.start_scale, made.sigmas, noise, clean) * made.end_scale


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s.against.startswith("k-diffusion")], ids=lambda s: s.name)
def test_the_last_latents_equal_those_of_k_diffusion(sampler: Sampler, schedule: Schedule) -> None:
    oracle = k_oracle.sampling()
    made = plan(sampler, schedule, STEPS, LEVELS)
    function = sampler.against.split()[1].partition("(")[0]
    options: dict[str, object] = {"noise_sampler": noise} if sampler.noise is not Kind.NONE else {}
    if "heun" in sampler.against.partition("(")[2]:
        options["solver_type"] = "heun"

    theirs = getattr(oracle, function)(
        clean, START * made.start_scale, torch.tensor(made.sigmas), disable=True, **options
    )

    assert (distance(ours(made), theirs) < 1e-5) == (sampler.match == "same")


def _model_output(scaled: torch.Tensor, sigma: float) -> torch.Tensor:
    x = scaled * math.sqrt(1 + sigma**2)
    return (x - clean(x, sigma)) / sigma


def test_ddim_equals_diffusers_on_the_same_times() -> None:
    diffusers = pytest.importorskip("diffusers")
    times = ddim_times(STEPS)
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False)
    x = START
    for here, after in pairwise(times):
        scheduler.num_inference_steps = 1000 // (here - after)
        x = scheduler.step(_model_output(x, LEVELS.sigmas[here]), here, x).prev_sample

    assert distance(ours(plan(BY_NAME["DDIM"], Schedule.AUTOMATIC, STEPS, LEVELS)), x) < 1e-5


def test_plms_equals_diffusers_on_the_same_times() -> None:
    diffusers = pytest.importorskip("diffusers")
    times = ddim_times(STEPS)
    scheduler = diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    scheduler.set_timesteps(STEPS)
    x = START
    for time in [times[0], times[1], *times[1:-1]]:
        x = scheduler.step(_model_output(x, LEVELS.sigmas[time]), time, x).prev_sample

    assert distance(ours(plan(BY_NAME["PLMS"], Schedule.AUTOMATIC, STEPS, LEVELS)), x) < 1e-5


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize(
    ("name", "options"), [("UniPC", {"solver_order": 3, "solver_type": "bh1"}), ("DEIS", {"solver_order": 2})]
)
@pytest.mark.filterwarnings("ignore")  # diffusers' own: numpy of tensors, log of 0
def test_unipc_and_deis_equal_diffusers_with_our_table_put_in(
    name: str, options: dict[str, object], schedule: Schedule
) -> None:
    diffusers = pytest.importorskip("diffusers")
    made = plan(BY_NAME[name], schedule, STEPS, LEVELS)
    # their last step to a level of exactly 0 is not a number when a table is put in: end just above it instead
    sigmas = [s or LEVELS.least / 10 for s in made.sigmas]
    scheduler = getattr(diffusers, made.sampler.diffusers)(**BETAS, **options)
    scheduler.set_timesteps(STEPS)
    scheduler.sigmas = torch.tensor(sigmas)
    scheduler.timesteps = torch.tensor([LEVELS.time(s) for s in sigmas[:-1]])
    x = START * (made.start_scale / math.sqrt(1 + sigmas[0] ** 2))
    for sigma, time in zip(sigmas, scheduler.timesteps, strict=False):
        x = scheduler.step(_model_output(x, sigma), time, x).prev_sample

    mine = solve(made.sampler.solver, START * made.start_scale, sigmas, noise, clean)

    assert distance(mine, x * math.sqrt(1 + sigmas[-1] ** 2)) < 1e-5


@pytest.mark.parametrize(
    ("text", "sampler", "schedule"),
    [
        ("DPM++ 2M Karras", "DPM++ 2M", Schedule.KARRAS),
        ("DPM++ 2M SDE Karras", "DPM++ 2M SDE", Schedule.KARRAS),
        ("DPM++ 2M SDE Heun Exponential", "DPM++ 2M SDE Heun", Schedule.EXPONENTIAL),
        ("DPM++ 2M SDE SGMUniform".replace("SGMU", "SGM U"), "DPM++ 2M SDE", Schedule.SGM_UNIFORM),
        ("Euler a", "Euler a", Schedule.AUTOMATIC),
        ("euler  A", "Euler a", Schedule.AUTOMATIC),
        ("Euler Align Your Steps", "Euler", Schedule.ALIGN_YOUR_STEPS),
        ("DPM2 a Karras", "DPM2 a", Schedule.KARRAS),
        ("Euler Uniform", "Euler", Schedule.NORMAL),
        ("dpmpp_3m_sde", "DPM++ 3M SDE", Schedule.AUTOMATIC),
        ("EulerAncestralDiscreteScheduler", "Euler a", Schedule.AUTOMATIC),
        ("DPMSolverMultistep", "DPM++ 2M", Schedule.AUTOMATIC),
        ("UniPC", "UniPC", Schedule.AUTOMATIC),
    ],
)
def test_names_are_read_as_people_write_them(text: str, sampler: str, schedule: Schedule) -> None:
    found, spread = parse(text)

    assert (found.name, spread) == (sampler, schedule)


def test_a_schedule_given_apart_is_used_and_may_not_contradict() -> None:
    assert parse("DPM++ 2M", "Karras")[1] is Schedule.KARRAS
    assert parse("DPM++ 2M Karras", "karras")[1] is Schedule.KARRAS
    with pytest.raises(UsageError, match="two schedules"):
        parse("DPM++ 2M Karras", "Exponential")


@pytest.mark.parametrize(
    ("text", "nearest"), [("Eular a", "Euler a"), ("DPM+ 2M", "DPM++ 2M"), ("DPM++ 2M Karas", "Karras"),
                          ("Restart", "Heun")]
)  # fmt: skip
def test_an_unknown_name_suggests_near_ones(text: str, nearest: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)

    assert nearest in (caught.value.facts["nearest"] or [])
    assert nearest in caught.value.hint


def test_names_that_are_not_offered_are_no_names_of_the_table() -> None:
    assert not {sampler.name for sampler in SAMPLERS} & NOT_OFFERED.keys()
    assert set(NOT_OFFERED.values()) <= BY_NAME.keys()


@pytest.mark.parametrize(
    ("name", "schedule"),
    [("Euler", Schedule.NORMAL), ("DPM++ 2M", Schedule.KARRAS), ("DPM++ 2S a", Schedule.KARRAS),
     ("DPM++ 2M SDE", Schedule.EXPONENTIAL), ("DPM++ 3M SDE", Schedule.EXPONENTIAL), ("DPM2 a", Schedule.KARRAS)],
)  # fmt: skip
def test_automatic_follows_the_sampler(name: str, schedule: Schedule) -> None:
    assert plan(BY_NAME[name], Schedule.AUTOMATIC, STEPS, LEVELS).schedule is schedule


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.name)
@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 150])
def test_every_pair_takes_about_the_steps_asked_for_and_stays_finite(
    sampler: Sampler, schedule: Schedule, steps: int
) -> None:
    made = plan(sampler, schedule, steps, LEVELS)

    result = ours(made)

    assert bool(torch.isfinite(result).all())
    if sampler.own_table != "ddim" and schedule is not Schedule.DDIM:
        assert made.steps == steps
    assert len(evaluations(sampler.solver, made.sigmas)) <= 2 * made.steps


def test_dropping_the_penultimate_level_keeps_the_number_of_steps() -> None:
    with_it = plan(BY_NAME["DPM++ 2M"], Schedule.KARRAS, 21, LEVELS).sigmas
    without = plan(BY_NAME["DPM2"], Schedule.KARRAS, 20, LEVELS).sigmas

    assert without == (*with_it[:-2], 0.0)


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(UsageError):
        plan(BY_NAME["Euler"], Schedule.NORMAL, steps, LEVELS)


def test_the_tail_of_a_plan_begins_at_its_own_first_level() -> None:
    made = plan(BY_NAME["Euler"], Schedule.KARRAS, 20, LEVELS)

    tail = made.tail(5)

    assert tail.sigmas == made.sigmas[-6:]
    assert tail.start_scale == made.sigmas[-6]
