# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""The library gives diffusers' own pipelines, which draw what civman draws; what they cannot draw is refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from PIL import Image

from civman.domain.recipes.machine import Machine
from civman.domain.recipes.recipe import HiresRequest, LoraRequest, RenderRequest
from civman.errors import CannotRender, UsageError
from civman.library import Library
from civman.planning.plan import Conditions
from civman.planning.plan_types import Planned

pytestmark = [
    pytest.mark.long,
    pytest.mark.usefixtures("stocked", "no_sockets"),
    pytest.mark.filterwarnings("ignore"),  # diffusers' and transformers' own
]
ON_CPU, CPU = Conditions(device="cpu"), Machine("cpu")
CLOSE = 2
LONG = ", ".join(["a red cat in the green grass beside a house"] * 30)
"""300 tokens."""
PLAIN = {
    "prompt": "a red cat", "negative_prompt": "a dog", "sampler": "DPM++ 2M Karras", "steps": 3,
    "guidance_scale": 3.0, "width": 64, "height": 64, "seed": 7,
}  # fmt: skip
LORAS = {"sd1": ("ink", "ink2"), "sdxl": ("xl-ink", "xl-ink2")}
CASES: dict[str, dict[str, Any]] = {
    "two loras": {},
    "clip skip": {"clip_skip": 2},
    "embedding": {"prompt": "a red cat, easydream", "embeddings": ("easydream",)},
    "emphasis": {"prompt": "a (red:1.6) cat [at] ((night))", "negative_prompt": "(dog:0.5)"},
    "300 tokens": {"prompt": LONG, "negative_prompt": "a dog BREAK a tree"},
    "long, no negative": {"prompt": LONG, "guidance_scale": 1.0},
    "vae": {"vae": "other-vae"},
    "several, their own noise": {"sampler": "Euler a", "count": 3, "eta_seed_delta": 31337},
    "Philox": {"sampler": "DPM++ 2M SDE", "rng": "nv"},
    "two evaluations a step": {"sampler": "DPM++ SDE Karras", "guidance_rescale": 0.7},
    "DDIM": {"sampler": "DDIM"},
    "img2img": {"init_image": "start.png", "strength": 0.6, "steps": 5},
    "img2img with noise": {"init_image": "start.png", "strength": 0.6, "steps": 4, "sampler": "DPM2 a", "rng": "nv"},
}
"""What differs from PLAIN, which has two LoRAs; img2img starts from a picture of another size."""
SD1_ONLY = ("long, no negative", "several, their own noise", "Philox", "DDIM")
"""Left out for SDXL for time: noise and samplers know nothing of the family."""


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A picture to start from: colours that run into one another."""
    ramp = np.linspace(0, 255, 96)
    pixels = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :80], 128), axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "start.png")
    return tmp_path / "start.png"


@pytest.fixture
def xl_dream(tmp_path: Path) -> Path:
    """An embedding for both of SDXL's text encoders."""
    from safetensors.torch import save_file

    tensors = {"clip_l": torch.randn(3, 24, generator=seeded(3)), "clip_g": torch.randn(3, 32, generator=seeded(4))}
    save_file(tensors, tmp_path / "xldream.safetensors")
    return tmp_path / "xldream.safetensors"


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_the_pipeline_s_call_draws_what_render_draws(
    library: Library, tmp_path: Path, start: Path, xl_dream: Path, kind: str
) -> None:
    far = {}
    cases = dict(CASES)
    if kind == "sdxl":
        cases = {name: case for name, case in CASES.items() if name not in SD1_ONLY}
        cases["embedding"] = {"prompt": "a red cat, xldream", "embeddings": (str(xl_dream),)}
    without = {}
    for name, case in cases.items():
        planned = plan(library, kind, start, **case)
        ours = rendered(library, planned, tmp_path / name)
        pipe = quiet(library.pipeline(planned, machine=CPU))
        theirs = drawn(pipe, **library.pipeline_call(planned, pipe))
        assert len(ours) == len(theirs) == planned.recipe.count, name
        without.setdefault("two loras", ours)
        if name != "two loras" and furthest(ours[:1], without["two loras"]) <= CLOSE:
            without[name] = ours
        if (distance := furthest(ours, theirs)) > CLOSE:
            far[name] = distance

    assert far == {}
    # what a case asks for is in its picture; SDXL takes one layer of its text encoders, whatever the clip skip
    assert set(without) == {"two loras"} | ({"clip skip"} if kind == "sdxl" else set())


