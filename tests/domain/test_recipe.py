"""A recipe says everything, reads back as itself, and its digest depends on nothing but what it says."""

import hashlib
import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from civman.domain.digests import Sha256
from civman.domain.recipes.complete import Resolved, complete
from civman.domain.recipes.control import ControlUse
from civman.domain.recipes.faces import FaceRestoration
from civman.domain.recipes.recipe import (
    SCHEMA,
    CheckpointUse,
    EmbeddingUse,
    Flow,
    Hires,
    HiresRequest,
    HypernetworkUse,
    LoraUse,
    Recipe,
    RecipeFile,
    Refiner,
    RenderRequest,
    Sampling,
    StartImage,
    Thresholding,
    canonical,
)
from civman.domain.recipes.reference import EditImage, ReferenceUse
from civman.errors import UsageError

A, B = Sha256("a" * 64), Sha256("b" * 64)
FOUND = Resolved(
    checkpoint=A, native_size=512, prediction="epsilon", is_zero_snr=False, precision="float32", sampler="DPM++ 2M",
    schedule="Karras", seed=42,
)  # fmt: skip
FULL = Recipe(
    checkpoint=A, prompt="a harbour at dawn, naïve ☃", negative_prompt="blurry", sampler="DPM++ 2M SDE",
    schedule="Karras", steps=30, guidance_scale=5.5, width=768, height=512, seed=7, clip_skip=2,
    prediction="v_prediction", is_zero_snr=True, precision="float16", guidance_rescale=0.7, count=4, batch_size=2,
    rng="nv", eta_seed_delta=31337, pad_prompts=True, rounding="down", vae=B, loras=(LoraUse(B, 0.8, 0.5),),
    embeddings=(EmbeddingUse(B, "bad-hands"),), start=StartImage(A, 0.6, B, 8),
    hires=Hires(1536, 1024, 15, 0.4, "lanczos"),
)  # fmt: skip

