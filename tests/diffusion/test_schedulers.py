# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""The table of samplers says what was measured; names are read as people write them."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("scipy")

import closed_form
import sampler_oracles
from a1111_oracle import Stack
from sampler_oracles import MODES, NAMED, SAME, SEED, USUAL, ZERO_SNR, measured, recipe, row, table_distance

from civman.diffusion.noise_levels import NoiseLevels, Schedule
from civman.diffusion.sampler_names import NOT_OFFERED, parse
from civman.diffusion.samplers import BY_NAME, SAMPLERS, Kind, Sampler, Start, plan
from civman.diffusion.solvers import evaluations, solve
from civman.domain.recipes.recipe import SAMPLING, Recipe, Sampling
from civman.errors import UsageError

pytestmark = pytest.mark.long

LEVELS = NoiseLevels.of_model()
LINES = sampler_oracles.PAGE.read_text("utf-8").splitlines()
ROUNDED = ("LCM", "DEIS multistep")
"""With a schedule each, the other side's single precision is seen in the fifth digit; the page says so."""
UNROUNDED = 2e-4
"""As near as SDE samplers are: one unit in a level's last place is another noise; the page says where there is one."""


def _rounds_roots() -> bool:
    """Whether torch rounds square roots to the nearest number here: on some processors it does not.

    The oracles compute noise levels with torch; civman computes them without it, alike everywhere.
    """
    alphas = np.array(LEVELS.alphas, dtype=np.float32)
    return bool((torch.from_numpy(alphas).sqrt().numpy() == np.sqrt(alphas)).all())


@pytest.mark.skipif(not _rounds_roots(), reason="torch does not round square roots correctly on this processor")
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.name)
def test_the_page_says_what_is_measured_in_every_way_to_draw(sampler: Sampler) -> None:
    for schedule in Schedule:
        for kind in USUAL:
            for mode in MODES:
                found = measured(sampler.name, schedule, kind, mode)
                if found is None:
                    assert sampler.own_table
                    assert schedule is not Schedule.AUTOMATIC
                elif sampler.noise is Kind.BROWNIAN and schedule is not Schedule.AUTOMATIC:
                    assert found < UNROUNDED, (schedule, kind, mode)
                else:
                    assert found < (10 * SAME if sampler.name in ROUNDED else SAME), (schedule, kind, mode)
    for kinds in (USUAL, ZERO_SNR):
        assert row(sampler, kinds) in LINES, "write it again: python tests/diffusion/sampler_oracles.py"


def test_the_rest_of_the_page_says_what_is_measured() -> None:
    rows = {kinds: iter([line for line in LINES if line.startswith(f"| {SAMPLERS[0].name} |")][number:])
            for number, kinds in enumerate((USUAL, ZERO_SNR))}  # fmt: skip
    begins = {kinds: LINES.index(next(first)) for kinds, first in rows.items()}

    def written(sampler: Sampler, kinds: tuple[str, ...]) -> str:
        return LINES[begins[kinds] + SAMPLERS.index(sampler)]

    made = sampler_oracles.page(written).splitlines()

    assert made == LINES, "write it again: python tests/diffusion/sampler_oracles.py"


@pytest.mark.parametrize(
    ("name", "tuning"),
    [
        ("Euler", {"s_churn": 5.0, "s_tmin": 0.4, "s_tmax": 9.0, "s_noise": 1.1}), ("Heun", {"s_churn": 3.0}),
        ("DPM2", {"s_churn": 40.0, "s_noise": 0.9}), ("Euler a", {"eta": 0.4}),
        ("DPM2 a", {"eta": 0.7, "s_noise": 0.8}),
        ("DPM++ 2S a", {"eta": 0.5, "s_noise": 1.2}), ("DPM++ SDE", {"eta": 0.5, "s_noise": 1.2}),
        ("DPM++ 2M SDE", {"eta": 0.3}), ("DPM++ 2M SDE Heun", {"eta": 0.3, "s_noise": 0.9}),
        ("DPM++ 3M SDE", {"eta": 0.6}), ("DPM fast", {"eta": 0.0}), ("DPM adaptive", {"eta": 0.0}),
        ("DDIM", {"eta": 0.6}), ("DDIM CFG++", {"eta": 1.0}),
    ],
    ids=str,
)  # fmt: skip
def test_settings_of_noise_are_those_of_the_oracle(name: str, tuning: dict[str, float]) -> None:
    fields = {"s_noise": "noise_scale"} | ({"eta": "eta_ddim"} if name.startswith("DDIM") else {})
    asked = _with(recipe(name, Schedule.AUTOMATIC, "SD 1", "txt2img"), {fields.get(k, k): v for k, v in tuning.items()})

    mine = sampler_oracles.drawn(asked)
    theirs = Stack(closed_form.answer).txt2img(
        name, "Automatic", asked.steps, (4, 8, 8), SEED, closed_form.CFG, closed_form.COND, closed_form.UNCOND, **tuning
    )  # fmt: skip
    usual = sampler_oracles.drawn(recipe(name, Schedule.AUTOMATIC, "SD 1", "txt2img"))

    assert sampler_oracles.distance(mine, theirs) < SAME
    assert sampler_oracles.distance(mine, usual) > 1e-3


