# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""The engine in half precision on a card that computes nothing.

A tensor that stays on the host, or a constant of another dtype, fails here although no machine has a card. Every place
where host and card wait for each other is listed in `ALLOWED`, and that list may only become shorter.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import fake_card
from test_run import PLAIN

from civman.diffusion.denoiser import Conditioning
from civman.diffusion.loader import LoadedModel, load
from civman.diffusion.run_recipe import Inputs, render
from civman.diffusion.text_conditioning import encode
from civman.diffusion.textual_inversions import Embedding
from civman.domain.digests import Sha256
from civman.domain.events import Event, OnEvent, ignore
from civman.domain.recipes.recipe import Hires, Recipe, StartImage
from civman.prompts.emphasis import parse
from civman.prompts.tokenizer import clip_tokenizer

HALF = replace(PLAIN, precision="float16", steps=2)
ALLOWED = {
    ("_local_scalar_dense", "vae_codec._finite"): 1,  # a start image that overflows is encoded again, before all else
    ("cuda to cpu", "guard.Checks.read_with"): 1,  # the pixels, with the numbers of all checks
}
"""Where host and card wait for each other, and how often at most in one picture of two passes with two steps each."""
QUEUED = {
    "text_conditioning.encode": 8,  # token ids and weights, for two prompts and up to two encoders
    "recipe_job.RecipeJob._start_noise": 2,
    "denoiser.Denoiser._sent_times": 2,
    "denoiser.Denoiser._size_conditioning": 2,
    "step_noise.step_noise.<locals>.<lambda>": 2,
    "recipe_job.RecipeJob._encoded": 1,
    "recipe_job.RecipeJob._first_x": 1,
}
"""What is copied to the card while both go on, and how often at most."""

PICTURE = np.zeros((64, 64, 3), np.uint8)
START = StartImage(Sha256("1" * 64), 0.5)
CASES: dict[str, tuple[Recipe, Inputs]] = {
    "txt2img": (HALF, Inputs()),
    "ancestral": (replace(HALF, sampler="Euler a"), Inputs()),
    "SDE": (replace(HALF, sampler="DPM++ 2M SDE", schedule="Karras"), Inputs()),
    "img2img": (replace(HALF, start=START), Inputs(PICTURE)),
    "inpainting": (
        replace(HALF, start=replace(START, mask_sha256=Sha256("2" * 64))),
        Inputs(PICTURE, np.full((64, 64), 255, np.uint8)),
    ),
    "second pass": (replace(HALF, hires=Hires(128, 128, 2, 0.5, "latent")), Inputs()),
    "guidance rescaled": (replace(HALF, guidance_rescale=0.7), Inputs()),
}


LONG = "a (red:1.3) fox, " + "grass, " * 80


def conditioning(model: LoadedModel, prompt: str = LONG, embeddings: Sequence[Embedding] = ()) -> Conditioning:
    """A prompt with emphasis and a negative prompt, encoded on the fake card."""
    encoders = [model.components[name] for name in ("text_encoder", "text_encoder_2") if name in model.components]
    tokenizers = [clip_tokenizer().padded_with(0) for _ in encoders]
    words = parse(prompt), parse("blurry")
    (cond, pooled), (uncond, uncond_pooled) = (
        encode(encoders, tokenizers, each, 2, tuple(embeddings), is_negative=is_negative)
        for each, is_negative in zip(words, (False, True), strict=True)
    )
    return Conditioning(cond, uncond, pooled, uncond_pooled)


def drawn_on_a_fake_card(
    model: LoadedModel,
    recipe: Recipe,
    inputs: Inputs,
    change: Callable[[LoadedModel], None] = lambda _: None,
    on_event: OnEvent = ignore,
) -> dict[tuple[str, str], int]:
    """Draw, and return the crossings."""
    with fake_card.fake_card() as card:
        for part in model.components.values():
            card.put(part)
        model.device = fake_card.CARD
        change(model)
        (made,) = render(recipe, model, conditioning(model), inputs=inputs, on_event=on_event)
    assert made.pixels.shape[2] == 3
    return dict(card.crossings)


@pytest.fixture
def model(tiny_files: dict[str, Path], request: pytest.FixtureRequest) -> LoadedModel:
    return load(tiny_files[getattr(request, "param", "sd1")], dtype=torch.float16)


def check(model: LoadedModel, case: str) -> None:
    recipe, inputs = CASES[case]
    passes = 1 if recipe.hires is None else 2

    steps: list[Event] = []

    seen = drawn_on_a_fake_card(model, recipe, inputs, on_event=steps.append)

    allowed = ALLOWED | {("queued cpu to cuda", where): count for where, count in QUEUED.items()}
    more = {where: count for where, count in seen.items() if count > allowed.get(where, 0)}
    assert not more
    assert seen["cuda to cpu", "guard.Checks.read_with"] == 1
    assert seen["queued cpu to cuda", "denoiser.Denoiser._sent_times"] == passes
    assert len(steps) == 2 * passes


def test_nothing_is_on_the_wrong_side(model: LoadedModel) -> None:
    check(model, "SDE")


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("model", ["sd1", "sdxl"], indirect=True)
def test_nothing_is_on_the_wrong_side_in_any_way_to_draw(model: LoadedModel, case: str) -> None:
    check(model, case)


class Slip(torch.nn.Module):
    """A UNet with a mistake in front of it."""

    def __init__(self, unet: Any, mistake: Callable[[Any], Any]) -> None:
        super().__init__()
        self.unet, self.mistake = unet, mistake

    @property
    def config(self) -> Any:
        return self.unet.config

    def forward(self, latents: Any, *args: Any, **kwargs: Any) -> Any:
        return self.unet(self.mistake(latents), *args, **kwargs)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        pytest.param(lambda x: x + torch.zeros(1, 4, 1, 1, dtype=x.dtype), "cpu", id="a tensor on the host"),
        pytest.param(lambda x: x + torch.zeros(1, 4, 1, 1, device=x.device), "type", id="a float32 constant"),
    ],
)
def test_a_slip_is_caught(model: LoadedModel, mistake: Callable[[Any], Any], words: str) -> None:
    def plant(model: LoadedModel) -> None:
        model.components["unet"] = Slip(model.components["unet"], mistake)

    with pytest.raises(RuntimeError, match=words):
        drawn_on_a_fake_card(model, HALF, Inputs(), plant)


def test_a_read_in_the_loop_is_seen(model: LoadedModel) -> None:
    def plant(model: LoadedModel) -> None:
        model.components["unet"] = Slip(model.components["unet"], lambda x: x * float(x.mean()))

    seen = drawn_on_a_fake_card(model, HALF, Inputs(), plant)

    assert seen["_local_scalar_dense", "unet_calls.UnetCall.answer"] == 4  # two steps, two prompts of unequal length
