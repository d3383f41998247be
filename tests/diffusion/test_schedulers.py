# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""The table of samplers says what was measured; names are read as people write them."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("scipy")

import sampler_oracles
from sampler_oracles import SAME, STEPS, measured, ours, table_distance

from civman.diffusion.noise_levels import NoiseLevels, Schedule
from civman.diffusion.sampler_names import NOT_OFFERED, parse
from civman.diffusion.samplers import SAMPLERS, Sampler, plan
from civman.diffusion.solvers import evaluations
from civman.errors import UsageError

LEVELS = NoiseLevels.of_model()
BY_NAME = {sampler.name: sampler for sampler in SAMPLERS}


@pytest.mark.filterwarnings("ignore:Should have")  # torchsde rounds its own ends
@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.name)
def test_the_last_latents_are_as_near_to_the_oracle_s_as_the_table_says(sampler: Sampler, schedule: Schedule) -> None:
    found = measured(sampler, schedule)

    if found is not None:
        assert (found < SAME) == (sampler.match == "same")


@pytest.mark.parametrize("schedule", [schedule for schedule in Schedule if schedule is not Schedule.AUTOMATIC])
def test_the_levels_of_a_schedule_are_those_of_its_definition(schedule: Schedule) -> None:
    assert table_distance(schedule) < SAME


def test_the_page_about_samplers_says_what_is_measured() -> None:
    assert sampler_oracles.PAGE.read_text("utf-8") == sampler_oracles.page(), (
        "write it again: python tests/render/sampler_oracles.py"
    )


def test_lcm_asks_only_at_times_that_such_models_know() -> None:
    levels = BY_NAME["LCM"].levels()
    made = plan(BY_NAME["LCM"], Schedule.AUTOMATIC, 4, levels)

    assert [levels.time(sigma) for sigma in made.sigmas[:-1]] == [999, 679, 339, 19]
    assert made.sigmas[3] == pytest.approx(LEVELS.sigmas[19])


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
                          ("Euler b", "Euler a"),
                          ("sa_solver", "DPM++ 2M SDE")]
)  # fmt: skip
def test_an_unknown_name_suggests_near_ones(text: str, nearest: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)

    assert nearest in (caught.value.facts["nearest"] or [])
    assert nearest in caught.value.hint


def test_names_that_are_not_offered_are_no_names_of_the_table() -> None:
    assert not {sampler.name for sampler in SAMPLERS} & NOT_OFFERED.keys()
    assert {instead for _, instead in NOT_OFFERED.values()} <= BY_NAME.keys()


@pytest.mark.parametrize(
    ("name", "schedule"),
    [("Euler", Schedule.NORMAL), ("DPM++ 2M", Schedule.KARRAS), ("DPM++ 2S a", Schedule.KARRAS),
     ("DPM++ 2M SDE", Schedule.EXPONENTIAL), ("DPM++ 3M SDE", Schedule.EXPONENTIAL), ("DPM2 a", Schedule.KARRAS)],
)  # fmt: skip
def test_automatic_follows_the_sampler(name: str, schedule: Schedule) -> None:
    assert plan(BY_NAME[name], Schedule.AUTOMATIC, STEPS, LEVELS).schedule is schedule


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.name)
@pytest.mark.filterwarnings("ignore:Should have")  # torchsde rounds its own ends
@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 150])
def test_every_pair_takes_about_the_steps_asked_for_and_stays_finite(
    sampler: Sampler, schedule: Schedule, steps: int
) -> None:
    made = plan(sampler, schedule, steps, sampler.levels())

    result = ours(made)

    assert bool(torch.isfinite(result).all())
    enough = steps <= len(sampler.levels().known)  # LCM's models know fifty levels
    if not sampler.own_table and schedule is not Schedule.DDIM and enough:
        assert made.steps == steps
    if not sampler.is_adaptive and sampler.name not in ("Heun++", "Restart"):
        assert len(evaluations(sampler.solver, made.sigmas, in_pairs=sampler.is_cfgpp)) <= 2 * made.steps


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