def _with(asked: Recipe, changes: dict[str, float]) -> Recipe:
    from dataclasses import replace

    return replace(asked, sampling=replace(asked.sampling, **changes))


def test_a_sampler_says_which_settings_it_does_not_take() -> None:
    asked = Sampling(eta=0.5, s_churn=2.0, noise_scale=1.1)

    assert BY_NAME["DPM++ 2M"].without_effect(asked).keys() == {"eta", "s_churn", "noise_scale"}
    assert BY_NAME["Euler"].without_effect(asked).keys() == {"eta"}
    assert BY_NAME["DPM++ SDE"].without_effect(asked).keys() == {"s_churn"}
    assert not BY_NAME["DPM++ 2M"].without_effect(SAMPLING)


@pytest.mark.parametrize("schedule", NAMED)
def test_the_levels_of_a_schedule_are_those_of_its_definition(schedule: Schedule) -> None:
    assert table_distance(schedule) < SAME


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
        ("DPM++ 2M SDE SGMUniform", "DPM++ 2M SDE", Schedule.SGM_UNIFORM),
        ("Euler a", "Euler a", Schedule.AUTOMATIC),
        ("euler  A", "Euler a", Schedule.AUTOMATIC),
        ("Euler Align Your Steps", "Euler", Schedule.ALIGN_YOUR_STEPS),
        ("DPM2 a Karras", "DPM2 a", Schedule.KARRAS),
        ("Euler Uniform", "Euler", Schedule.NORMAL),
        ("dpmpp_3m_sde", "DPM++ 3M SDE", Schedule.AUTOMATIC),
        ("EulerAncestralDiscreteScheduler", "Euler a", Schedule.AUTOMATIC),
        ("DPMSolverMultistep", "DPM++ 2M", Schedule.AUTOMATIC),
        ("DEISMultistepScheduler", "DEIS multistep", Schedule.AUTOMATIC),
        ("UniPC", "UniPC", Schedule.AUTOMATIC),
        ("euler_ancestral", "Euler a", Schedule.AUTOMATIC),
        ("dpmpp_2m_karras", "DPM++ 2M", Schedule.KARRAS),
        ("dpmpp_sde_gpu", "DPM++ SDE", Schedule.AUTOMATIC),
        ("dpmpp_2m_sde_heun_gpu karras", "DPM++ 2M SDE Heun", Schedule.KARRAS),
        ("euler sgm_uniform", "Euler", Schedule.SGM_UNIFORM),
        ("euler_ancestral_cfg_pp", "Euler a CFG++", Schedule.AUTOMATIC),
        ("dpmpp_2m_cfg_pp", "DPM++ 2M CFG++", Schedule.AUTOMATIC),
        ("ddim_cfgpp", "DDIM CFG++", Schedule.AUTOMATIC),
        ("dpm_2_ancestral", "DPM2 a", Schedule.AUTOMATIC),
        ("uni_pc", "UniPC", Schedule.AUTOMATIC),
        ("HeunPP2", "Heun++", Schedule.AUTOMATIC),
        ("IPNDM_V", "iPNDM_v", Schedule.AUTOMATIC),
        ("k_dpmpp_2m_ka", "DPM++ 2M", Schedule.KARRAS),
        ("dpmpp_2m_k", "DPM++ 2M", Schedule.KARRAS),
        ("DPM adaptive", "DPM adaptive", Schedule.AUTOMATIC),
        ("LMS Karras", "LMS", Schedule.KARRAS),
    ],
)
def test_names_are_read_as_people_write_them(text: str, sampler: str, schedule: Schedule) -> None:
    found, spread = parse(text)

    assert (found.name, spread) == (sampler, schedule)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.name)
@pytest.mark.parametrize("schedule", Schedule)
def test_what_civman_writes_it_reads(sampler: Sampler, schedule: Schedule) -> None:
    assert parse(sampler.name, schedule.value) == (sampler, schedule)
    assert parse(f"{sampler.name} {schedule.value}") == (sampler, schedule)


