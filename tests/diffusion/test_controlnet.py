# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""ControlNets: both layouts load to the same module, and images equal those of diffusers' own pipelines."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny_models
from PIL import Image
from safetensors.torch import save_file
from test_run import PLAIN, prompt

from civman.diffusion.controlnet import load_controlnet
from civman.diffusion.diffusers_pipeline import pipeline_of
from civman.diffusion.loader import LoadedModel, load
from civman.diffusion.pipeline_scheduler import PipelineScheduler
from civman.diffusion.run_recipe import Inputs, iterate
from civman.diffusion.stage_model import one_model
from civman.domain.digests import Sha256
from civman.domain.recipes.control import ControlUse
from civman.domain.recipes.recipe import Recipe
from civman.errors import CannotRender

MODEL, PICTURE = Sha256("c" * 64), Sha256("d" * 64)
SPARED = {"sample_size", "out_channels", "up_block_types", "center_input_sample"}


def network(kind: str, seed: int = 5) -> Any:
    """diffusers' own ControlNet of this kind, with random weights everywhere, also where training starts at zero."""
    from diffusers import ControlNetModel

    unet = {k: v for k, v in tiny_models.KINDS[kind]["unet"].items() if k not in SPARED}
    torch.manual_seed(seed)
    made = ControlNetModel(**unet, conditioning_embedding_out_channels=(4, 6, 8, 12)).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return made


def original_name(name: str, prefixes: list[tuple[str, str]]) -> str:
    """The layout of the first ControlNets, written down a second time."""
    if name.startswith("controlnet_cond_embedding.conv_in."):
        return name.replace("controlnet_cond_embedding.conv_in", "input_hint_block.0")
    if name.startswith("controlnet_cond_embedding.conv_out."):
        return name.replace("controlnet_cond_embedding.conv_out", "input_hint_block.14")
    if name.startswith("controlnet_cond_embedding.blocks."):
        number = int(name.split(".")[2])
        return f"input_hint_block.{[2, 4, 6, 8, 10, 12][number]}.{name.split('.')[3]}"
    if name.startswith("controlnet_down_blocks."):
        return f"zero_convs.{name.split('.')[1]}.0.{name.split('.')[2]}"
    if name.startswith("controlnet_mid_block."):
        return name.replace("controlnet_mid_block", "middle_block_out.0")
    return tiny_models.unet_name(name, prefixes).removeprefix("model.diffusion_model.")


def write(module: Any, kind: str, layout: str, path: Path) -> Path:
    state = {name: value.contiguous() for name, value in module.state_dict().items()}
    if layout != "diffusers":
        prefixes = tiny_models.unet_prefixes(tiny_models.KINDS[kind]["unet"])
        start = "control_model." if layout == "original" else ""
        state = {start + original_name(name, prefixes): value for name, value in state.items()}
    save_file(state, path)
    return path


@pytest.mark.parametrize("layout", ["original", "bare", "diffusers"])
@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_every_layout_loads_with_every_tensor(
    tiny_files: dict[str, Path], tmp_path: Path, kind: str, layout: str
) -> None:
    theirs, model = network(kind), load(tiny_files[kind], dtype=torch.float32)

    found = load_controlnet(
        write(theirs, kind, layout, tmp_path / "net.safetensors"), model,
        device=torch.device("cpu"), dtype=None,
    ).module  # fmt: skip

    expected = dict(theirs.named_parameters())
    assert {name for name, _ in found.named_parameters()} == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.named_parameters())
    width = int(model.configs["unet"]["cross_attention_dim"])
    more = {}
    if kind == "sdxl":
        more["added_cond_kwargs"] = {"text_embeds": torch.randn(1, 32), "time_ids": torch.rand(1, 6)}
    asked = torch.randn(1, 4, 8, 8), torch.tensor(7.0), torch.randn(1, 77, width), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        ours, reference = found(*asked, return_dict=False, **more), theirs(*asked, return_dict=False, **more)
    for one, other in zip([*ours[0], ours[1]], [*reference[0], reference[1]], strict=True):
        torch.testing.assert_close(one, other)


def recipe_with(*uses: ControlUse, **changes: Any) -> Recipe:
    return replace(PLAIN, controls=uses, **changes)


def picture(seed: int = 1, size: int = 64) -> Any:
    return np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)


def ours(model: LoadedModel, recipe: Recipe, nets: list[Any], pictures: list[Any]) -> Any:
    inputs = Inputs(controls=tuple(pictures))
    ((image,),) = iterate(recipe, one_model(model, prompt(model)), inputs=inputs, controlnets=nets)
    return image.pixels / 255


