# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Sampling by ComfyUI's rules, against ComfyUI's formulas around k-diffusion's own functions."""

import json
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("scipy")

import closed_form
import comfyui_oracle

from civman.diffusion import sampler_names, samplers
from civman.diffusion.changing_prompts import CombinedConditioning
from civman.diffusion.denoiser import Conditioning, Encoded, Prompts
from civman.diffusion.noise import PhiloxDraws, PictureNoise
from civman.diffusion.run_recipe import render
from civman.domain.digests import Sha256
from civman.domain.recipes.recipe import Hires, Recipe, Sampling
from civman.errors import UsageError

COMFYUI = Sampling(program="comfyui")
PLAIN = Recipe(
    checkpoint=Sha256("0" * 64), prompt="", negative_prompt="", sampler="Euler", schedule="Normal", steps=12,
    guidance_scale=3.0, width=64, height=48, seed=5, clip_skip=1, prediction="epsilon", is_zero_snr=False,
    precision="float32", sampling=COMFYUI, step_rng="cpu", eta_seed_delta=1,
)  # fmt: skip
SHAPE = (1, 4, 6, 8)


def mine(recipe: Recipe, prompt: Prompts | None = None, *, xl: bool = False) -> Any:
    model = closed_form.model(xl=xl)
    render(recipe, model, prompt or closed_form.prompt())
    return model.vae.decoded


def theirs(recipe: Recipe, sigmas: Any, *, shape: tuple[int, ...] = SHAPE, latents: Any = None, seed: int | None = None,
           sampler: str = "", cfg: float | None = None, conds: Any = None) -> Any:  # fmt: skip
    seed = recipe.seed if seed is None else seed
    generator = torch.Generator("cpu").manual_seed(seed + recipe.eta_seed_delta)
    return comfyui_oracle.sample(
        closed_form.answer, comfyui_oracle.K_NAMES[sampler or recipe.sampler], sigmas, seed,
        cfg=recipe.guidance_scale if cfg is None else cfg, conds=conds or [closed_form.COND], uncond=closed_form.UNCOND,
        shape=shape, latents=latents, phi=recipe.guidance_rescale, generator=generator,
    )  # fmt: skip


NEXT_NOISE = 2e-4
"""How far SDE samplers may be apart: where the oracle's exponential differs in its last place, as on some processors,
the Brownian path is asked at a level that rounds to another sixth digit, which is another noise."""


def close(a: Any, b: Any, within: float = 1e-5) -> bool:
    return float((a - b).norm() / b.norm()) < within


LEVELS = comfyui_oracle.Discrete()


@pytest.mark.parametrize("schedule", comfyui_oracle.SCHEDULES)
@pytest.mark.parametrize("steps", [2, 7, 20, 33, 150])
def test_noise_levels_are_those_of_comfyui(schedule: str, steps: int) -> None:
    recipe = replace(PLAIN, schedule=schedule)
    sampler, named, levels = sampler_names.of_recipe(recipe)

    made = samplers.plan(sampler, named, steps, levels).sigmas

    wanted = LEVELS.table(comfyui_oracle.SCHEDULES[schedule], steps)
    assert len(made) == len(wanted)
    assert torch.allclose(torch.tensor(made), wanted, rtol=3e-7, atol=0)


def test_the_model_is_evaluated_at_whole_timesteps() -> None:
    levels = sampler_names.of_recipe(PLAIN)[2]
    sigmas = torch.rand(500, generator=torch.Generator().manual_seed(1)) ** 3 * 15 + 0.02

    assert [levels.time(float(sigma)) for sigma in sigmas] == [int(LEVELS.time(sigma)) for sigma in sigmas]


@pytest.mark.parametrize("xl", [False, True], ids=["sd1", "sdxl"])
@pytest.mark.parametrize("sampler", comfyui_oracle.K_NAMES)
@pytest.mark.parametrize("schedule", ["Normal", "Karras", "DDIM"])
def test_a_render_ends_where_comfyui_does(sampler: str, schedule: str, xl: bool) -> None:
    recipe = replace(PLAIN, sampler=sampler, schedule=schedule)
    sigmas = LEVELS.sampled(comfyui_oracle.K_NAMES[sampler], comfyui_oracle.SCHEDULES[schedule], recipe.steps)

    assert close(mine(recipe, xl=xl), theirs(recipe, sigmas), NEXT_NOISE if sampler.endswith("SDE") else 1e-5)