def test_a_schedule_given_apart_is_used_and_may_not_contradict() -> None:
    assert parse("DPM++ 2M", "Karras")[1] is Schedule.KARRAS
    assert parse("DPM++ 2M", "sgm_uniform")[1] is Schedule.SGM_UNIFORM
    assert parse("DPM++ 2M Karras", "karras")[1] is Schedule.KARRAS
    with pytest.raises(UsageError, match="two schedules"):
        parse("DPM++ 2M Karras", "Exponential")


@pytest.mark.parametrize(
    ("text", "nearest"), [("Eular a", "Euler a"), ("DPM+ 2M", "DPM++ 2M"), ("DPM++ 2M Karas", "Karras"),
                          ("Euler b", "Euler a"), ("sa_solver", "DPM++ 2M SDE"), ("TCDScheduler", "LCM")]
)  # fmt: skip
def test_an_unknown_name_suggests_near_ones(text: str, nearest: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)

    assert nearest in (caught.value.facts["nearest"] or [])
    assert nearest in caught.value.hint


@pytest.mark.parametrize("name", NOT_OFFERED)
def test_a_name_that_is_not_offered_is_refused_with_what_it_is(name: str) -> None:
    what, instead = NOT_OFFERED[name]
    with pytest.raises(UsageError, match="civman has no sampler") as caught:
        parse(name)

    assert what in str(caught.value)
    assert instead in BY_NAME


@pytest.mark.parametrize(
    ("name", "schedule"),
    [("Euler", Schedule.NORMAL), ("DPM++ 2M", Schedule.KARRAS), ("DPM++ 2S a", Schedule.KARRAS),
     ("DPM++ 2M SDE", Schedule.EXPONENTIAL), ("DPM++ 3M SDE", Schedule.EXPONENTIAL), ("DPM2 a", Schedule.KARRAS)],
)  # fmt: skip
def test_automatic_follows_the_sampler(name: str, schedule: Schedule) -> None:
    assert plan(BY_NAME[name], Schedule.AUTOMATIC, 20, LEVELS).schedule is schedule


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.name)
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 150])
def test_every_pair_takes_about_the_steps_asked_for_and_stays_finite(sampler: Sampler, steps: int) -> None:
    for schedule in Schedule:
        made = plan(sampler, schedule, steps, sampler.levels())
        generator = torch.Generator().manual_seed(1)

        def clean(x: torch.Tensor, sigma: float, sampler: Sampler = sampler) -> object:
            found = torch.tanh(x) / (1 + sigma)
            return (found, found) if sampler.is_cfgpp else found

        result = solve(
            sampler.solver, torch.randn(2, generator=generator) * made.start_scale, made.sigmas,
            lambda *_, g=generator: torch.randn(2, generator=g), clean, sampler.tuning(SAMPLING),
        )  # fmt: skip

        assert bool(torch.isfinite(result).all())
        enough = steps <= len(sampler.levels().known)  # LCM's models know fifty levels
        if not sampler.own_table and schedule is not Schedule.DDIM and enough:
            assert made.steps == steps
        if not sampler.is_adaptive:
            asked = evaluations(sampler.solver, made.sigmas, in_pairs=sampler.is_cfgpp)
            assert len(asked) <= (3 if sampler.name == "Heun++" else 2) * max(made.steps, 1)


def test_dropping_the_penultimate_level_keeps_the_number_of_steps() -> None:
    with_it = plan(BY_NAME["DPM++ 2M"], Schedule.KARRAS, 21, LEVELS).sigmas
    without = plan(BY_NAME["DPM2"], Schedule.KARRAS, 20, LEVELS).sigmas

    assert without == (*with_it[:-2], 0.0)


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(UsageError):
        plan(BY_NAME["Euler"], Schedule.NORMAL, steps, LEVELS)


def test_a_second_pass_that_would_need_more_steps_than_the_model_has_says_why() -> None:
    with pytest.raises(UsageError, match=r"60 steps at strength 0\.05"):
        plan(BY_NAME["Euler"], Schedule.NORMAL, 60, LEVELS, start=Start(0.05, keeps_steps=True))


def test_ddim_from_a_picture_counts_as_a1111_does() -> None:
    made = plan(BY_NAME["DDIM"], Schedule.AUTOMATIC, 8, LEVELS, start=Start(0.6))

    noise, picture = made.start_scale / made.picture_scale, LEVELS.sigmas[501]
    assert noise == pytest.approx(picture)  # the noise of the fifth time, 501
    assert [round(LEVELS.time(sigma)) for sigma in made.sigmas] == [376, 251, 126, 1]  # three updates