def plan(library: Library, kind: str, start: Path | None = None, **changed: Any) -> Planned:
    """PLAIN with two LoRAs and these changes, planned for the CPU."""
    wanted = PLAIN | {"loras": tuple(LoraRequest(name, 0.8) for name in LORAS[kind])} | changed
    if "init_image" in wanted:
        wanted["init_image"] = str(start)
    return library.plan(RenderRequest(f"tiny-{kind}", **wanted), ON_CPU)


def rendered(library: Library, planned: Planned, folder: Path) -> list[NDArray[Any]]:
    """What civman draws."""
    made = library.render(planned, machine=CPU, output=folder)
    return [np.asarray(Image.open(each.path)) for each in made]


def quiet(pipe: Any) -> Any:
    """The pipeline without its progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: Any, **call: Any) -> list[NDArray[Any]]:
    """What a pipeline draws."""
    return [np.asarray(image) for image in pipe(**call).images]


def furthest(ours: Sequence[NDArray[Any]], theirs: Sequence[NDArray[Any]]) -> int:
    """The largest difference of two values, of 255."""
    return max(int(np.abs(a.astype(int) - b.astype(int)).max()) for a, b in zip(ours, theirs, strict=True))


REFUSED: dict[str, dict[str, Any]] = {
    "second pass": {"hires": HiresRequest(scale=2)},
    "mask": {"init_image": "start.png", "mask_image": "start.png"},
    "CFG": {"sampler": "Euler CFG++"},
    "adaptive": {"sampler": "DPM adaptive"},
    "DDIM": {"sampler": "DDIM", "init_image": "start.png"},
    "Restart": {"sampler": "Restart", "steps": 20, "init_image": "start.png"},
    "guidance scale below 1": {"guidance_scale": 0.5},
    "guidance_rescale": {"guidance_rescale": 0.5, "init_image": "start.png"},
}


def test_what_a_pipeline_cannot_draw_is_refused_by_name_with_a_hint(library: Library, start: Path) -> None:
    for name, case in REFUSED.items():
        if "mask_image" in case:
            case["mask_image"] = str(start)
        with pytest.raises(CannotRender, match=name) as refused:
            library.pipeline(plan(library, "sd1", start, **case), machine=CPU)
        assert "library.render" in str(refused.value.hint), name

    with pytest.raises(UsageError, match="txt2vid"):
        library.pipeline(plan(library, "sd1"), "txt2vid", machine=CPU)


def test_a_call_is_made_only_for_the_pipeline_of_its_plan(library: Library, start: Path) -> None:
    planned = plan(library, "sd1")
    pipe = library.pipeline(planned, machine=CPU)
    scheduler = pipe.scheduler

    with pytest.raises(CannotRender, match="LoRAs"):
        library.pipeline_call(plan(library, "sd1", loras=()), pipe)
    with pytest.raises(CannotRender, match="LoRAs"):
        library.embeddings(plan(library, "sd1", loras=()), pipe)
    with pytest.raises(CannotRender, match="scheduler"):
        library.pipeline_call(plan(library, "sd1", sampler="Euler"), pipe)
    with pytest.raises(CannotRender, match="img2img"):
        library.pipeline_call(plan(library, "sd1", start, init_image="start.png"), pipe)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(scheduler.config)
    with pytest.raises(CannotRender, match="scheduler"):
        library.pipeline_call(planned, pipe)


def test_embeddings_have_the_documented_shapes_and_are_those_of_the_call(library: Library) -> None:
    planned = plan(library, "sdxl", prompt=LONG, negative_prompt="a dog BREAK a tree BREAK a house")

    found = library.embeddings(planned, machine=CPU)
    call = library.pipeline_call(planned, library.pipeline(planned, machine=CPU))

    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        "prompt_embeds": (1, 15 * 77, 56), "negative_prompt_embeds": (1, 15 * 77, 56),
        "pooled_prompt_embeds": (1, 32), "negative_pooled_prompt_embeds": (1, 32),
    }  # fmt: skip
    assert all(torch.equal(tensor, call[name]) for name, tensor in found.items())


def test_idioms_that_leave_the_picture_alone(library: Library, tmp_path: Path) -> None:
    planned = plan(library, "sd1", sampler="Euler a")
    pipe = quiet(library.pipeline(planned, machine=CPU))
    expected = drawn(pipe, **library.pipeline_call(planned, pipe))
    plain = {"prompt": "a red cat", "negative_prompt": "a dog", "guidance_scale": 3.0, "num_inference_steps": 3,
             "height": 64, "width": 64}  # fmt: skip

    def distance(pipe: Any = pipe, **more: Any) -> int:
        call = library.pipeline_call(planned, pipe) if "prompt" not in more else {}
        return furthest(expected, drawn(pipe, **call | more)[:1])

    seen: list[int] = []
    found = {"plain": distance(**plain, generator=seeded(7))}
    found["generators"] = distance(**plain | {"prompt": ["a red cat"] * 2, "negative_prompt": ["a dog"] * 2},
                                   generator=[seeded(7), seeded(8)])  # fmt: skip
    found["callback"] = distance(callback_on_step_end=lambda _p, step, _t, values: seen.append(step) or values)
    pipe.enable_attention_slicing()
    found["slicing"] = distance()
    pipe.vae.enable_tiling()
    found["tiling"] = distance()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    found["from_config"] = distance()
    euler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert (euler.config.beta_schedule, euler.config.beta_end) == ("scaled_linear", 0.012)
    call = library.pipeline_call(planned, pipe)
    pipe.save_pretrained(tmp_path / "saved")
    loaded = quiet(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "saved", local_files_only=True))
    found["saved"] = furthest(expected, drawn(loaded, **call))
    pipe.to(torch.float64)
    found["dtype"] = distance()

    assert seen == [0, 1, 2]
    assert {name: far for name, far in found.items() if far > CLOSE} == {}


def test_idioms_that_change_the_picture_or_say_why_not(
    library: Library, stock: Path, tmp_path: Path, start: Path
) -> None:
    planned = plan(library, "sd1", loras=(), sampler="Heun")
    pipe = quiet(library.pipeline(planned, machine=CPU))
    skipping = plan(library, "sd1", loras=(), sampler="Heun", clip_skip=2, guidance_scale=1.0)
    plain = {"prompt": "a red cat", "negative_prompt": "a dog", "guidance_scale": 3.0, "num_inference_steps": 3,
             "height": 64, "width": 64}  # fmt: skip

    def blank(last: int) -> Any:
        return lambda _p, step, _t, values: {"latents": values["latents"] * (step != last)}

    expected = rendered(library, skipping, tmp_path / "skipping.png")
    once = plain | {"guidance_scale": 1.0}  # diffusers skips for the prompt only, not for the negative one
    assert furthest(expected, drawn(pipe, **once, clip_skip=1, generator=seeded(7))) <= CLOSE
    nothing = pipe.vae.decode(torch.zeros(1, 4, 8, 8)).sample
    of_nothing = pipe.image_processor.postprocess(nothing.detach(), output_type="pil")
    assert furthest([np.asarray(of_nothing[0])], drawn(pipe, **plain, callback_on_step_end=blank(4))) <= CLOSE
    assert len(drawn(pipe, **plain, callback_on_step_end=blank(1))) == 1
    with pytest.raises(CannotRender, match="within a step of `Heun`"):
        drawn(pipe, **plain, callback_on_step_end=blank(0))
    with pytest.raises(ValueError, match="does not support custom"):
        drawn(pipe, prompt="a red cat", sigmas=[14.0, 1.0])
    assert len(drawn(pipe, **plain, num_images_per_prompt=2)) == 2
    image = Image.open(start).resize((64, 64))
    for kind in (diffusers.StableDiffusionImg2ImgPipeline, diffusers.AutoPipelineForImage2Image):
        other = quiet(kind.from_pipe(pipe))
        made = drawn(other, prompt="a red cat", image=image, strength=0.5, num_inference_steps=4, generator=seeded(7))
        assert len(made) == 1
    pytest.importorskip("peft")
    pipe.load_lora_weights(str(stock), weight_name="ink.safetensors", local_files_only=True)
    merged = plan(library, "sd1", sampler="Heun", loras=(LoraRequest("ink", 1.0),))
    expected = rendered(library, merged, tmp_path / "merged.png")
    assert furthest(expected, drawn(pipe, **plain, generator=seeded(7))) <= CLOSE


def test_a_pipeline_that_reads_its_weights_by_layer_draws_the_same_and_says_that_it_cannot_be_saved(
    library: Library, tmp_path: Path
) -> None:
    planned = plan(library, "sd1")
    pipe = quiet(library.pipeline(planned, machine=Machine("cpu", low_vram=True)))

    made = drawn(pipe, **library.pipeline_call(planned, pipe))

    assert furthest(rendered(library, planned, tmp_path / "whole.png"), made) <= CLOSE
    with pytest.raises(CannotRender, match="cannot be saved"):
        pipe.save_pretrained(tmp_path / "saved")


def seeded(seed: int) -> Any:
    """torch's generator with this seed."""
    return torch.Generator().manual_seed(seed)