sha256s = st.binary(min_size=32, max_size=32).map(lambda raw: Sha256(raw.hex()))
scales = st.floats(-4, 4)
sides = st.integers(1, 256).map(lambda n: 8 * n)
recipes = st.builds(
    Recipe, checkpoint=sha256s, prompt=st.text(), negative_prompt=st.text(), sampler=st.text(), schedule=st.text(),
    steps=st.integers(1, 999), guidance_scale=st.floats(0, 100), width=sides, height=sides,
    seed=st.integers(0, 2**63), clip_skip=st.integers(1, 12), prediction=st.sampled_from(["epsilon", "v_prediction"]),
    is_zero_snr=st.booleans(), precision=st.sampled_from(["float32", "float16", "bfloat16"]),
    guidance_rescale=st.floats(0, 1), count=st.integers(1, 99), batch_size=st.integers(1, 9),
    rng=st.sampled_from(["cpu", "nv"]), eta_seed_delta=st.integers(0, 99999), pad_prompts=st.booleans(),
    rounding=st.sampled_from(["nearest", "down"]), vae=st.none() | sha256s,
    loras=st.lists(st.builds(LoraUse, sha256s, scales, scales), max_size=3).map(tuple),
    embeddings=st.lists(st.builds(EmbeddingUse, sha256s, st.text()), max_size=2).map(tuple),
    start=st.none() | st.builds(StartImage, sha256s, st.floats(0.01, 1), st.none() | sha256s, st.integers(0, 64)),
    hires=st.none() | st.builds(Hires, sides, sides, st.integers(1, 99), st.floats(0.01, 1), st.just("latent")),
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault of the recipe
@given(recipes)
def test_a_recipe_reads_back_as_itself(recipe: Recipe) -> None:
    again = Recipe.from_json(recipe.to_json())

    assert again == recipe
    assert again.sha256 == recipe.sha256


@given(recipes, st.randoms())
def test_the_digest_does_not_depend_on_the_order_of_keys_or_on_spaces(recipe: Recipe, random: object) -> None:
    value = json.loads(recipe.to_json())
    keys = list(value)
    random.shuffle(keys)  # type: ignore[attr-defined]

    again = Recipe.from_json(json.dumps({key: value[key] for key in keys}, indent=3))

    assert again.sha256 == recipe.sha256


def test_the_digest_is_the_sha256_of_the_canonical_text() -> None:
    assert FULL.sha256 == hashlib.sha256(FULL.to_json().encode()).hexdigest()
    assert json.loads(FULL.to_json())["schema"] == 3
    assert list(json.loads(FULL.to_json())) == sorted(json.loads(FULL.to_json()))


def test_the_canonical_text_of_a_known_recipe_never_changes() -> None:
    # a change here makes every stored recipe's digest wrong: raise the schema instead
    assert replace(FULL, rules=2).sha256 == "2ee0083940be37da3b384b67ac2ac5ba56fd1a840d8a84e5b898856cb4dc0985"


def test_a_recipe_of_the_second_schema_keeps_its_text_and_its_digest() -> None:
    old = replace(FULL, rules=1)

    assert old.sha256 == "0af93793895d0d76d8ee0bb0439ecc05e4146fb43b99cef898ba9be2ce52276b"
    assert json.loads(old.to_json())["schema"] == 2
    assert Recipe.from_json(old.to_json()) == old
    assert Recipe.from_json(old.to_json()).rules == 1


def test_an_earlier_recipe_with_a_later_setting_has_the_later_schema_and_its_own_rules() -> None:
    old = replace(FULL, rules=1, odd_sizes="a1111")

    assert json.loads(old.to_json())["schema"] == 3
    assert Recipe.from_json(old.to_json()) == old


def test_only_a_recipe_that_needs_the_fourth_schema_is_written_in_it() -> None:
    for more in ({"prompt_rules": "a1111-1.6"}, {"rng": "nv:43008"}, {"variation_strength": 0.5, "count": 1}):
        for rules in (1, 2):
            new = replace(FULL, rules=rules, **more)  # type: ignore[arg-type]
            assert json.loads(new.to_json())["schema"] == 4
            assert Recipe.from_json(new.to_json()) == new


FIFTH: list[dict[str, object]] = [
    {"sampling": Sampling(drop_penultimate=True)}, {"sampling": Sampling(half_levels=True), "is_zero_snr": False},
    {"emphasis": "no norm"}, {"fit_negative": True, "pad_prompts": False},
    {"hypernetworks": (HypernetworkUse(A, 0.5),), "files": ()},
    {"loras": (LoraUse(A, 1.0, 0.5), LoraUse(A, 0.5, 0.5, "1" + ",0" * 16)), "files": ()}, {"token_merging": 0.5},
    {"thresholding": Thresholding(), "guidance_rescale": 0.0},
    {"skip_negative_below": 1.0}, {"skip_early_guidance": 0.2},
]  # fmt: skip
"""Changes that need the fifth schema."""


@pytest.mark.parametrize("change", FIFTH, ids=str)
def test_only_a_recipe_that_needs_the_fifth_schema_is_written_in_it(change: dict[str, object]) -> None:
    for rules in (2, 3):
        new = replace(FULL, rules=rules, **change)  # type: ignore[arg-type]
        assert json.loads(new.to_json())["schema"] == 5
        assert Recipe.from_json(new.to_json()) == new


@pytest.mark.parametrize(
    "change",
    [{"sampling": Sampling(half_levels=True), "is_zero_snr": True}, {"sampling": Sampling(half_levels=True),
     "rules": 1}, {"sampling": Sampling(drop_penultimate=True), "rules": 1}],
    ids=str,
)  # fmt: skip
def test_old_levels_that_no_rule_covers_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        replace(FULL, **change)  # type: ignore[arg-type]
    assert caught.value.code == "bad-recipe"


@pytest.mark.parametrize(
    "change",
    [{"prompt_rules": "a1111-9"}, {"rng": "nv:1000"}, {"rng": "nv:x"}, {"variation_strength": 1.5},
     {"variation_strength": 0.1, "count": 2}, {"variation_seed": -1}, {"seed_resize_width": 512},
     {"seed_resize_width": 4, "seed_resize_height": 4}],
    ids=str,
)  # fmt: skip
def test_noise_and_prompts_that_no_rule_covers_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        replace(FULL, **change)  # type: ignore[arg-type]
    assert caught.value.code == "bad-recipe"


def test_a_card_s_name_is_its_number_of_threads() -> None:
    for name in ("RTX 3060", "nv:rtx 3060", "NVIDIA GeForce RTX 3060", "3060", "nv:43008"):
        assert complete(RenderRequest(checkpoint="x", rng=name), FOUND).rng == "nv:43008"


def test_a_recipe_of_the_first_schema_is_still_read() -> None:
    value = json.loads(replace(FULL, rules=1).to_json()) | {"schema": 1}
    for later in ("config", "files", "sampling"):
        del value[later]
    text = canonical(value)
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "7b711a1d749068c56a4a3f080574c7a8569117a38725312405374a0c148ae3d8"
    ), "not what schema 1 wrote"

    assert Recipe.from_json(text) == replace(FULL, rules=1)


