# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""From recipe to pictures, on tiny models: what must be equal is, what must differ does, and no picture is refused."""

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")


from civman.diffusion.denoiser import Conditioning
from civman.diffusion.diffusers_pipeline import pipeline_of
from civman.diffusion.loader import LoadedModel, load
from civman.diffusion.run_recipe import Inputs, render
from civman.diffusion.samplers import SAMPLERS
from civman.domain.digests import Sha256
from civman.domain.events import Step
from civman.domain.recipes.recipe import Hires, Recipe, StartImage
from civman.errors import CannotRender, UsageError

NO_FILE = Sha256("0" * 64)
PLAIN = Recipe(
    checkpoint=NO_FILE,
    prompt="",
    negative_prompt="",
    sampler="Euler",
    schedule="Automatic",
    steps=3,
    guidance_scale=4.0,
    width=64,
    height=64,
    seed=7,
    clip_skip=1,
    prediction="epsilon",
    is_zero_snr=False,
    precision="float32",
)
Models = Callable[..., LoadedModel]


@pytest.fixture(scope="module")
def models(tiny_files: dict[str, Path]) -> Models:
    kept: dict[tuple[str, bool], LoadedModel] = {}

    def get(kind: str, *, for_diffusers: bool = False) -> LoadedModel:
        key = (kind, for_diffusers)
        if key not in kept:
            kept[key] = load(tiny_files[kind], dtype=torch.float32, for_diffusers=for_diffusers)
        return kept[key]

    return get


def prompt(model: LoadedModel, *, chunks: int = 1, negative_chunks: int = 1, seed: int = 1) -> Conditioning:
    """Random contexts of the model's width."""
    generator = torch.Generator().manual_seed(seed)
    width = model.configs["unet"]["cross_attention_dim"]
    pooled = [torch.randn(1, 32, generator=generator) for _ in range(2)] if model.family.is_xl else [None, None]
    return Conditioning(
        cond=torch.randn(1, 77 * chunks, width, generator=generator),
        uncond=torch.randn(1, 77 * negative_chunks, width, generator=generator),
        pooled=pooled[0],
        uncond_pooled=pooled[1],
    )


def picture(seed: int = 1, size: int = 64) -> Any:
    return np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl", "sdxl-vpred", "sd1-inpaint"])