@pytest.mark.parametrize(("sampler", "name"), [("DPM fast", "dpm_fast"), ("DPM adaptive", "dpm_adaptive")])
def test_dpm_fast_and_adaptive_add_no_noise_in_comfyui(sampler: str, name: str) -> None:
    from civman.planning.redraw import redraw

    value = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 1]}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 48, "batch_size": 1}},
        "4": {"class_type": "KSampler", "inputs": {
            "model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0], "seed": 5,
            "steps": 12, "cfg": 3.0, "sampler_name": name, "scheduler": "karras", "denoise": 1.0}},
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0]}},
    }  # fmt: skip
    found = redraw({"foreign": json.dumps(value)}).made
    assert found is not None
    assert found.sampler == sampler
    sigmas = LEVELS.sampled(name, "karras", 12)

    wanted = comfyui_oracle.sample(
        closed_form.answer, name, sigmas, 5, cfg=3.0, conds=[closed_form.COND], uncond=closed_form.UNCOND, shape=SHAPE
    )

    assert close(mine(replace(found, precision="float32", loras=())), wanted)


@pytest.mark.parametrize("sampler", ["Euler", "Euler a", "DPM++ 2M SDE"])
@pytest.mark.parametrize("part", ["1/3", "2/3", "3/3"])
def test_an_image_gets_its_slice_of_a_batch(sampler: str, part: str) -> None:
    recipe = replace(PLAIN, sampler=sampler, noise_slice=part)
    name = comfyui_oracle.K_NAMES[sampler]

    batch = theirs(recipe, LEVELS.sampled(name, "normal", recipe.steps), shape=(3, *SHAPE[1:]))

    assert close(mine(recipe), batch[int(part[0]) - 1][None])


@pytest.mark.parametrize("strength", [0.2, 0.55, 1.0])
@pytest.mark.parametrize(("sampler", "schedule"), [("DPM++ 2M", "Karras"), ("DPM2 a", "Normal"), ("Euler a", "Beta")])
def test_a_second_pass_has_its_own_seed_sampler_and_guidance(strength: float, sampler: str, schedule: str) -> None:
    hires = Hires(96, 72, 7, strength, "latent-bicubic", stretches=True, seed=99, guidance_scale=2.0, sampler=sampler,
                  schedule=schedule)  # fmt: skip
    recipe = replace(PLAIN, hires=hires)
    first = theirs(recipe, LEVELS.sampled("euler", "normal", recipe.steps))
    larger = torch.nn.functional.interpolate(first, size=(9, 12), mode="bicubic")
    sigmas = LEVELS.sampled(comfyui_oracle.K_NAMES[sampler], comfyui_oracle.SCHEDULES[schedule], 7, strength)

    wanted = theirs(recipe, sigmas, shape=(1, 4, 9, 12), latents=larger, seed=99, sampler=sampler, cfg=2.0)

    assert close(mine(recipe), wanted)


def test_given_noise_levels_replace_the_schedule() -> None:
    given = (14.7, 9.0, 4.25, 1.5, 0.3, 0.0)
    recipe = replace(PLAIN, steps=5, sampling=replace(COMFYUI, sigmas=given))

    assert close(mine(recipe), theirs(recipe, torch.tensor(given)))
    in_the_middle = replace(PLAIN, steps=4, sampling=replace(COMFYUI, sigmas=given[1:]))
    assert close(mine(in_the_middle), theirs(in_the_middle, torch.tensor(given[1:])))
    a1111 = replace(recipe, sampling=Sampling(sigmas=given))
    assert not close(mine(a1111), mine(recipe))


