"""Settings of noise and masks are written under A1111's keys and read back."""

from dataclasses import replace

import pytest

from civman.domain.digests import Sha256
from civman.domain.recipes.recipe import Recipe, Sampling, StartImage
from civman.domain.recipes.record import Record
from civman.pictures import infotext, record_text

A = Sha256("a" * 64)
PLAIN = Recipe(
    checkpoint=A, prompt="a cat", negative_prompt="", sampler="Euler", schedule="Karras", steps=20, guidance_scale=7.0,
    width=512, height=512, seed=1, clip_skip=1, prediction="epsilon", is_zero_snr=False, precision="float32",
)  # fmt: skip


def details(recipe: Recipe) -> dict[str, str]:
    return dict(infotext.read(record_text.parameters(Record(recipe, recipe.seed, A, {}))).details)


def test_a_usual_recipe_has_none_of_them() -> None:
    assert not {"Eta", "Sigma churn", "Mask blur", "Noise multiplier", "Pad conds"} & details(PLAIN).keys()


@pytest.mark.parametrize(
    ("recipe", "written"),
    [
        (replace(PLAIN, sampling=Sampling(eta=0.5, eta_ddim=0.2, s_churn=4.0, s_tmin=0.1, s_tmax=9.0, noise_scale=1.1)),
         {"Eta": "0.5", "Eta DDIM": "0.2", "Sigma churn": "4", "Sigma tmin": "0.1", "Sigma tmax": "9",
          "Sigma noise": "1.1"}),
        (replace(PLAIN, sampling=Sampling(drop_penultimate=True, half_levels=True)),
         {"Discard penultimate sigma": "True", "Downcast alphas_cumprod": "True"}),
        (replace(PLAIN, pad_prompts=True), {"Pad conds": "True"}),
        (replace(PLAIN, start=StartImage(A, 0.6, A, 8, masked_content="latent noise", only_masked=True, padding=24)),
         {"Mask blur": "8", "Masked content": "latent noise", "Inpaint area": "Only masked",
          "Masked area padding": "24", "Denoising strength": "0.6"}),
        (replace(PLAIN, start=StartImage(A, 0.6, conditioning_weight=0.5, noise_multiplier=1.05)),
         {"Conditional mask weight": "0.5", "Noise multiplier": "1.05"}),
    ],
    ids=["noise", "levels", "padding", "mask", "start"],
)  # fmt: skip
def test_what_is_not_usual_is_written_under_a1111_s_keys(recipe: Recipe, written: dict[str, str]) -> None:
    assert written.items() <= details(recipe).items()
