# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""The library hands out diffusers' own pipelines, which draw what civman draws."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from PIL import Image

from civman.domain.recipes.machine import Machine
from civman.domain.recipes.recipe import LoraRequest, RenderRequest
from civman.errors import UsageError
from civman.library import Library
from civman.planning.plan import Conditions

ON_CPU = Conditions(device="cpu")


@pytest.mark.filterwarnings("ignore")  # diffusers' and transformers' own
@pytest.mark.usefixtures("stocked", "no_sockets")
@pytest.mark.parametrize("low_vram", [False, True])
@pytest.mark.parametrize(
    ("kind", "lora", "name"),
    [("sd1", "ink", "StableDiffusionPipeline"), ("sdxl", "xl-ink", "StableDiffusionXLPipeline")],
)
def test_diffusers_own_pipeline_draws_the_plan_s_picture(
    library: Library, tmp_path: Path, kind: str, lora: str, name: str, low_vram: bool
) -> None:
    request = RenderRequest(
        f"tiny-{kind}", "a red cat", "a dog", loras=(LoraRequest(lora, 0.8),), sampler="DPM++ 2M Karras", steps=3,
        guidance_scale=3, width=64, height=64, seed=7,
    )  # fmt: skip
    planned = library.plan(request, ON_CPU)
    (ours,) = library.render(planned, machine=Machine("cpu"), output=tmp_path / "ours.png")

    pipe = library.pipeline(planned, machine=Machine("cpu", low_vram))
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        "a red cat", negative_prompt="a dog", num_inference_steps=3, guidance_scale=3.0, height=64, width=64,
        generator=torch.Generator().manual_seed(7),
    ).images[0]  # fmt: skip

    assert type(pipe) is getattr(diffusers, name)
    difference = np.asarray(theirs).astype(int) - np.asarray(Image.open(ours.path)).astype(int)
    assert np.abs(difference).max() <= 1


@pytest.mark.usefixtures("stocked")
def test_a_kind_of_pipeline_that_is_none_is_named(library: Library) -> None:
    planned = library.plan(RenderRequest("tiny-sd1", sampler="Euler"), ON_CPU)

    with pytest.raises(UsageError, match="txt2vid"):
        library.pipeline(planned, "txt2vid", machine=Machine("cpu"))
