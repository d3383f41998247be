# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Unions of ControlNets: both layouts load to the same module, and images equal those of diffusers' own pipeline."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny_models
from PIL import Image
from safetensors.torch import save_file
from test_controlnet import MODEL, PICTURE, SPARED, original_name, ours, picture, recipe_with
from test_run import prompt

from civman.diffusion.control_models import active_controls, load_control
from civman.diffusion.diffusers_pipeline import pipeline_of
from civman.diffusion.loader import LoadedModel, load
from civman.diffusion.pipeline_scheduler import PipelineScheduler
from civman.domain.recipes.control import CONTROL_TYPES, ControlUse, control_type
from civman.errors import CannotRender

CPU = torch.device("cpu")


def union(kinds: int = 6) -> Any:
    """diffusers' own union with random weights everywhere, also where training starts at zero."""
    from diffusers import ControlNetUnionModel

    unet = {k: v for k, v in tiny_models.KINDS["sdxl"]["unet"].items() if k not in SPARED}
    torch.manual_seed(5)
    made = ControlNetUnionModel(
        **unet, conditioning_embedding_out_channels=(4, 6, 8, 12), num_control_type=kinds, num_trans_channel=16,
        num_proj_channel=16, num_trans_layer=2,
    ).eval()  # fmt: skip
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    return made


def of_file(module: Any, model: LoadedModel, path: Path, layout: str = "diffusers") -> Any:
    state = {name: value.contiguous() for name, value in module.state_dict().items()}
    if layout == "original":
        prefixes = tiny_models.unet_prefixes(tiny_models.KINDS["sdxl"]["unet"])
        own = ("task_embedding", "transformer_layes.", "spatial_ch_projs.", "control_add_embedding.")
        state = {
            f"control_model.{name if name.startswith(own) else original_name(name, prefixes)}": value
            for name, value in state.items()
        }
    save_file(state, path)
    return load_control(path, model, device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize("kinds", [6, 8])
def test_both_layouts_load_with_every_tensor(
    tiny_files: dict[str, Path], tmp_path: Path, layout: str, kinds: int
) -> None:
    theirs, model = union(kinds), load(tiny_files["sdxl"], dtype=torch.float32)

    found = of_file(theirs, model, tmp_path / "union.safetensors", layout).module

    expected = dict(theirs.named_parameters())
    assert {name for name, _ in found.named_parameters()} == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.named_parameters())
    assert found.config.num_control_type == kinds