@pytest.mark.parametrize("phi", [0.3, 0.7, 1.0])
def test_guidance_is_rescaled_by_the_velocity(phi: float) -> None:
    recipe = replace(PLAIN, guidance_rescale=phi, rescales_velocity=True)

    assert close(mine(recipe), theirs(recipe, LEVELS.sampled("euler", "normal", recipe.steps)))
    assert not close(mine(recipe), mine(replace(recipe, rescales_velocity=False)))


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_combined_prompts_give_the_mean_of_their_predictions(cfg: float) -> None:
    texts = [closed_form.COND, torch.randn(1, 77, closed_form.WIDTH), torch.randn(1, 154, closed_form.WIDTH)]
    recipe = replace(PLAIN, guidance_scale=cfg)
    prompt = CombinedConditioning(tuple(Encoded(text) for text in texts), Encoded(closed_form.UNCOND))

    wanted = theirs(recipe, LEVELS.sampled("euler", "normal", recipe.steps), conds=texts)

    assert close(mine(recipe, prompt), wanted)


def test_sdxl_is_told_the_stated_sizes_in_both_passes() -> None:
    seen: list[list[float]] = []

    class Unet(closed_form.Unet):
        def forward(self, x: Any, time: Any, *, encoder_hidden_states: Any, **more: Any) -> Any:
            seen.extend(more["added_cond_kwargs"]["time_ids"].tolist())
            return super().forward(x, time, encoder_hidden_states=encoder_hidden_states)

    pooled = torch.zeros(1, 8)
    prompt = Conditioning(closed_form.COND, closed_form.UNCOND, pooled, pooled)
    for told, first, second in (
        ("", [48, 64, 0, 0, 48, 64], [72, 96, 0, 0, 72, 96]),
        ("4096x2048+8+16,1024x832", [2048, 4096, 16, 8, 832, 1024], [2048, 4096, 16, 8, 832, 1024]),
    ):  # fmt: skip
        seen.clear()
        model = closed_form.model(xl=True)
        model.components["unet"] = Unet()
        hires = Hires(96, 72, 2, 0.5, "latent", stretches=True)
        render(replace(PLAIN, steps=2, told_sizes=told, hires=hires), model, prompt)

        assert seen[0] == first
        assert seen[-1] == second
    with pytest.raises(UsageError, match="not SDXL size conditioning"):
        replace(PLAIN, told_sizes="1024")


def test_the_noise_of_steps_may_come_from_a_graphics_card() -> None:
    noise = PictureNoise(5, rng="cpu", step_rng="nv:256")
    first = noise.start((4, 16, 16))

    assert torch.equal(first, torch.randn(4, 16, 16, generator=torch.Generator("cpu").manual_seed(5)))
    assert torch.equal(noise.next((4, 16, 16)), PhiloxDraws(5, 256).randn((4, 16, 16)))


@pytest.mark.parametrize("name", ["DDIM", "UniPC", "PLMS"])
def test_samplers_that_comfyui_computes_in_another_way_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="ComfyUI's sampling rules"):
        sampler_names.of_recipe(replace(PLAIN, sampler=name, schedule="Automatic"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"noise_slice": "0/2"}, "slice"), ({"noise_slice": "3/2"}, "slice"), ({"noise_slice": "1"}, "slice"),
        ({"noise_slice": "1/2", "count": 2}, "exactly one image"), ({"step_rng": "gpu"}, "rng"),
        ({"sampling": Sampling(program="forge")}, "sampling rules"),
        ({"sampling": Sampling(sigmas=(1.0, 2.0))}, "noise levels"),
        ({"sampling": replace(COMFYUI, half_levels=True)}, "half precision"),
        ({"rescales_velocity": True}, "CFG rescale"),
        ({"hires": Hires(64, 48, 2, 0.5, "latent", seed=-1)}, "seed of the second pass"),
        ({"hires": Hires(64, 48, 2, 0.5, "latent", resize="area")}, "upscaler model"),
        ({"emphasis": "comfyui", "prompt_rules": "a1111-1.6"}, "ComfyUI's syntax"),
    ],
    ids=str,
)  # fmt: skip
def test_values_that_cannot_be_rendered_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        replace(PLAIN, **change)