def loaded(theirs: Any, kind: str, model: LoadedModel, path: Path) -> Any:
    file = write(theirs, kind, "original", path)
    return load_controlnet(file, model, device=torch.device("cpu"), dtype=torch.float32)


def of_diffusers(model: LoadedModel, kind: str, nets: Any, images: Any, **options: Any) -> Any:
    """The image of diffusers' own ControlNet pipeline, with civman's Euler behind its scheduler interface."""
    import diffusers

    name = "StableDiffusionXLControlNetPipeline" if kind == "sdxl" else "StableDiffusionControlNetPipeline"
    plain = pipeline_of(load(model.path, dtype=torch.float32, for_diffusers=True))
    parts = {key: value for key, value in plain.components.items() if key != "image_encoder"}
    parts |= {"force_zeros_for_empty_prompt": True} if kind == "sdxl" else {"requires_safety_checker": False}
    pipe = getattr(diffusers, name)(**parts, controlnet=nets)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = PipelineScheduler("Euler")
    given = prompt(model)
    pooled = {}
    if kind == "sdxl":
        pooled = {"pooled_prompt_embeds": given.pooled, "negative_pooled_prompt_embeds": given.uncond_pooled}
    return pipe(
        prompt_embeds=given.cond, negative_prompt_embeds=given.uncond, image=images, guidance_scale=4.0,
        height=64, width=64, generator=torch.Generator().manual_seed(7), output_type="np", **pooled, **options,
    ).images[0]  # fmt: skip


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize(("weight", "steps"), [(1.0, 3), (0.4, 2)])
def test_an_image_equals_that_of_diffusers_pipeline(
    tiny_files: dict[str, Path], tmp_path: Path, kind: str, weight: float, steps: int
) -> None:
    model, theirs, pixels = load(tiny_files[kind], dtype=torch.float32), network(kind), picture()
    recipe = recipe_with(ControlUse(MODEL, PICTURE, weight), sampler="Euler", steps=steps)

    found = ours(model, recipe, [loaded(theirs, kind, model, tmp_path / "n.safetensors")], [pixels])

    expected = of_diffusers(
        model, kind, theirs, Image.fromarray(pixels), num_inference_steps=steps, controlnet_conditioning_scale=weight
    )
    assert np.abs(found - expected).max() < 0.5 / 255 + 1e-4
    assert np.abs(found - ours(model, replace(recipe, controls=()), [], [])).max() > 2 / 255


def test_two_controlnets_add_up_as_in_diffusers(tiny_files: dict[str, Path], tmp_path: Path) -> None:
    model, nets = load(tiny_files["sd1"], dtype=torch.float32), [network("sd1", 5), network("sd1", 6)]
    pictures = [picture(1), picture(2)]
    uses = (ControlUse(MODEL, PICTURE, 0.7), ControlUse(Sha256("e" * 64), PICTURE, 0.5))
    own = [loaded(net, "sd1", model, tmp_path / f"{number}.safetensors") for number, net in enumerate(nets)]

    found = ours(model, recipe_with(*uses, sampler="Euler", steps=3), own, pictures)

    expected = of_diffusers(
        model, "sd1", nets, [Image.fromarray(each) for each in pictures], num_inference_steps=3,
        controlnet_conditioning_scale=[0.7, 0.5],
    )  # fmt: skip
    assert np.abs(found - expected).max() < 0.5 / 255 + 1e-4


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.45), (0.3, 1.0), (0.0, 1.0), (0.5, 0.5), (0.3, 0.8)])
@pytest.mark.parametrize("steps", [1, 4, 5, 10, 20])
def test_a_share_of_the_steps_is_that_of_a1111(start: float, end: float, steps: int) -> None:
    use = ControlUse(MODEL, PICTURE, 1.0, start, end)

    # A1111 stops a unit while the number of finished steps, divided by all steps, is below its start or above its end
    expected = [not (done / steps < start or done / steps > end) for done in range(steps)]
    assert [use.acts_at(step, steps) for step in range(steps)] == expected


def test_the_layers_weights_are_those_of_the_control_modes() -> None:
    assert ControlUse(MODEL, PICTURE, 0.5).weights(13) == (0.5,) * 13
    for mode in ("prompt", "control"):
        found = ControlUse(MODEL, PICTURE, 0.5, mode=mode).weights(13)
        assert found[12] == 0.5
        assert found == pytest.approx([0.5 * 0.825 ** (12 - layer) for layer in range(13)])


