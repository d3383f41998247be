"""A second pass with its own sampler, schedule and guidance, against A1111's stack around k-diffusion."""

from dataclasses import replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import closed_form
import sampler_oracles as oracles

from civman.diffusion.noise_levels import Schedule


@pytest.mark.parametrize("kind", ["SD 1", "SDXL"])
@pytest.mark.parametrize(
    ("first", "second", "schedule"),
    [("Euler", "DPM++ 2M", "Karras"), ("Euler a", "DPM++ 2M SDE", "Exponential"), ("DPM++ 2M", "DDIM", "Automatic")],
)
def test_a_second_pass_samples_in_its_own_way(kind: str, first: str, second: str, schedule: str) -> None:
    plain = oracles.recipe(first, Schedule.NORMAL, kind, "hires latent")
    assert plain.hires is not None
    hires = replace(plain.hires, sampler=second, schedule=schedule, guidance_scale=1.5)

    mine = oracles.drawn(replace(plain, hires=hires), **oracles.KINDS[kind])

    begun = oracles.first_pass(first, "Normal", kind, oracles.STEPS["hires latent"])
    theirs = oracles.stack(kind).img2img(
        second, schedule, 6, oracles.enlarged_latents(begun), oracles.SEED, 0.6, 1.5, closed_form.COND,
        closed_form.UNCOND, second_pass=True,
    )  # fmt: skip
    assert oracles.distance(mine, theirs) < oracles.SAME
