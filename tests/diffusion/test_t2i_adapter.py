# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""T2I-Adapters: every layout loads to the same module, and images equal those of diffusers' own pipelines."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from PIL import Image
from safetensors.torch import save_file
from test_controlnet import MODEL, PICTURE, loaded, network, ours, picture, recipe_with
from test_run import prompt

from civman.diffusion.diffusers_pipeline import pipeline_of
from civman.diffusion.loader import LoadedModel, load
from civman.diffusion.pipeline_scheduler import PipelineScheduler
from civman.diffusion.t2i_adapter import load_adapter
from civman.diffusion.t2i_shapes import require_adapter_fits
from civman.domain.recipes.control import ControlUse
from civman.errors import CannotRender, Incompatible

pytestmark = pytest.mark.filterwarnings("ignore:The decode_latents method")
CPU = torch.device("cpu")
KINDS: dict[str, dict[str, Any]] = {
    "full": {"channels": [16, 32, 32, 32], "adapter_type": "full_adapter"},
    "light": {"channels": [16, 32, 32], "num_res_blocks": 4, "adapter_type": "light_adapter"},
    "xl": {"channels": [16, 32, 32, 32], "adapter_type": "full_adapter_xl", "downscale_factor": 16},
}


def adapter(kind: str, *, channels: int = 3, seed: int = 5) -> Any:
    from diffusers import T2IAdapter

    torch.manual_seed(seed)
    made = T2IAdapter(in_channels=channels, **KINDS[kind]).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


def original_name(name: str, kind: str) -> str:
    """The layout of TencentARC's files, written down from their classes."""
    place = name.removeprefix("adapter.").split(".")
    if place[0] == "conv_in":
        return ".".join(place)
    if kind == "light":  # each level is an extractor with its own body
        return ".".join("body" if part == "resnets" else part for part in place)
    block = 2 * int(place[1]) + (int(place[3]) if place[2] == "resnets" else 0)
    return ".".join(["body", str(block), *(place[4:] if place[2] == "resnets" else place[2:])])


def write(module: Any, kind: str, layout: str, path: Path) -> Path:
    state = {name: value.contiguous() for name, value in module.state_dict().items()}
    if layout != "diffusers":
        start = "adapter." if layout == "prefixed" else ""
        state = {start + original_name(name, kind): value for name, value in state.items()}
    save_file(state, path)
    return path


