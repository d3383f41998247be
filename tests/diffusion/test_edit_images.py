# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Edit models with reference images: fitted to the model, and drawn as diffusers' own pipelines do, to 1e-4."""

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_flows

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
from diffusion import flow_pipelines
from diffusion.test_flow_adapters import kohya, without_vae
from diffusion.test_flow_pictures import NEGATIVE, PROMPT, closed, drawn, family_of, recipe_for
from PIL import Image
from safetensors.torch import load_file, save_file

from civman.diffusion.edit_images import encode_edit_image
from civman.diffusion.families.flux1 import FLUX1
from civman.diffusion.families.flux2 import FLUX2_KLEIN
from civman.diffusion.flow_levels import FlowLevels, flow_table
from civman.diffusion.match_adapter import Adapter
from civman.diffusion.merge_adapters import apply
from civman.diffusion.noise_levels import Schedule
from civman.diffusion.open_model import load
from civman.domain.digests import Sha256
from civman.domain.recipes.recipe import EditImage

SIZES = [(w, h) for w in (40, 333, 512, 1000, 1024, 1999) for h in (64, 97, 512, 777, 1024, 3001)]


def photo(size: tuple[int, int], seed: int) -> Image.Image:
    """An image of coloured clouds."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def compared(
    name: str,
    path: Path,
    parts: Any,
    images: list[Image.Image],
    *,
    cfg: float,
    lora: Path | None = None,
    **changes: Any,
) -> tuple[Any, Any]:
    """Draw with civman from the file, and with diffusers' pipeline from its parts: both before rounding."""
    uses = tuple(EditImage(Sha256("1" * 64), *image.size) for image in images)
    recipe = recipe_for(name, cfg=cfg, edit_images=uses, **changes)
    model = load(path, dtype=torch.float32)
    if lora is not None:
        apply(without_vae(model), model.base_tensor, [Adapter(lora, "0" * 64, 0.5, 0.5)], sources=model.sources)
    latents = [encode_edit_image(model, np.asarray(image), image.size).latents for image in images]
    ours, _ = drawn(model, recipe, edit_images=latents)
    factor, channels = (16, 128) if name.startswith("flux2") else (8, 16)
    shape = (1, channels, recipe.height // factor, recipe.width // factor)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(recipe.seed))
    assert recipe.flow is not None
    sigmas = flow_table(Schedule.SIMPLE, recipe.steps, FlowLevels(recipe.flow.shift, recipe.flow.entries))
    return ours, flow_pipelines.draw(name, parts, PROMPT, NEGATIVE, sigmas, noise, cfg, images)


@pytest.mark.parametrize(
    ("name", "size", "shown", "cfg"),
    [
        ("flux1", (64, 96), [(64, 96)], 1.0),
        ("flux1", (96, 64), [(144, 80)], 1.0),
        ("flux1", (64, 64), [(48, 112)], 3.0),
        ("flux2", (64, 96), [(64, 96)], 1.0),
        ("flux2", (96, 64), [(80, 64), (64, 144), (64, 64)], 3.0),
        ("flux2", (64, 64), [(107, 70), (70, 95)], 1.0),
        ("flux2-dev", (96, 64), [(240, 187), (64, 64)], 1.0),
    ],
)
def test_the_image_is_that_of_diffusers_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: tuple[int, int], shown: list[tuple[int, int]],
    cfg: float,
) -> None:  # fmt: skip
    monkeypatch.setattr(socket, "socket", closed)
    made = tiny_flows.modules(name)
    path = tiny_flows.write(tmp_path / "tiny.safetensors", name, family_of(name), made=made)
    images = [photo(each, number) for number, each in enumerate(shown)]

    ours, expected = compared(name, path, made, images, cfg=cfg, width=size[0], height=size[1])
    others, _ = compared(name, path, made, [photo(shown[0], 9), *images[1:]], cfg=cfg, width=size[0], height=size[1])

    assert float((ours - expected).abs().max()) <= 1e-4
    assert float(expected.std()) > 0.05
    assert float((ours - others).abs().max()) > 0.001


@pytest.mark.parametrize("name", ["flux1", "flux2"])
def test_a_lora_changes_the_edited_image_as_in_diffusers_pipeline(tmp_path: Path, name: str) -> None:
    path = tiny_flows.write(tmp_path / "tiny.safetensors", name, family_of(name))
    lora, merged = kohya(load_file(path))
    save_file(lora, tmp_path / "lora.safetensors")
    save_file(merged, tmp_path / "merged.safetensors")
    parts = load(tmp_path / "merged.safetensors", dtype=torch.float32).components

    ours, expected = compared(name, path, parts, [photo((64, 80), 1)], cfg=1.0, lora=tmp_path / "lora.safetensors")

    assert float((ours - expected).abs().max()) <= 1e-4


@pytest.mark.parametrize("size", SIZES)
def test_kontext_s_image_is_scaled_as_by_comfyui_s_node(size: tuple[int, int]) -> None:
    width, height = size
    own = width / height
    _, *wanted = min((abs(own - w / h), w, h) for w, h in PREFERRED_KONTEXT_RESOLUTIONS)
    aspect, left, top = wanted[0] / wanted[1], 0, 0
    if own > aspect:  # ComfyUI's centre crop, of which the rest is stretched
        left = round((width - width * (aspect / own)) / 2)
    elif own < aspect:
        top = round((height - height * (own / aspect)) / 2)

    fit = FLUX1.reference_fit(width, height)

    assert fit.size == tuple(wanted)
    assert fit.box == (left, top, width - 2 * left, height - 2 * top)
    assert fit.size[0] % 16 == fit.size[1] % 16 == 0


@pytest.mark.parametrize("size", SIZES)
def test_klein_s_image_is_scaled_as_in_diffusers_pipeline(size: tuple[int, int]) -> None:
    fit = FLUX2_KLEIN.reference_fit(*size)

    assert fit.size == Flux2ImageProcessor._resize_if_exceeds_area(Image.new("RGB", size)).size
    assert fit.box == (0, 0, *size)
