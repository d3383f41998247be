# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""The components in diffusers' own pipelines, our samplers behind its scheduler interface, and the cheap imports."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from dataclasses import replace

from test_run import PLAIN, prompt

from civman.diffusion.diffusers_pipeline import pipeline_of
from civman.diffusion.loader import load
from civman.diffusion.pipeline_scheduler import PipelineScheduler
from civman.diffusion.run_recipe import render
from civman.errors import UsageError


@pytest.mark.parametrize(
    ("kind", "wish", "name"),
    [
        ("sd1", "txt2img", "StableDiffusionPipeline"),
        ("sd1-inpaint", "inpaint", "StableDiffusionInpaintPipeline"),
        ("sdxl", "txt2img", "StableDiffusionXLPipeline"),
        ("sdxl", "img2img", "StableDiffusionXLImg2ImgPipeline"),
        ("refiner", "img2img", "StableDiffusionXLImg2ImgPipeline"),
    ],
)
def test_pipelines_are_diffusers_own_and_share_the_components(
    tiny_files: dict[str, Path], kind: str, wish: str, name: str
) -> None:
    model = load(tiny_files[kind], for_diffusers=True)

    pipeline = pipeline_of(model, wish)

    assert type(pipeline).__name__ == name
    assert pipeline.unet is model.unet
    assert pipeline.vae is model.vae
    assert pipeline.text_encoder is model.components.get("text_encoder")
    assert pipeline_of(model, wish) is pipeline


def test_a_kind_of_pipeline_that_is_none_is_refused(tiny_files: dict[str, Path]) -> None:
    with pytest.raises(UsageError):
        pipeline_of(load(tiny_files["sd1"], for_diffusers=True), "txt2video")
    with pytest.raises(UsageError):
        pipeline_of(load(tiny_files["refiner"], for_diffusers=True), "txt2img")


@pytest.mark.parametrize("name", ["Euler", "Heun", "DPM++ 2M", "DPM++ 2S a", "DPM++ SDE", "DDIM", "UniPC"])
def test_our_scheduler_in_diffusers_loop_makes_our_picture(tiny_files: dict[str, Path], name: str) -> None:
    model = load(tiny_files["sd1"], dtype=torch.float32, for_diffusers=True)
    given = prompt(model)
    pipeline = pipeline_of(model)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = PipelineScheduler(name)

    theirs = pipeline(
        prompt_embeds=given.cond, negative_prompt_embeds=given.uncond, num_inference_steps=3, guidance_scale=4.0,
        height=64, width=64, generator=torch.Generator().manual_seed(7), output_type="np",
    ).images[0]  # fmt: skip
    (ours,) = render(replace(PLAIN, sampler=name), model, given)

    assert np.abs(ours.pixels / 255 - theirs).max() < 0.5 / 255 + 1e-3


@pytest.mark.long
def test_loading_imports_neither_the_compiler_nor_sympy_and_spoils_nothing(tiny_files: dict[str, Path]) -> None:
    script = f"""
import sys
from pathlib import Path
from civman.diffusion.loader import load
from civman.diffusion.environment import deterministic
model = load(Path({str(tiny_files["sd1"])!r}), for_diffusers=True)
with deterministic():
    pass
import torch
width = model.unet.config.cross_attention_dim
asked = torch.zeros(1, 4, 8, 8).half(), torch.tensor(3), torch.zeros(1, 77, width).half()
with torch.no_grad():
    plain = model.unet(*asked).sample
unwanted = ("torch._dynamo", "sympy", "torch.distributed.tensor", "scipy.optimize", "peft")
heavy = [name for name in unwanted if name in sys.modules]
assert heavy == [], heavy
import diffusers, torch._dynamo
assert torch._dynamo.__file__ and torch.distributed.is_available()
assert diffusers.UNet1DModel.__name__ == "UNet1DModel"
assert diffusers.FluxTransformer2DModel.__name__ == "FluxTransformer2DModel"
from civman.diffusion.diffusers_pipeline import pipeline_of
assert type(pipeline_of(model)).__name__ == "StableDiffusionPipeline"
diffusers.LMSDiscreteScheduler().set_timesteps(3)
import transformers
assert transformers.models.bert.BertModel.__name__ == "BertModel"
assert transformers.models.clip.CLIPTextConfig is type(model.components["text_encoder"].config)
import peft
model.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
with torch.no_grad():
    full, none = (
        model.unet(*asked, cross_attention_kwargs=dict(scale=scale)).sample for scale in (1.0, 0.0)
    )
assert not torch.equal(full, plain) and torch.allclose(none, plain, atol=1e-3)
from diffusers.loaders.lora_base import BaseTunerLayer
assert any(isinstance(module, BaseTunerLayer) for module in model.unet.modules())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stderr


def test_names_tables_and_estimates_need_no_torch() -> None:
    script = (
        "import sys, civman.diffusion.samplers, civman.diffusion.families.registry, civman.domain.recipes.recipe; "
        "assert not {'torch', 'numpy', 'diffusers'} & sys.modules.keys()"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