def of_file(module: Any, kind: str, path: Path, layout: str = "original") -> Any:
    return load_adapter(write(module, kind, layout, path), device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("layout", ["original", "prefixed", "diffusers"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_layout_loads_with_every_tensor(tmp_path: Path, kind: str, layout: str, channels: int) -> None:
    theirs = adapter(kind, channels=channels)

    found = of_file(theirs, kind, tmp_path / "adapter.safetensors", layout).module

    expected = dict(theirs.named_parameters())
    assert {name for name, _ in found.named_parameters()} == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.named_parameters())
    pixels = torch.rand(1, channels, 64, 64)
    with torch.no_grad():
        for one, other in zip(found(pixels), theirs(pixels), strict=True):
            torch.testing.assert_close(one, other)


def of_diffusers(model: LoadedModel, adapters: Any, images: Any, *, is_xl: bool, **options: Any) -> Any:
    """The image of diffusers' own adapter pipeline, with civman's Euler behind its scheduler interface."""
    import diffusers

    name = "StableDiffusionXLAdapterPipeline" if is_xl else "StableDiffusionAdapterPipeline"
    plain = pipeline_of(load(model.path, dtype=torch.float32, for_diffusers=True))
    parts = {key: value for key, value in plain.components.items() if key != "image_encoder"}
    parts |= {"force_zeros_for_empty_prompt": True} if is_xl else {"requires_safety_checker": False}
    pipe = getattr(diffusers, name)(**parts, adapter=adapters)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = PipelineScheduler("Euler")
    given = prompt(model)
    pooled = {}
    if is_xl:
        pooled = {"pooled_prompt_embeds": given.pooled, "negative_pooled_prompt_embeds": given.uncond_pooled}
    return pipe(
        prompt_embeds=given.cond, negative_prompt_embeds=given.uncond, image=images, guidance_scale=4.0,
        height=64, width=64, generator=torch.Generator().manual_seed(7), output_type="np", num_inference_steps=3,
        **pooled, **options,
    ).images[0]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "base", "channels", "weight"),
    [("full", "sd1", 3, 1.0), ("full", "sd2", 1, 0.4), ("light", "sd1", 3, 0.4), ("xl", "sdxl", 3, 1.0),
     ("xl", "sdxl", 1, 0.4)],
)  # fmt: skip
def test_an_image_equals_that_of_diffusers_pipeline(
    tiny_files: dict[str, Path], tmp_path: Path, kind: str, base: str, channels: int, weight: float
) -> None:
    model, theirs = load(tiny_files[base], dtype=torch.float32), adapter(kind, channels=channels)
    pixels = picture() if channels == 3 else np.repeat(picture()[:, :, :1], 3, axis=2)
    recipe = recipe_with(ControlUse(MODEL, PICTURE, weight), sampler="Euler", steps=3)

    found = ours(model, recipe, [of_file(theirs, kind, tmp_path / "a.safetensors")], [pixels])

    image = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
    expected = of_diffusers(model, theirs, image, is_xl=base == "sdxl", adapter_conditioning_scale=weight)
    assert np.abs(found - expected).max() < 0.5 / 255 + 1e-4
    assert np.abs(found - ours(model, recipe_with(sampler="Euler", steps=3), [], [])).max() > 2 / 255


@pytest.mark.parametrize(("kind", "base"), [("full", "sd1"), ("xl", "sdxl")])
def test_several_adapters_add_up_as_in_diffusers(
    tiny_files: dict[str, Path], tmp_path: Path, kind: str, base: str
) -> None:
    from diffusers import MultiAdapter

    model, both = load(tiny_files[base], dtype=torch.float32), [adapter(kind, seed=5), adapter(kind, seed=6)]
    pictures = [picture(1), picture(2)]
    uses = (ControlUse(MODEL, PICTURE, 0.7), ControlUse(MODEL, PICTURE, 0.5))
    own = [of_file(each, kind, tmp_path / f"{number}.safetensors") for number, each in enumerate(both)]

    found = ours(model, recipe_with(*uses, sampler="Euler", steps=3), own, pictures)

    expected = of_diffusers(
        model, MultiAdapter(both), [Image.fromarray(each) for each in pictures], is_xl=base == "sdxl",
        adapter_conditioning_scale=[0.7, 0.5],
    )  # fmt: skip
    assert np.abs(found - expected).max() < 0.5 / 255 + 1e-4


def test_an_adapter_acts_in_its_share_of_the_steps(tiny_files: dict[str, Path], tmp_path: Path) -> None:
    model, theirs, pixels = load(tiny_files["sdxl"], dtype=torch.float32), adapter("xl"), picture()
    recipe = recipe_with(ControlUse(MODEL, PICTURE, 1.0, end=0.4), sampler="Euler", steps=3)  # steps 0/3 and 1/3

    found = ours(model, recipe, [of_file(theirs, "xl", tmp_path / "a.safetensors")], [pixels])

    expected = of_diffusers(model, theirs, Image.fromarray(pixels), is_xl=True, adapter_conditioning_factor=2 / 3)
    assert np.abs(found - expected).max() < 0.5 / 255 + 1e-4