def test_before_its_start_and_after_its_end_a_controlnet_does_nothing(
    tiny_files: dict[str, Path], tmp_path: Path
) -> None:
    model, net = load(tiny_files["sd1"], dtype=torch.float32), network("sd1")
    own, pixels = loaded(net, "sd1", model, tmp_path / "n.safetensors"), picture()
    seen: list[float] = []
    net_module = own.module
    net_module.register_forward_pre_hook(lambda _, asked: seen.append(float(asked[1])))

    plain = ours(model, recipe_with(sampler="Heun", steps=4), [], [])
    early = ours(model, recipe_with(ControlUse(MODEL, PICTURE, end=0.3), sampler="Heun", steps=4), [own], [pixels])

    assert len(seen) == 4  # two steps of two evaluations each
    assert np.abs(early - plain).max() > 1 / 255


def test_in_control_mode_only_the_positive_prompt_is_controlled(tiny_files: dict[str, Path], tmp_path: Path) -> None:
    model, net = load(tiny_files["sd1"], dtype=torch.float32), network("sd1")
    own, pixels = loaded(net, "sd1", model, tmp_path / "n.safetensors"), picture()
    given, zeros = prompt(model), []
    x, time = torch.randn(2, 4, 8, 8), torch.tensor(5.0)
    from civman.diffusion.control_additions import control_tensor
    from civman.diffusion.controlnet import ActiveControlNet

    image = control_tensor(pixels, (64, 64), "just resize", torch.device("cpu"))
    active = ActiveControlNet(own, ControlUse(MODEL, PICTURE, 0.8, mode="control"), image)
    with torch.no_grad():
        outputs = active.additions(x, time, torch.cat([given.cond, given.uncond]), {}, [True, False]).residuals
        skips, middle = net(
            x, time, torch.cat([given.cond, given.uncond]), image.expand(2, -1, -1, -1), return_dict=False
        )
    for number, (found, raw) in enumerate(zip(outputs, [*skips, middle], strict=True)):
        torch.testing.assert_close(found[0], raw[0] * 0.8 * 0.825 ** (12 - number))
        zeros.append(bool(found[1].any()))
    assert zeros == [False] * 13


def test_an_incomplete_controlnet_is_refused(tiny_files: dict[str, Path], tmp_path: Path) -> None:
    model = load(tiny_files["sd1"], dtype=torch.float32)
    state = network("sd1").state_dict()
    save_file({k: v for k, v in state.items() if "mid_block.resnets.1" not in k}, tmp_path / "part.safetensors")
    save_file({"x.weight": torch.zeros(3)}, tmp_path / "other.safetensors")

    for name, says in (("part", "lacks the tensor"), ("other", "finds no layers that read a control image")):
        with pytest.raises(CannotRender, match=says):
            load_controlnet(tmp_path / f"{name}.safetensors", model, device=torch.device("cpu"), dtype=None)


def test_a_control_image_is_padded_with_the_median_of_its_border_as_in_a1111() -> None:
    from civman.diffusion.control_additions import control_tensor

    pixels = picture(3, 40)[:20]
    pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1] = (10, 20, 30), (10, 20, 30), (10, 20, 30), 200

    found = control_tensor(pixels, (64, 64), "resize and pad", torch.device("cpu"))[0].permute(1, 2, 0) * 255

    # the extension scales 40x20 by min(64/40, 64/20) = 1.6 to 64x32, and starts at row (64 - 32) // 2
    inner = np.asarray(Image.fromarray(pixels).resize((64, 32), Image.Resampling.LANCZOS))
    assert np.abs(found[16:48].numpy() - inner).max() < 1e-3
    assert np.abs(found[:16].numpy() - (10, 20, 30)).max() < 1e-3
    assert np.abs(found[48:].numpy() - (10, 20, 30)).max() < 1e-3


def test_a_pooled_controlnet_equals_that_of_diffusers(tiny_files: dict[str, Path], tmp_path: Path) -> None:
    model, theirs, pixels = load(tiny_files["sd1"], dtype=torch.float32), network("sd1"), picture()
    theirs.register_to_config(global_pool_conditions=True)
    recipe = recipe_with(ControlUse(MODEL, PICTURE, 0.7, pools=True), sampler="Euler", steps=3)

    found = ours(model, recipe, [loaded(theirs, "sd1", model, tmp_path / "n.safetensors")], [pixels])

    expected = of_diffusers(
        model, "sd1", theirs, Image.fromarray(pixels), num_inference_steps=3, controlnet_conditioning_scale=0.7
    )
    assert np.abs(found - expected).max() < 0.5 / 255 + 1e-4
    plain = replace(recipe, controls=(ControlUse(MODEL, PICTURE, 0.7),))
    other = ours(model, plain, [loaded(theirs, "sd1", model, tmp_path / "n.safetensors")], [pixels])
    assert np.abs(found - other).max() > 1 / 255
