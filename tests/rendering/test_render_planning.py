"""What planning makes of a request, where no picture is needed to see it."""

import json
from pathlib import Path

import pytest
from running import SHARED

pytest.importorskip("torch")

from civman.domain.recipes.recipe import HiresRequest, LoraRequest, Recipe, RenderRequest
from civman.errors import CannotRender, CivmanError, UsageError
from civman.library import Library
from civman.planning.plan import Conditions
from civman.system.system_facts import computes_bfloat16

SHAPES = SHARED / "fixtures" / "models" / "tiny-shapes-v0.safetensors"
ON_CPU = Conditions(device="cpu")


@pytest.fixture
def held(library: Library, stocked: Path) -> Library:
    return library


def test_two_spellings_of_one_wish_are_one_recipe(held: Library) -> None:
    tagged = RenderRequest("tiny-sd1", "a cat <lora:ink:0.5:0.7>", sampler="DPM++ 2M", seed=1)
    named = RenderRequest(
        "tiny-sd1", "a cat", loras=(LoraRequest("ink", 0.7, 0.5),), sampler="dpmpp_2m", schedule="karras", seed=1
    )

    assert held.plan(tagged, ON_CPU).recipe == held.plan(named, ON_CPU).recipe


def test_what_is_usual_depends_on_the_family(held: Library) -> None:
    sizes = {kind: held.plan(RenderRequest(f"tiny-{kind}"), ON_CPU).recipe for kind in ("sd1", "sd2", "sdxl")}

    assert {kind: (recipe.width, recipe.height) for kind, recipe in sizes.items()} == {
        "sd1": (512, 512), "sd2": (512, 512), "sdxl": (1024, 1024),
    }  # fmt: skip
    assert {recipe.precision for recipe in sizes.values()} == {"float32"}


def test_the_fastest_precision_is_recorded_and_explained(held: Library) -> None:
    there = Conditions("cuda", is_device_there=True)
    usual, fast = (held.plan(RenderRequest("tiny-sdxl", precision=each, seed=1), there) for each in (None, "fast"))
    on_cpu = held.plan(RenderRequest("tiny-sdxl", precision="fast", seed=1), ON_CPU)

    assert (usual.recipe.precision, fast.recipe.precision) == ("float16", "bfloat16")
    assert fast.memory.vae < usual.memory.vae
    assert [notice for notice in fast.notices if "--fast" in notice] != []
    assert on_cpu.recipe.precision == ("bfloat16" if computes_bfloat16() else "float32")
    assert usual.notices == tuple(notice for notice in fast.notices if "--fast" not in notice)


def test_clip_skip_that_has_no_effect_is_said_and_not_recorded(held: Library) -> None:
    on_sd1 = held.plan(RenderRequest("tiny-sd1", clip_skip=2), ON_CPU)
    on_xl = held.plan(RenderRequest("tiny-sdxl", clip_skip=2), ON_CPU)

    assert (on_sd1.recipe.clip_skip, on_sd1.notices) == (2, ())
    assert on_xl.recipe.clip_skip == 1
    assert "clip skip has no effect" in on_xl.notices[0]


def test_a_silent_sd2_file_is_said_to_be_taken_for_epsilon(held: Library) -> None:
    assumed = held.plan(RenderRequest("tiny-sd2"), ON_CPU)
    told = held.plan(RenderRequest("tiny-sd2", prediction="v_prediction"), ON_CPU)

    assert assumed.recipe.prediction == "epsilon"
    assert any("epsilon is assumed" in notice for notice in assumed.notices)
    assert (told.recipe.prediction, told.notices) == ("v_prediction", ())
    assert (assumed.recipe.width, told.recipe.width) == (512, 768)


def test_the_second_pass_is_counted_in_the_memory_it_takes(held: Library) -> None:
    small = held.plan(RenderRequest("tiny-sd1", width=256, height=256), ON_CPU)
    large = held.plan(RenderRequest("tiny-sd1", width=256, height=256, hires=HiresRequest(scale=3)), ON_CPU)

    assert large.needed_bytes > small.needed_bytes


@pytest.mark.skipif(not SHAPES.is_file(), reason="shared fixtures are not here")
def test_stated_dimensions_are_recorded_where_they_say_more_than_the_file(library: Library) -> None:
    bare = library.plan(RenderRequest(str(SHAPES), seed=1), ON_CPU).recipe
    stated = library.plan(
        RenderRequest(str(SHAPES), seed=1, config=str(SHAPES.with_name("tiny-shapes-v0-config"))), ON_CPU
    ).recipe

    assert bare.config == ""
    assert json.loads(stated.config)["unet"]["attention_head_dim"] == 4
    assert Recipe.from_json(stated.to_json()) == stated
    assert Recipe.from_json(bare.to_json()) == bare


def test_a_checkpoint_without_its_vae_names_what_is_missing(library: Library, tmp_path: Path) -> None:
    import tiny_models

    path = tiny_models.write(tmp_path / "bare.safetensors", "sd1", leave_out=("first_stage_model.",))

    with pytest.raises(CannotRender) as caught:
        library.plan(RenderRequest(str(path)), ON_CPU)

    assert caught.value.code == "missing-part"
    assert "VAE" in caught.value.message


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -101.0])
def test_scales_that_are_none_are_refused(held: Library, scale: float) -> None:
    with pytest.raises(UsageError):
        held.plan(RenderRequest("tiny-sd1", loras=(LoraRequest("ink", scale),)), ON_CPU)


def test_recipes_of_files_that_are_not_here_say_how_to_get_them(library: Library, held: Library) -> None:
    recipe = held.plan(RenderRequest("tiny-sd1", "a cat"), ON_CPU).recipe
    for asset in held.files.find("tiny-sd1"):
        held.context.index.forget(asset)
        held.context.index.forget_seen([asset.path])

    with pytest.raises(CivmanError) as caught:
        held.plan(recipe)

    assert caught.value.code == "not-found"
    assert f"civman download sha256:{recipe.checkpoint}" in caught.value.hint