@pytest.mark.parametrize("mode", ["prompt", "control"])
def test_the_control_modes_have_the_factors_of_a1111(tmp_path: Path, mode: str) -> None:
    theirs, pixels = adapter("full"), picture()
    own = of_file(theirs, "full", tmp_path / "a.safetensors")

    with torch.no_grad():
        active = own.active(ControlUse(MODEL, PICTURE, 0.8, mode=mode), pixels, (64, 64), CPU)
        raw = theirs(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    x = torch.zeros(2, 4, 8, 8)
    found = active.additions(x, torch.tensor(1.0), x, {}, [True, False]).features

    for feature, map_, factor in zip(found, raw, (0.25, 0.62, 0.825, 1.0), strict=True):
        torch.testing.assert_close(feature[0], map_[0] * 0.8 * factor)
        torch.testing.assert_close(feature[1], map_[0] * 0.8 * factor * (mode == "prompt"))


@pytest.mark.parametrize(("kind", "base", "size"), [("full", "sd1", (72, 56)), ("xl", "sdxl", (72, 88))])
def test_an_adapter_works_at_every_size(
    tiny_files: dict[str, Path], tmp_path: Path, kind: str, base: str, size: tuple[int, int]
) -> None:
    model, own = load(tiny_files[base], dtype=torch.float32), of_file(adapter(kind), kind, tmp_path / "a.safetensors")
    recipe = recipe_with(ControlUse(MODEL, PICTURE), sampler="Euler", steps=2, width=size[0], height=size[1])

    found = ours(model, recipe, [own], [picture()])

    assert found.shape == (size[1], size[0], 3)


def test_an_adapter_and_a_controlnet_act_together(tiny_files: dict[str, Path], tmp_path: Path) -> None:
    model, pixels = load(tiny_files["sd1"], dtype=torch.float32), picture()
    own = of_file(adapter("full"), "full", tmp_path / "a.safetensors")
    net, use = loaded(network("sd1"), "sd1", model, tmp_path / "n.safetensors"), ControlUse(MODEL, PICTURE)

    drawn = [
        ours(model, recipe_with(*[use] * len(models), sampler="Euler", steps=2), models, [pixels] * len(models))
        for models in ([own], [net], [own, net], [net, own])
    ]

    assert np.abs(drawn[2] - drawn[3]).max() < 1e-6
    assert min(np.abs(drawn[2] - other).max() for other in drawn[:2]) > 1 / 255


def test_an_adapter_of_another_base_does_not_fit(tiny_files: dict[str, Path]) -> None:
    bases = {kind: {f"{name}": tuple(t.shape) for name, t in _tensors(tiny_files[kind]).items()}
             for kind in ("sd1", "sd2", "sdxl")}  # fmt: skip
    fits = {("full", "sd1"), ("full", "sd2"), ("light", "sd1"), ("light", "sd2"), ("xl", "sdxl")}

    for kind in KINDS:
        shapes = {name: tuple(t.shape) for name, t in adapter(kind).state_dict().items()}
        for base, checkpoint in bases.items():
            if (kind, base) in fits:
                require_adapter_fits(checkpoint, shapes, "a")
            else:
                with pytest.raises(Incompatible, match="was made for a UNet of"):
                    require_adapter_fits(checkpoint, shapes, "a")


def _tensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def test_an_incomplete_adapter_and_an_unknown_structure_are_refused(tmp_path: Path) -> None:
    state = adapter("full").state_dict()
    save_file({k: v for k, v in state.items() if "body.2.resnets.1" not in k}, tmp_path / "part.safetensors")
    save_file(state | {"adapter.body.0.skep.weight": torch.zeros(16, 16, 1, 1)}, tmp_path / "odd.safetensors")
    save_file(
        state | {"adapter.body.0.resnets.0.block2.weight": torch.zeros(16, 16, 3, 3)}, tmp_path / "wide.safetensors"
    )

    for name, says in (("part", "lacks the tensor"), ("odd", "to no known structure"), ("wide", "to no known")):
        with pytest.raises(CannotRender, match=says):
            load_adapter(tmp_path / f"{name}.safetensors", device=CPU, dtype=None)