def test_every_family_makes_a_picture_from_text_without_a_network(
    models: Models, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    model = models(kind)
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    recipe = replace(PLAIN, prediction=model.prediction, is_zero_snr=model.is_zero_snr)

    (made,) = render(recipe, model, prompt(model))

    assert made.pixels.shape == (64, 64, 3)
    assert made.pixels.dtype == np.uint8
    assert made.seed == 7
    assert made.to_image().size == (64, 64)


@pytest.mark.filterwarnings("ignore:__array__")  # diffusers' schedulers make numpy of tensors
def test_euler_equals_diffusers_own_pipeline(models: Models) -> None:
    """The same components, prompt embeddings and start noise through diffusers' loop."""
    model = models("sd1")
    given = prompt(model)
    pipeline = pipeline_of(models("sd1", for_diffusers=True))
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    pipeline.scheduler.set_timesteps(3)
    # diffusers starts from noise·√(σ²+1), A1111 and civman from noise·σ
    sigma = float(pipeline.scheduler.sigmas[0])
    theirs = pipeline(
        prompt_embeds=given.cond,
        negative_prompt_embeds=given.uncond,
        num_inference_steps=3,
        guidance_scale=4.0,
        height=64,
        width=64,
        latents=noise * (sigma / float(pipeline.scheduler.init_noise_sigma)),
        output_type="np",
    ).images[0]

    (ours,) = render(PLAIN, model, given)

    assert np.abs(ours.pixels / 255 - theirs).max() < 0.5 / 255 + 1e-4


@pytest.mark.filterwarnings("ignore:__array__")
def test_sdxl_equals_diffusers_own_pipeline(models: Models) -> None:
    model = models("sdxl")
    given = prompt(model)
    pipeline = pipeline_of(models("sdxl", for_diffusers=True))
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    pipeline.scheduler.set_timesteps(3)
    sigma = float(pipeline.scheduler.sigmas[0])
    theirs = pipeline(
        prompt_embeds=given.cond,
        negative_prompt_embeds=given.uncond,
        pooled_prompt_embeds=given.pooled,
        negative_pooled_prompt_embeds=given.uncond_pooled,
        num_inference_steps=3,
        guidance_scale=4.0,
        height=64,
        width=64,
        latents=noise * (sigma / float(pipeline.scheduler.init_noise_sigma)),
        output_type="np",
    ).images[0]

    (ours,) = render(PLAIN, model, given)

    assert np.abs(ours.pixels / 255 - theirs).max() < 0.5 / 255 + 1e-4


@pytest.mark.parametrize(
    "sampler",
    [pytest.param(each, id=each.name, marks=[pytest.mark.long] if each.is_adaptive else []) for each in SAMPLERS],
)
def test_every_sampler_repeats_itself_and_no_two_of_a_batch_are_alike(models: Models, sampler: Any) -> None:
    model = models("sd1")
    recipe = replace(PLAIN, sampler=sampler.name, count=2, batch_size=2)

    first, again = render(recipe, model, prompt(model)), render(recipe, model, prompt(model))

    assert [one.sha256 for one in first] == [one.sha256 for one in again]
    assert first[0].sha256 != first[1].sha256


@pytest.mark.parametrize("name", ["Euler a", "DPM++ SDE", "LCM", "DPM++ 2M"])
@pytest.mark.parametrize("rng", ["cpu", "nv"])
def test_a_picture_of_a_batch_is_the_one_its_seed_gives_alone(models: Models, name: str, rng: str) -> None:
    model = models("sd1")
    batch = render(replace(PLAIN, sampler=name, rng=rng, count=3, batch_size=3), model, prompt(model))

    for n, together in enumerate(batch):
        (alone,) = render(replace(PLAIN, sampler=name, rng=rng, seed=7 + n), model, prompt(model))
        assert np.abs(alone.pixels.astype(int) - together.pixels.astype(int)).max() <= 1
        assert alone.seed == together.seed


def test_counting_in_batches_of_one_gives_the_same_bytes_as_one_by_one(models: Models) -> None:
    model = models("sd1")

    counted = render(replace(PLAIN, count=2), model, prompt(model))
    singly = [render(replace(PLAIN, seed=seed), model, prompt(model))[0] for seed in (7, 8)]

    assert [one.sha256 for one in counted] == [one.sha256 for one in singly]


@pytest.mark.parametrize(
    "change",
    [{"seed": 8}, {"guidance_scale": 5.0}, {"sampler": "Heun"}, {"schedule": "Karras"}, {"rng": "nv"}, {"steps": 4},
     {"guidance_rescale": 0.7}, {"prediction": "v_prediction", "is_zero_snr": True}],
    ids=str,
)  # fmt: skip
def test_what_the_recipe_says_is_in_the_picture(models: Models, change: dict[str, Any]) -> None:
    model = models("sd1")
    (base,) = render(PLAIN, model, prompt(model))
    if "prediction" in change:
        model = replace_prediction(model, change["prediction"])

    (changed,) = render(replace(PLAIN, **change), model, prompt(model))

    assert changed.sha256 != base.sha256


def replace_prediction(model: LoadedModel, prediction: str) -> LoadedModel:
    return replace(model, prediction=prediction)


def test_guidance_of_one_asks_the_unet_once_a_step(models: Models) -> None:
    model = models("sd1")
    given = prompt(model, negative_chunks=2)
    asked: list[int] = []
    hook = model.unet.register_forward_pre_hook(lambda *_: asked.append(1))
    try:
        with_it = render(replace(PLAIN, guidance_scale=1.0), model, given)
        calls = len(asked)
        without = render(replace(PLAIN, guidance_scale=1.0), model, replace(given, uncond=None))
    finally:
        hook.remove()

    assert calls == 3
    assert with_it[0].sha256 == without[0].sha256


def test_prompts_of_unequal_length_are_not_padded(models: Models) -> None:
    model = models("sd1")
    long = prompt(model, chunks=2)
    # repeating both to a common length is the same thing to attention as leaving them as they are
    assert long.uncond is not None
    repeated = replace(long, uncond=torch.cat([long.uncond, long.uncond], dim=1))

    (unequal,), (equal,) = render(PLAIN, model, long), render(PLAIN, model, repeated)

    assert np.abs(unequal.pixels.astype(int) - equal.pixels.astype(int)).max() <= 1


def test_steps_are_told_as_they_happen(models: Models) -> None:
    model = models("sd1")
    heard: list[Any] = []

    render(replace(PLAIN, sampler="Heun", count=2), model, prompt(model), on_event=heard.append)

    assert [(event.step, event.steps, event.first) for event in heard] == [
        (1, 3, 1), (2, 3, 1), (3, 3, 1), (1, 3, 2), (2, 3, 2), (3, 3, 2),
    ]  # fmt: skip
    assert all(isinstance(event, Step) and event.count == 2 for event in heard)


def test_starting_from_a_picture_keeps_more_of_it_the_less_the_strength(models: Models) -> None:
    model = models("sd1")
    image = picture()
    decoded = _through_the_vae(model, image)

    far = []
    for strength in (0.01, 0.1, 1.0):
        recipe = replace(PLAIN, schedule="Karras", steps=20, start=StartImage(NO_FILE, strength))
        (made,) = render(recipe, model, prompt(model), inputs=Inputs(image))
        far.append(float(np.abs(made.pixels.astype(int) - decoded).mean()))

    assert far[0] < far[1] < far[2]


def _through_the_vae(model: LoadedModel, image: Any) -> Any:
    from civman.diffusion.pixels import to_tensor
    from civman.diffusion.vae_codec import decode, encode

    pixels = decode(model, encode(model, to_tensor(image)).latents).pixels[0]
    return (pixels * 255).round().permute(1, 2, 0).numpy().astype(int)


@pytest.mark.parametrize("kind", ["sd1", "sd1-inpaint", "sdxl"])
def test_inpainting_leaves_what_the_mask_keeps(models: Models, kind: str) -> None:
    model = models(kind)
    image, mask = picture(), np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    recipe = replace(PLAIN, start=StartImage(NO_FILE, 0.9, mask_sha256=NO_FILE, mask_blur=0))

    (made,) = render(recipe, model, prompt(model), inputs=Inputs(image, mask))

    assert np.array_equal(made.pixels[:, :32], image[:, :32])
    assert not np.array_equal(made.pixels[:, 32:], image[:, 32:])


def test_an_inpainting_checkpoint_sees_the_picture_around_the_hole(models: Models) -> None:
    model = models("sd1-inpaint")
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    recipe = replace(PLAIN, start=StartImage(NO_FILE, 1.0, mask_sha256=NO_FILE, mask_blur=0))

    holes = [render(recipe, model, prompt(model), inputs=Inputs(picture(seed), mask))[0].pixels[16:48, 16:48]
             for seed in (1, 2)]  # fmt: skip

    assert not np.array_equal(holes[0], holes[1])


@pytest.mark.parametrize("upscaler", ["latent", "latent-nearest-exact", "lanczos", "nearest"])
def test_the_second_pass_makes_the_larger_picture(models: Models, upscaler: str) -> None:
    model = models("sdxl")
    heard: list[Any] = []
    recipe = replace(PLAIN, hires=Hires(width=96, height=128, steps=4, strength=0.5, upscaler=upscaler))

    (made,) = render(recipe, model, prompt(model), on_event=heard.append)

    assert made.pixels.shape == (128, 96, 3)
    assert [event.step for event in heard if event.stage == "hires"] == [1, 2, 3, 4]


def test_a_refiner_works_on_a_picture_and_only_on_one(models: Models) -> None:
    model = models("refiner")

    (made,) = render(replace(PLAIN, start=StartImage(NO_FILE, 0.5)), model, prompt(model), inputs=Inputs(picture()))

    assert made.pixels.shape == (64, 64, 3)
    with pytest.raises(CannotRender, match="needs an input image"):
        render(PLAIN, model, prompt(model))


def test_a_picture_to_start_from_must_be_handed_in(models: Models) -> None:
    with pytest.raises(UsageError, match="was passed"):
        render(replace(PLAIN, start=StartImage(NO_FILE, 0.5)), models("sd1"), prompt(models("sd1")))


def test_values_that_are_no_numbers_are_no_picture(tiny_files: dict[str, Path]) -> None:
    model = load(tiny_files["sd1"], dtype=torch.float32)
    model.unet.conv_out.bias.data = torch.full((4,), torch.nan)

    with pytest.raises(CannotRender) as caught:
        render(PLAIN, model, prompt(model))

    assert (caught.value.code, caught.value.facts["seed"]) == ("not-a-number", 7)
    assert caught.value.exit_code == 8


@pytest.mark.parametrize(("bias", "code"), [(-50.0, "black-picture"), (0.1, "flat-picture")])
def test_black_and_flat_are_no_pictures(tiny_files: dict[str, Path], bias: float, code: str) -> None:
    model = load(tiny_files["sd1"], dtype=torch.float32)
    last = model.vae.decoder.conv_out
    last.weight.data, last.bias.data = torch.zeros_like(last.weight), torch.full((3,), bias)

    with pytest.raises(CannotRender) as caught:
        render(PLAIN, model, prompt(model))

    assert caught.value.code == code


def test_a_vae_that_overflows_in_half_precision_is_run_again_in_single(tiny_files: dict[str, Path]) -> None:
    model = load(tiny_files["sd1"], dtype=torch.float16)
    mine = model.vae.decoder
    # a factor that half precision cannot hold, taken back before the end
    mine.conv_in.weight.data = mine.conv_in.weight * 30000
    mine.conv_in.bias.data = mine.conv_in.bias * 30000

    (made,) = render(PLAIN, model, prompt(model))

    assert made.decoded_in == "float32"
    assert made.notes == ("the VAE overflowed in float16, so the image was decoded again in float32",)
    assert next(model.vae.parameters()).dtype is torch.float16


def test_encoding_that_overflows_in_half_precision_is_run_again_and_said_so(tiny_files: dict[str, Path]) -> None:
    model = load(tiny_files["sd1"], dtype=torch.float16)
    first = model.vae.encoder.conv_in
    first.weight.data, first.bias.data = first.weight * 30000, first.bias * 30000
    recipe = replace(PLAIN, start=StartImage(NO_FILE, 0.5), hires=Hires(96, 96, 2, 0.5, "lanczos"))

    (made,) = render(recipe, model, prompt(model), inputs=Inputs(picture()))

    assert made.notes == ("the VAE overflowed in float16, so the image was encoded again in float32",)
    assert made.decoded_in == "float16"


def test_an_answer_beyond_half_precision_is_not_taken_for_white(tiny_files: dict[str, Path]) -> None:
    model = load(tiny_files["sd1"], dtype=torch.float16)
    last = model.vae.decoder.conv_out
    last.weight.data = last.weight * 60000  # endless after the last layer: no number, though it could be cut to 1

    (made,) = render(PLAIN, model, prompt(model))

    assert made.decoded_in == "float32"


def test_rounding_down_is_never_above_rounding_to_nearest(models: Models) -> None:
    model = models("sd1")

    (nearest,) = render(PLAIN, model, prompt(model))
    (down,) = render(replace(PLAIN, rounding="down"), model, prompt(model))

    difference = nearest.pixels.astype(int) - down.pixels.astype(int)
    assert set(np.unique(difference)) == {0, 1}


def test_the_switches_for_determinism_are_put_back(models: Models) -> None:
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.allow_tf32

    render(PLAIN, models("sd1"), prompt(models("sd1")))

    assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.allow_tf32) == before


def test_the_switches_for_determinism_are_set_while_rendering(models: Models) -> None:
    seen: list[bool] = []

    render(PLAIN, models("sd1"), prompt(models("sd1")),
           on_event=lambda _: seen.append(torch.are_deterministic_algorithms_enabled()))  # fmt: skip

    assert seen == [True, True, True]
