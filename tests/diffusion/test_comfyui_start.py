# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Input images and masks by ComfyUI's rules: its nodes and its sampling written a second time."""

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import closed_form
import comfyui_oracle
from PIL import Image

from civman.diffusion import comfyui_start
from civman.diffusion.run_recipe import Inputs, render
from civman.domain.digests import Sha256
from civman.domain.recipes.recipe import Recipe, Sampling, StartImage
from civman.errors import UsageError
from civman.planning.input_pictures import read_picture

A, B = Sha256("a" * 64), Sha256("b" * 64)
PLAIN = Recipe(
    checkpoint=Sha256("0" * 64), prompt="", negative_prompt="", sampler="Euler", schedule="Normal", steps=9,
    guidance_scale=3.0, width=64, height=48, seed=5, clip_skip=1, prediction="epsilon", is_zero_snr=False,
    precision="float32", sampling=Sampling(program="comfyui"), step_rng="cpu", eta_seed_delta=1,
    start=StartImage(A, 0.6, None, 0, "comfyui crop"),
)  # fmt: skip
LEVELS = comfyui_oracle.Discrete()


def arrays(size: tuple[int, int], seed: int) -> tuple[Any, Any]:
    numbers = np.random.default_rng(seed)
    image = numbers.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    mask = np.repeat(np.repeat(numbers.integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1)), 8, 0), 8, 1)
    return image, mask[: size[1], : size[0]].astype(np.uint8)


def encoded(image: Any, mask: Any, size: tuple[int, int], grow: int | None) -> tuple[Any, Any]:
    """Pixels for the VAE in 0 … 1 (H, W, 3) and the mask of the latents, by the formulas of VAEEncode(ForInpaint)."""
    pixels, high, wide = image.astype(np.float32) / 255, image.shape[0] // 8 * 8, image.shape[1] // 8 * 8
    down, right = image.shape[0] % 8 // 2, image.shape[1] % 8 // 2
    pixels = pixels[down : down + high, right : right + wide]
    shades = torch.from_numpy(mask.astype(np.float32) / 255)
    if grow is not None:
        shades = shades[down : down + high, right : right + wide]
        white = shades.round()
        pixels = np.where(white.numpy()[..., None] > 0, np.float32(0.5), pixels)
        wider = torch.zeros_like(white)
        before = math.ceil((grow - 1) / 2)  # a square of `grow` pixels around each place, more of it before it
        for y in range(high):
            for x in range(wide):
                square = white[
                    max(0, y - before) : max(0, y - before + grow), max(0, x - before) : max(0, x - before + grow)
                ]
                wider[y, x] = 1 if square.sum() > 0 else 0
        shades = wider if grow else shades.round()
    small = torch.nn.functional.interpolate(shades[None, None], size=(size[1] // 8, size[0] // 8), mode="bilinear")
    return pixels, small


@pytest.mark.parametrize("grow", [None, 0, 1, 6, 9])
def test_image_and_mask_are_prepared_by_the_nodes_formulas(grow: int | None) -> None:
    pick = random.Random(str(grow))
    for seed in range(3):
        whole = pick.randrange(24, 45), pick.randrange(24, 45)
        size = whole[0] // 8 * 8, whole[1] // 8 * 8
        image, mask = arrays(whole, seed)
        start = StartImage(A, 0.5, B, 0, "comfyui crop", grow_mask=grow)

        found = comfyui_start.prepare(start, size, image, mask)

        pixels, shades = encoded(image, mask, size, grow)
        assert np.allclose((found.image[0].permute(1, 2, 0) / 2 + 0.5).numpy(), pixels, atol=1e-6)
        assert found.mask is not None
        assert torch.allclose(found.mask, shades, atol=1e-6)


@pytest.mark.parametrize("way", ["nearest-exact", "bilinear", "bicubic", "area"])
def test_an_image_is_resized_by_torch_s_filters(way: str) -> None:
    image, _ = arrays((50, 40), 3)

    found = comfyui_start.prepare(StartImage(A, 0.5, resize_mode=f"comfyui {way}"), (64, 48), image, None)

    plain = torch.from_numpy(image / np.float32(255)).movedim(-1, 0)[None].float()
    wanted = torch.nn.functional.interpolate(plain, size=(48, 64), mode=way)
    assert torch.allclose(found.image / 2 + 0.5, wanted, atol=1e-6)


@pytest.mark.parametrize("masked", ["", "set", "inpaint"])
@pytest.mark.parametrize(("sampler", "strength"), [("Euler", 0.6), ("Euler a", 1.0), ("DPM++ 2M", 0.3), ("Heun", 0.6)])
def test_a_render_ends_where_comfyui_does(masked: str, sampler: str, strength: float) -> None:
    image, mask = arrays((67, 53), 4)
    size, grow = (64, 48), 6 if masked == "inpaint" else None
    start = StartImage(A, strength, B if masked else None, 0, "comfyui crop", grow_mask=grow)
    model, recipe = closed_form.model(), replace(PLAIN, sampler=sampler, start=start)
    name = comfyui_oracle.K_NAMES[sampler]
    pixels, small = encoded(image, mask if masked else np.full_like(mask, 0), size, grow)
    given = torch.from_numpy(pixels).movedim(-1, 0)[None] * 2 - 1
    latents = model.vae.encode(given).latent_dist.mode()
    sigmas = LEVELS.sampled(name, "normal", recipe.steps, strength)

    render(recipe, model, closed_form.prompt(), inputs=Inputs(image, mask if masked else None))

    wanted = comfyui_oracle.sample(
        closed_form.answer, name, sigmas, recipe.seed, cfg=3.0, conds=[closed_form.COND], uncond=closed_form.UNCOND,
        shape=(1, 4, 6, 8), latents=latents, mask=small if masked else None,
        generator=torch.Generator("cpu").manual_seed(recipe.seed + 1),
    )  # fmt: skip
    assert float((model.vae.decoded - wanted).norm() / wanted.norm()) < 1e-5


def test_files_are_read_as_the_nodes_read_them(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    Image.fromarray(values, "RGBA").save(tmp_path / "a.png")

    for place, channel in enumerate(("red", "green", "blue")):
        assert np.array_equal(
            read_picture(tmp_path / "a.png", is_mask=True, channel=channel).pixels, values[..., place]
        )
    assert np.array_equal(read_picture(tmp_path / "a.png", is_mask=True, channel="alpha").pixels, 255 - values[..., 3])
    assert np.array_equal(read_picture(tmp_path / "a.png", channel="rgb").pixels, values[..., :3])


@pytest.mark.parametrize("change", [
    {"sampling": Sampling()}, {"start": replace(PLAIN.start, mask_blur=4)},
    {"start": replace(PLAIN.start, grow_mask=6)},
    {"start": replace(PLAIN.start, mask_sha256=B), "sampler": "Euler CFG++"},
    {"start": replace(PLAIN.start, mask_sha256=B, grow_mask=65)},
    {"start": replace(PLAIN.start, mask_sha256=B, mask_channel="hue")},
    {"start": replace(PLAIN.start, resize_mode="just resize", mask_sha256=B, grow_mask=6)},
], ids=str)  # fmt: skip
def test_what_comfyui_does_not_have_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="cannot be rendered"):
        replace(PLAIN, **change)
