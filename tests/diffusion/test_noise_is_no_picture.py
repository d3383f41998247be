# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Latents that are still noise are told from latents with structure, and only where that is certain."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny_models

from civman.diffusion.guard import Checks, find_noise, refuse_noise
from civman.errors import CannotRender, Cause
from tests.running import Civman

DEMO = Path(__file__).parents[2] / "civman" / "demo" / "models" / "tiny-shapes.safetensors"


def noise(spread, side=64, seed=0):
    return torch.randn(4, side, side, generator=torch.Generator().manual_seed(seed)) * spread


def smooth(spread, side=64):
    """Latents of broad shapes: noise at an eighth of the size, enlarged."""
    small = noise(spread, side // 8)[None]
    return torch.nn.functional.interpolate(small, size=(side, side), mode="bilinear")[0]


def noise_words(latents, *, steps):
    found = []
    find_noise(Checks(waits=False), latents[None], steps=steps, tell=lambda _, words: found.append(words))
    return "".join(found)


@pytest.mark.parametrize("spread", [13, 17, 40, 4000])
def test_noise_that_sampling_left_is_recognised(spread):
    assert "noise" in noise_words(noise(spread), steps=20)


@pytest.mark.parametrize(
    ("latents", "steps"),
    [
        pytest.param(noise(1), 20, id="a finely grained picture"),
        pytest.param(noise(5.5), 20, id="an overdriven guidance"),
        pytest.param(smooth(40), 20, id="broad shapes of any strength"),
        pytest.param(noise(20), 4, id="few steps, which leave noise in some samplers"),
        pytest.param(noise(20, side=8), 20, id="too few latents to be certain"),
    ],
)
def test_what_may_be_a_picture_is_never_called_noise(latents, steps):
    assert noise_words(latents, steps=steps) == ""


def test_the_refusal_names_the_seed():
    with pytest.raises(CannotRender, match="seed 8") as caught:
        refuse_noise(Checks(waits=False), torch.stack([smooth(1), noise(20)]), seeds=[7, 8], steps=20)

    assert caught.value.code == Cause.NO_STRUCTURE


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_random_weights_are_refused_and_kept_with_force(civman: Civman, tmp_path, kind):
    file = tiny_models.write(tmp_path / "random.safetensors", kind)
    asked = ("render", file, "a red circle", "--size", "256x256", "--steps", 10, "--seed", 3, "--sampler", "Euler a",
             "--output", tmp_path / "out.png")  # fmt: skip

    refused = civman(*asked)

    assert refused.code == 8, refused
    assert "no-structure" in refused.err
    assert not (tmp_path / "out.png").exists()
    kept = civman(*asked, "--force")
    assert kept.code == 0, kept
    assert (tmp_path / "out.png").exists()


@pytest.mark.long
@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M", "LMS", "DDIM", "Heun"])
def test_a_trained_model_is_drawn_at_the_size_where_the_check_applies(civman: Civman, tmp_path, sampler):
    done = civman(
        "render", DEMO, "a red circle", "--size", "256x256", "--steps", 10, "--seed", 3, "--sampler", sampler,
        "--output", tmp_path / "out.png",
    )  # fmt: skip

    assert done.code == 0, done