def test_keyframes_of_scales_need_the_tenth_schema() -> None:
    for use in (LoraUse(A, 0.0, 0.5, "", "0@0,1@0.5"), LoraUse(A, 1.0, 1.0, "", "", "0.5@0")):
        new = replace(FULL, loras=(use,), files=(), hires=Hires(128, 128, 4, 0.7, "latent"))
        assert json.loads(new.to_json())["schema"] == 10
        assert Recipe.from_json(new.to_json()) == new
    for wrong in (
        LoraUse(A, 0.5, 0.5, "", "0@0,1@0.5"), LoraUse(A, 0.0, 0.0, "", "0@0,1"), LoraUse(A, 1.0, 1.0, "", "", "1@0"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=r"first step|keyframes|second pass"):
            replace(FULL, loras=(wrong,), files=(), hires=None)


def test_only_a_recipe_with_slots_is_written_in_their_schema() -> None:
    alone = replace(FULL, batch_size=1)

    new = replace(alone, slots=4)

    assert json.loads(new.to_json())["schema"] == 13
    assert Recipe.from_json(new.to_json()) == new
    assert "slots" not in json.loads(alone.to_json())
    assert (new.at_a_time, alone.at_a_time, FULL.at_a_time) == (4, 1, 2)


@pytest.mark.parametrize(
    "change", [{"slots": 1}, {"slots": 257}, {"slots": -1}, {"slots": 2, "batch_size": 2}], ids=str
)
def test_slots_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="slots"):
        replace(FULL, **{"batch_size": 1} | change)


def test_only_a_recipe_with_a_cropped_control_image_is_written_in_its_schema() -> None:
    start = StartImage(A, 0.5, B, only_masked=True)
    for crops, schema in ((True, 20), (False, 6)):
        recipe = replace(FULL, start=start, controls=(ControlUse(A, B, crops=crops),), files=())
        assert json.loads(recipe.to_json())["schema"] == schema
        assert Recipe.from_json(recipe.to_json()) == recipe
    with pytest.raises(UsageError, match="to crop a control image"):
        replace(recipe, start=None, controls=(ControlUse(A, B, crops=True),))


def test_values_of_the_second_pass_and_a_refiner_need_the_schema_that_added_them() -> None:
    hires, other = Hires(128, 128, 4, 0.7, "latent"), CheckpointUse(A, "v_prediction", is_zero_snr=True)
    own: tuple[dict[str, Any], ...] = (
        {"prompt": ""}, {"negative_prompt": "b"}, {"loras": ()}, {"loras": (LoraUse(A, 0.5, 0.25),)},
        {"hypernetworks": (HypernetworkUse(A, 0.5),)}, {"checkpoint": other},
    )  # fmt: skip
    recipes = [replace(FULL, files=(), hires=replace(hires, **each)) for each in own]
    recipes.append(replace(FULL, files=(), hires=hires, refiner=Refiner(other, 0.25, True, "both", False)))

    for recipe in recipes:
        assert json.loads(recipe.to_json())["schema"] == 18
        assert Recipe.from_json(recipe.to_json()) == recipe
    assert len({recipe.sha256 for recipe in recipes}) == len(recipes)
    assert json.loads(replace(FULL, files=(), hires=hires).to_json())["schema"] < 18
    for changes, why in (
        ({"rules": 1}, "rules 1"),
        ({"hires": replace(hires, loras=(LoraUse(A, 1.0, 1.0, "1,2"),))}, "block weights"),
        ({"hires": replace(hires, checkpoint=replace(other, prediction="x"))}, "prediction"),
        ({"refiner": Refiner(other, 1.5)}, "0 to 1"),
        ({"refiner": Refiner(other, 0.5, passes="third")}, "first, second, both"),
        ({"files": (RecipeFile(FULL.checkpoint, 5),)}, "list of files"),
    ):
        with pytest.raises(UsageError, match=why):
            replace(FULL, **{"files": (), "hires": replace(hires, prompt="a")} | changes)