def of_diffusers(model: LoadedModel, theirs: Any, images: list[Any], kinds: list[int], **options: Any) -> Any:
    """The image of diffusers' own union pipeline, with civman's Euler behind its scheduler interface."""
    from diffusers import StableDiffusionXLControlNetUnionPipeline

    plain = pipeline_of(load(model.path, dtype=torch.float32, for_diffusers=True))
    parts = {key: value for key, value in plain.components.items() if key != "image_encoder"}
    pipe = StableDiffusionXLControlNetUnionPipeline(**parts, controlnet=theirs, force_zeros_for_empty_prompt=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = PipelineScheduler("Euler")
    given = prompt(model)
    return pipe(
        prompt_embeds=given.cond, negative_prompt_embeds=given.uncond, pooled_prompt_embeds=given.pooled,
        negative_pooled_prompt_embeds=given.uncond_pooled, control_image=[Image.fromarray(each) for each in images],
        control_mode=kinds, guidance_scale=4.0, height=64, width=64, num_inference_steps=3,
        generator=torch.Generator().manual_seed(7), output_type="np", **options,
    ).images[0]  # fmt: skip


@pytest.mark.parametrize(("kind", "weight"), [(0, 1.0), (3, 0.4), (6, 0.4)])
def test_an_image_with_one_kind_equals_that_of_diffusers(
    tiny_files: dict[str, Path], tmp_path: Path, kind: int, weight: float
) -> None:
    model, theirs, pixels = load(tiny_files["sdxl"], dtype=torch.float32), union(8), picture()
    recipe = recipe_with(ControlUse(MODEL, PICTURE, weight, type=CONTROL_TYPES[kind]), sampler="Euler", steps=3)

    found = ours(model, recipe, [of_file(theirs, model, tmp_path / "u.safetensors")], [pixels])

    expected = of_diffusers(model, theirs, [pixels], [kind], controlnet_conditioning_scale=weight)
    assert np.abs(found - expected).max() < 0.5 / 255 + 1e-4
    assert np.abs(found - ours(model, recipe_with(sampler="Euler", steps=3), [], [])).max() > 2 / 255


@pytest.mark.parametrize(("kinds", "weight"), [([0, 3], 1.0), ([1, 4, 2], 0.6)])
def test_an_image_with_several_kinds_equals_that_of_diffusers(
    tiny_files: dict[str, Path], tmp_path: Path, kinds: list[int], weight: float
) -> None:
    model, theirs = load(tiny_files["sdxl"], dtype=torch.float32), union()
    pictures = [picture(number) for number in range(len(kinds))]
    uses = [ControlUse(MODEL, PICTURE, weight, type=CONTROL_TYPES[kind]) for kind in kinds]
    own = of_file(theirs, model, tmp_path / "u.safetensors")

    found = ours(model, recipe_with(*uses, sampler="Euler", steps=3), [own] * len(kinds), pictures)

    expected = of_diffusers(model, theirs, pictures, kinds, controlnet_conditioning_scale=weight)
    assert np.abs(found - expected).max() < 0.5 / 255 + 1e-4


def test_each_image_of_a_union_has_its_own_weight_and_steps(tiny_files: dict[str, Path], tmp_path: Path) -> None:
    model, theirs, given = load(tiny_files["sdxl"], dtype=torch.float32), union(), None
    own = of_file(theirs, model, tmp_path / "u.safetensors")
    uses = [ControlUse(MODEL, PICTURE, 0.7, 0.0, 0.5, type="depth"), ControlUse(MODEL, PICTURE, 0.3, type="normal")]
    pictures = [picture(1), picture(2)]
    images = [torch.from_numpy(each).permute(2, 0, 1)[None] / 255 for each in pictures]
    x, given = torch.randn(2, 4, 8, 8), prompt(model)
    added = {"text_embeds": torch.cat([given.pooled, given.uncond_pooled]), "time_ids": torch.rand(2, 6)}
    asked = (x, torch.tensor(5.0), torch.cat([given.cond, given.uncond]))

    (active,) = active_controls([(own, use, each) for use, each in zip(uses, pictures, strict=True)], (64, 64), CPU)
    with torch.no_grad():
        for step, places in ((0, [0, 1]), (3, [1])):
            acting = active.at(step, 4)
            assert acting is not None
            found = acting.additions(*asked, added, [True, False]).residuals
            kinds = [[1, 4][place] for place in places]
            skips, middle = theirs(
                x, asked[1], encoder_hidden_states=asked[2], added_cond_kwargs=added, return_dict=False,
                controlnet_cond=[images[place].expand(2, -1, -1, -1) for place in places], control_type_idx=kinds,
                control_type=torch.tensor([[float(kind in kinds) for kind in range(6)]] * 2),
                conditioning_scale=[[0.7, 0.3][place] for place in places],
            )  # fmt: skip
            for one, other in zip(found, [*skips, middle], strict=True):
                torch.testing.assert_close(one, other)


def test_unions_in_different_modes_are_computed_apart(tiny_files: dict[str, Path], tmp_path: Path) -> None:
    model = load(tiny_files["sdxl"], dtype=torch.float32)
    own = of_file(union(), model, tmp_path / "u.safetensors")
    uses = [ControlUse(MODEL, PICTURE, mode=mode, type="depth") for mode in ("balanced", "prompt", "balanced")]

    found = active_controls([(own, use, picture()) for use in uses], (64, 64), CPU)

    assert len(found) == 2


def test_the_names_of_kinds_are_those_of_a1111() -> None:
    named = {"OpenPose": 0, "Depth": 1, "Soft Edge": 2, "Hard Edge": 3, "Normal Map": 4, "Segmentation": 5, "Tile": 6,
             "Inpaint": 7, "scribble": 2, "canny": 3, "lineart": 3, "mlsd": 3, "blur": 6}  # fmt: skip

    assert {name: CONTROL_TYPES.index(control_type(name) or "") for name in named} == named
    assert control_type("shuffle") is None


def test_a_union_of_unknown_size_is_refused(tiny_files: dict[str, Path], tmp_path: Path) -> None:
    model, state = load(tiny_files["sdxl"], dtype=torch.float32), dict(union().state_dict())
    state["control_add_embedding.linear_1.weight"] = torch.zeros(64, 99)
    save_file(state, tmp_path / "odd.safetensors")

    with pytest.raises(CannotRender, match="has a width that no known union ControlNet has"):
        load_control(tmp_path / "odd.safetensors", model, device=CPU, dtype=None)
