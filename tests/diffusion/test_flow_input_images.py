# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Input images and masks on a tiny model of each flow-matching family.

An input image is noised by (1 − σ)·image + σ·noise, and diffusers' own pipeline continues from there. A mask keeps the
image outside: Euler's rule is written out here, with the image noised anew after each step.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny_flows
from diffusers import Flux2KleinPipeline
from diffusion import flow_pipelines
from test_flow_pictures import CFG, NEGATIVE, PROMPT, drawn, family_of, recipe_for

from civman.diffusion.families.flow_family import FlowEncoded, Instant
from civman.diffusion.flow_levels import FlowLevels, flow_table
from civman.diffusion.noise_levels import Schedule
from civman.diffusion.open_model import load
from civman.diffusion.run_recipe import Inputs
from civman.domain.digests import Sha256
from civman.domain.recipes.recipe import StartImage
from civman.prompts.emphasis import parse
from civman.rendering.encode_prompts import FlowTextEncoders

USES = ("image to image", "inpainting")
STEPS, STRENGTH = 4, 0.6
IMAGE = np.random.default_rng(2).integers(0, 256, (96, 64, 3), dtype=np.uint8)
MASK = np.zeros((96, 64), np.uint8)
MASK[16:80, 24:64] = 255


def encoded(vae: Any) -> Any:
    """The image as latents: the mean that the VAE gives, with the model's own scale, by the rules of diffusers."""
    pixels = torch.from_numpy(IMAGE.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    if hasattr(vae.config, "z_dim"):
        mean, deviation = (
            torch.tensor(values).view(1, -1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        return (vae.encode(pixels[:, :, None]).latent_dist.mode()[:, :, 0] - mean) / deviation
    latents = vae.encode(pixels).latent_dist.mode()
    if hasattr(vae, "bn"):
        squares = Flux2KleinPipeline._patchify_latents(latents)
        deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
        return (squares - vae.bn.running_mean.view(1, -1, 1, 1)) / deviation
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


def unfolded(latents: Any) -> Any:
    """Latents of Flux.2 (1, 4c, h, w) as (1, c, 2h, 2w); all others as they are."""
    return Flux2KleinPipeline._unpatchify_latents(latents) if latents.shape[1] == 128 else latents


@pytest.mark.parametrize(("name", "use"), tiny_flows.cases(USES))
def test_an_input_image_is_continued_as_diffusers_continues_it(tmp_path: Path, name: str, use: str) -> None:
    made, cfg = tiny_flows.modules(name), CFG.get(name, 3.0)
    path = tiny_flows.write(tmp_path / "tiny.safetensors", name, family_of(name), made=made)
    mask = MASK if use == "inpainting" else None
    mask_digest = None if mask is None else Sha256("2" * 64)
    start = StartImage(Sha256("1" * 64), STRENGTH, mask_digest, mask_blur=0)
    recipe = recipe_for(name, cfg=cfg, steps=STEPS, start=start)
    model = load(path)

    ours, _ = drawn(model, recipe, Inputs(IMAGE, mask))

    assert recipe.flow is not None
    # as in A1111, a strength of 0.6 makes the last int(0.6 · 4) + 1 of four steps
    sigmas = flow_table(Schedule.SIMPLE, STEPS, FlowLevels(recipe.flow.shift, recipe.flow.entries))[1:]
    kept = encoded(made["vae"])
    noise = torch.randn(kept.shape, generator=torch.Generator().manual_seed(3))
    x = (1 - sigmas[0]) * kept + sigmas[0] * noise
    if mask is None:
        expected = flow_pipelines.draw(name, made, PROMPT, NEGATIVE, sigmas, x, cfg)
    else:
        expected = inpainted(model, recipe, sigmas, (unfolded(x), unfolded(kept), unfolded(noise)))
    assert float((ours - expected).abs().max()) <= 1e-4
    assert float(expected.std()) > 0.05


def inpainted(model: Any, recipe: Any, sigmas: Any, start: tuple[Any, Any, Any]) -> Any:
    """Euler's steps, after each of which the unmasked part is the noised image again."""
    x, kept, noise = start
    area = torch.from_numpy(MASK[::8, ::8].copy())[None, None].float() / 255
    texts, cfg = FlowTextEncoders(model), recipe.guidance_scale
    sides = [(recipe.prompt, False)] + ([(recipe.negative_prompt, True)] if cfg != 1 else [])
    encodings = [FlowEncoded(*texts.encode(parse(text), recipe, (), is_negative=side)) for text, side in sides]
    with torch.no_grad():
        for now, after in pairwise(sigmas):
            at = Instant(x, (now,), (recipe.flow.guidance,))
            wanted, *others = (model.family.velocity(model.components, at, each) for each in encodings)
            for other in others:
                wanted = other + cfg * (wanted - other)
            x = x + (after - now) * wanted
            x = area * x + (1 - area) * ((1 - after) * kept + after * noise)
        return (decoded(model.vae, x)[0] / 2 + 0.5).clamp(0, 1)


def decoded(vae: Any, latents: Any) -> Any:
    if hasattr(vae.config, "z_dim"):
        mean, deviation = (
            torch.tensor(values).view(1, -1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        return vae.decode((latents * deviation + mean)[:, :, None])[0][:, :, 0]
    if hasattr(vae, "bn"):
        squares = Flux2KleinPipeline._patchify_latents(latents)
        deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
        latents = Flux2KleinPipeline._unpatchify_latents(squares * deviation + vae.bn.running_mean.view(1, -1, 1, 1))
        return vae.decode(latents)[0]
    return vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor)[0]