def test_whole_numbers_are_read_where_fractions_are_meant() -> None:
    value = json.loads(FULL.to_json()) | {"guidance_scale": 5}

    assert Recipe.from_json(json.dumps(value)) == replace(FULL, guidance_scale=5.0)
    assert Recipe.from_json(json.dumps(value)).sha256 == replace(FULL, guidance_scale=5.0).sha256


@pytest.mark.parametrize("name", [field.name for field in fields(Recipe)])
def test_nothing_may_be_left_out(name: str) -> None:
    faces = FaceRestoration("gfpgan", FULL.checkpoint, FULL.checkpoint, FULL.checkpoint)
    refiner = Refiner(CheckpointUse(A, "epsilon", is_zero_snr=False), 0.8)
    full = replace(
        FULL, start=StartImage(A, 0.5, B, only_masked=True), controls=(ControlUse(A, B, crops=True),),
        hires=None, variant="kontext", faces=faces,
        refiner=refiner, files=(),
        references=(ReferenceUse(A, B, A),),
    )  # fmt: skip
    # reference images of edit models need a flow-matching model, and IP-Adapters a UNet
    value = json.loads(full.to_json()) | {"schema": SCHEMA, "edit_images": []}
    assert set(value) == {field.name for field in fields(Recipe)} | {"schema"}
    assert Recipe.from_json(json.dumps(value)) == full
    del value[name]

    with pytest.raises(UsageError, match=f"`recipe.{name}` is missing"):
        Recipe.from_json(json.dumps(value))


@pytest.mark.parametrize(
    "change",
    [{"checkpoint": "abc"}, {"steps": "20"}, {"steps": True}, {"prompt": None}, {"loras": {}}, {"loras": [1]},
     {"unheard_of": 1}, {"start": {"sha256": A}}, {"guidance_scale": "7"}, {"steps": 0}, {"width": 63},
     {"width": 0}, {"precision": "int8"}, {"rng": "gpu"}, {"seed": -1}, {"guidance_scale": -1.0}, {"count": 0}],
    ids=str,
)  # fmt: skip
def test_what_is_no_recipe_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        Recipe.from_json(json.dumps(json.loads(FULL.to_json()) | change))

    assert caught.value.code == "bad-recipe"


@pytest.mark.parametrize(
    ("seed", "count", "delta"), [(2**64 - 1, 1, 0), (2**64 - 4, 4, 0), (2**64 - 8, 4, 4), (0, 1, 0)]
)
def test_seeds_go_as_far_as_torch_s(seed: int, count: int, delta: int) -> None:
    assert replace(FULL, seed=seed, count=count, eta_seed_delta=delta).seed == seed


@pytest.mark.parametrize(
    ("seed", "count", "delta"), [(2**64, 1, 0), (2**64 - 3, 4, 0), (2**64 - 8, 4, 5), (-1, 1, 0), (3, 1, -4)]
)
def test_a_seed_beyond_torch_s_is_refused(seed: int, count: int, delta: int) -> None:
    with pytest.raises(UsageError, match=r"seed .*must be 0 to 184467440737095"):
        replace(FULL, seed=seed, count=count, eta_seed_delta=delta)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"schema": "1"}', "{"])
