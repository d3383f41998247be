# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""A tiny model of each flow-matching family, in the original single-file layout: its tensors and its image.

The image is diffusers' own pipeline's, from the same noise, levels and prompts, to 1e-4 of the range 0 to 1. Sockets
are closed while civman loads and renders.
"""

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_flows

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusion import flow_pipelines

from civman.diffusion import run_recipe, vae_codec
from civman.diffusion.denoiser import Conditioning
from civman.diffusion.families.registry import FLOW_FAMILIES
from civman.diffusion.flow_levels import FlowLevels, flow_table
from civman.diffusion.noise_levels import Schedule
from civman.diffusion.open_model import load
from civman.diffusion.stage_model import one_model
from civman.domain.digests import Sha256
from civman.domain.recipes.recipe import Flow, Recipe
from civman.prompts.emphasis import parse
from civman.rendering.encode_prompts import FlowTextEncoders

PROMPT, NEGATIVE = "a photo of a cat", "a photo of a dog"
CFG = {"flux1": 1.0, "flux2-dev": 1.0, "qwen-image": 1.0}
"""The scale is 3 for all others. diffusers rescales a guided velocity of Qwen-Image, which ComfyUI does not."""


def family_of(name: str) -> Any:
    return next(each for each in FLOW_FAMILIES if name.startswith(each.name))


def recipe_for(name: str, *, cfg: float, steps: int = 3, **changes: Any) -> Recipe:
    family = family_of(name)
    usual = family.defaults("")
    values: dict[str, Any] = {
        "checkpoint": Sha256("0" * 64), "prompt": PROMPT, "negative_prompt": NEGATIVE, "sampler": "Euler",
        "schedule": "Simple", "steps": steps, "guidance_scale": cfg, "width": 64, "height": 96, "seed": 3,
        "clip_skip": 1, "prediction": "flow", "is_zero_snr": False, "precision": "float32",
        "flow": Flow(2.5, family.entries, usual.guidance),
    }  # fmt: skip
    return Recipe(**values | changes)


def drawn(
    model: Any, recipe: Recipe, inputs: run_recipe.Inputs = run_recipe.NO_INPUTS, **options: Any
) -> tuple[Any, Any]:
    """Render without sockets; returns the decoder's own output (3, H, W), before rounding, and the picture.

    `options`: those of `run_recipe.job_of`.
    """
    decoded = []
    original = model.vae.decode

    def decode(*arguments: Any, **named: Any) -> Any:
        decoded.append(original(*arguments, **named)[0])
        return (decoded[-1],)

    model.vae.decode = decode
    texts = FlowTextEncoders(model)
    cond, pooled = texts.encode(parse(recipe.prompt), recipe, (), is_negative=False)
    uncond, uncond_pooled = texts.encode(parse(recipe.negative_prompt), recipe, (), is_negative=True)
    stages = one_model(model, Conditioning(cond, uncond, pooled, uncond_pooled))
    pictures = next(run_recipe.iterate(recipe, stages, inputs=inputs, **options))
    values = decoded[-1].reshape(3, recipe.height, recipe.width)
    return (values / 2 + 0.5).clamp(0, 1), pictures[0]


@pytest.fixture(params=tiny_flows.TINY)
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Mapping[str, Any], Path]:
    name = request.param
    made = tiny_flows.modules(name)
    return name, made, tiny_flows.write(tmp_path / "tiny.safetensors", name, family_of(name), made=made)


def closed(*_: object, **__: object) -> Any:
    raise AssertionError("a socket was opened")


def test_the_model_and_its_image_are_diffusers(
    tiny: tuple[str, Mapping[str, Any], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, made, path = tiny
    monkeypatch.setattr(socket, "socket", closed)
    recipe = recipe_for(name, cfg=CFG.get(name, 3.0))

    model = load(path)
    ours, _ = drawn(model, recipe)

    for component, module in model.components.items():
        theirs = made[component].state_dict()
        for key, value in module.state_dict().items():
            assert torch.equal(value, theirs[key]), (component, key)
    assert [key for key in model.unused if "embed_tokens" not in key] == []
    channels, rows, columns = vae_codec.latent_shape(model.vae, recipe.width, recipe.height)
    folded = vae_codec.folds_noise(model.vae)
    shape = (1, 4 * channels, rows // 2, columns // 2) if folded else (1, channels, rows, columns)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    assert recipe.flow is not None
    sigmas = flow_table(Schedule.SIMPLE, recipe.steps, FlowLevels(recipe.flow.shift, recipe.flow.entries))
    expected = flow_pipelines.draw(name, made, PROMPT, NEGATIVE, sigmas, noise, CFG.get(name, 3.0))
    assert float((ours - expected).abs().max()) <= 1e-4
    assert float(expected.std()) > 0.05