def test_other_texts_are_no_recipes(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Recipe.from_json(text)

    assert caught.value.code == "bad-recipe"


def test_a_later_schema_says_to_update() -> None:
    with pytest.raises(UsageError) as caught:
        Recipe.from_json(json.dumps(json.loads(FULL.to_json()) | {"schema": SCHEMA + 1}))

    assert caught.value.code == "newer-recipe"


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(number: float) -> None:
    with pytest.raises(UsageError):
        replace(FULL, guidance_scale=number)


def test_a_bare_request_gets_what_is_usual() -> None:
    recipe = complete(RenderRequest(checkpoint="a model", prompt="a cat"), FOUND)

    assert (recipe.width, recipe.height, recipe.steps, recipe.guidance_scale) == (512, 512, 20, 7.0)
    assert (recipe.seed, recipe.sampler, recipe.schedule) == (42, "DPM++ 2M", "Karras")
    assert (recipe.count, recipe.batch_size, recipe.start, recipe.hires) == (1, 1, None, None)


def test_what_was_asked_for_wins() -> None:
    request = RenderRequest(
        checkpoint="a model", prompt="a cat", width=640, height=448, steps=9, guidance_scale=3, seed=5, count=8,
        batch_size=4, strength=0.3, hires=HiresRequest(scale=1.5),
    )  # fmt: skip
    recipe = complete(request, replace(FOUND, init_image=B))

    assert (recipe.width, recipe.height, recipe.steps, recipe.seed, recipe.batch_size) == (640, 448, 9, 5, 4)
    assert recipe.start == StartImage(B, 0.3)
    assert recipe.hires == Hires(960, 672, 9, 0.7, "latent")
    assert isinstance(recipe.guidance_scale, float)


def test_impossible_sizes_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UsageError, match="multiples of 8"):
        complete(RenderRequest(checkpoint="a model", width=500), FOUND)


def test_only_a_pooled_controlnet_needs_the_schema_that_added_it() -> None:
    pooled = replace(FULL, rules=3, controls=(ControlUse(A, B, pools=True),))

    assert json.loads(pooled.to_json())["schema"] == 17
    assert Recipe.from_json(pooled.to_json()) == pooled


def test_only_the_kind_of_a_control_image_needs_the_schema_that_added_it() -> None:
    plain, union = ControlUse(A, B), ControlUse(A, B, type="openpose")

    recipes = [replace(FULL, rules=3, controls=uses) for uses in ((plain,), (union,), (plain, union))]

    assert [json.loads(each.to_json())["schema"] for each in recipes] == [6, 11, 11]
    assert [Recipe.from_json(each.to_json()) for each in recipes] == recipes
    assert "type" not in json.loads(recipes[0].to_json())["controls"][0]


def test_only_a_recipe_with_an_edit_model_s_image_needs_the_schema_that_added_it() -> None:
    plain = replace(
        FULL, prediction="flow", flow=Flow(3.0, 10000), rules=3, is_zero_snr=False, hires=None, controls=(), start=None,
        embeddings=(), files=(),
    )  # fmt: skip
    image = EditImage(A, 1248, 832, (1, 2, 3, 4))
    new = replace(plain, edit_images=(image, EditImage(B, 64, 64)))

    assert json.loads(plain.to_json())["schema"] < json.loads(new.to_json())["schema"] == 21
    assert Recipe.from_json(new.to_json()) == new
    assert Recipe.from_json(replace(new, edit_images=()).to_json()) == plain
    for change in ({"width": 8}, {"height": 4097}, {"crop": (1, 2, 3)}, {"crop": (0, 0, 0, 4)}):
        with pytest.raises(UsageError):
            replace(plain, edit_images=(replace(image, **change),))
    with pytest.raises(UsageError, match="only flow-matching models"):
        replace(FULL, edit_images=(image,))


def test_only_a_recipe_with_a_reference_needs_the_schema_that_added_it() -> None:
    use = ReferenceUse(A, B, A, 0.5, 0.1, 0.9, (1, 2, 3, 4))
    new = replace(FULL, references=(use,))

    assert json.loads(new.to_json())["schema"] == 14
    assert Recipe.from_json(new.to_json()) == new
    assert Recipe.from_json(replace(new, references=()).to_json()) == FULL
    wrong = ({"weight": 11.0}, {"start": 0.9, "end": 0.1}, {"end": 1.5}, {"crop": (1, 2, 3)}, {"crop": (0, 0, 0, 4)})
    for change in wrong:
        with pytest.raises(UsageError):
            replace(FULL, references=(replace(use, **change),))
