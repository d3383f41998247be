"""Settings of other people's images: what becomes a recipe, what differs, what cannot be drawn, and why."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import SHARED, Civman

from civman.domain.digests import Sha256
from civman.planning.redraw import redraw
from civman.planning.redraw_tiles import SourceImage
from civman.prompts import emphasis

ROWS = SHARED / "fixtures" / "real-settings" / "rows.jsonl"
PLAIN: dict[str, Any] = {
    "prompt": "a cat", "negativePrompt": "bad", "steps": 20, "sampler": "Euler a", "cfgScale": 7, "seed": 5,
    "Size": "512x512", "Model": "some-model", "Model hash": "bb4f4d123e", "Version": "v1.10.1", "VAE": "None",
    "Clip skip": "2",
}  # fmt: skip


SOURCE = SourceImage(Path("source.png"), Sha256("a" * 64), (512, 512))


def read(base: str = "SD 1.5", **changes: Any) -> dict[str, Any]:
    meta = {key: value for key, value in (PLAIN | changes).items() if value is not None}
    return redraw({"id": 1, "baseModel": base, "meta": meta}).value()


def test_what_is_wholly_expressed_is_exact() -> None:
    found = read()

    assert (found["drawable"], found["reasons"]) == ("exact", [])
    assert found["resources"] == [{"role": "checkpoint", "name": "some-model", "hash": "bb4f4d123e", "weight": None}]
    recipe = found["recipe"]
    assert (recipe["sampler"], recipe["schedule"], recipe["steps"], recipe["seed"]) == ("Euler a", "Normal", 20, 5)
    assert (recipe["width"], recipe["height"], recipe["clip_skip"], recipe["rng"]) == (512, 512, 2, "nv")
    assert (recipe["rounding"], recipe["odd_sizes"]) == ("down", "a1111")


@pytest.mark.parametrize(
    ("changes", "entry", "value"),
    [
        # a name without a schedule means Normal up to 1.8, and Automatic since
        ({"sampler": "DPM++ 2M", "Version": "v1.8.0"}, "schedule", "Normal"),
        ({"sampler": "DPM++ 2M"}, "schedule", "Karras"),
        ({"sampler": "DPM++ 2M Karras", "Version": "v1.3.2-RC-1-gbaf6946e"}, "schedule", "Karras"),
        ({"sampler": "DPM++ 2M", "Schedule type": "Exponential"}, "schedule", "Exponential"),
        ({"sampler": "DPM++ 2M", "Version": "f2.0.1v1.10.1-previous-659"}, "schedule", "Karras"),
        ({"prompt": "[a:b:0.5]"}, "prompt_rules", "a1111-1.6"),
        ({"prompt": "[a:b:0.5]", "Version": "v1.5.1"}, "prompt_rules", "a1111-1.3"),
        ({"prompt": "[a:b:0.5]", "Version": "v1.2.1"}, "prompt_rules", "a1111-1.0"),
        ({"prompt": "[a:b:0.5]", "Version": None}, "prompt_rules", "a1111-1.0"),
        ({"prompt": "a AND b"}, "prompt_rules", "a1111-1.6"),
        ({"ENSD": "31337"}, "eta_seed_delta", 31337),
        ({"ENSD": "-2", "Version": "v1.5.1"}, "eta_seed_delta", 0),
        ({"ENSD": "-2"}, "eta_seed_delta", -2),
        ({"RNG": "CPU"}, "rng", "cpu"),
        ({"Variation seed": "9", "Variation seed strength": "0.2"}, "variation_seed", 9),
        ({"Variation seed": "9", "Variation seed strength": "0"}, "variation_seed", 0),
        ({"Seed resize from": "512x384"}, "seed_resize_height", 384),
        ({"Seed resize from": "-1x-1"}, "seed_resize_width", 0),
        ({"Clip skip": None, "clipSkip": 3}, "clip_skip", 3),
        ({"Size": "515x512"}, "width", 512),
        ({"Hires upscale": "1.5", "Hires upscaler": "Latent", "Denoising strength": "0.6", "Size": "256x256"}, "hires",
         {"width": 384, "height": 384, "steps": 20, "strength": 0.6, "upscaler": "Latent", "model": None,
          "token_merging": 0.0, "trim_width": 0, "trim_height": 0, "stretches": False}),
        ({"Hires resize": "0x384", "Hires steps": "9", "Denoising strength": "0.6", "Size": "256x256"}, "hires",
         {"width": 384, "height": 384, "steps": 9, "strength": 0.6, "upscaler": "Latent", "model": None,
          "token_merging": 0.0, "trim_width": 0, "trim_height": 0, "stretches": False}),
    ],
    ids=str,
)  # fmt: skip
def test_each_setting_has_the_meaning_of_its_version(changes: dict[str, Any], entry: str, value: object) -> None:
    found = read(**changes)["recipe"][entry]
    if isinstance(value, dict):
        assert value.items() <= found.items()
        found = value
    assert found == value


@pytest.mark.parametrize(
    ("version", "is_half"),
    [(None, True), ("v1.2.1", True), ("v1.6.1", True), ("v1.7.0", True), ("v1.7.0-224-gabcdef12", True),
     ("v1.7.0-225-gabcdef12", False), ("v1.8.0", False), ("v1.10.1", False), ("f2.0.1v1.10.1-previous-659", False)],
)  # fmt: skip
def test_noise_levels_were_rounded_to_half_precision_until_1_8(version: str | None, is_half: bool) -> None:
    assert read(Version=version)["recipe"]["sampling"]["half_levels"] == is_half
    later = read(**{"Version": version, "Downcast alphas_cumprod": "True"})
    assert later["recipe"]["sampling"]["half_levels"] is True


HALF_COSINE = {
    "Dynamic thresholding enabled": "True", "Mimic scale": "7", "Threshold percentile": "99.5",
    "Mimic mode": "half cosine up", "Mimic scale minimum": "3", "CFG mode": "Power Up", "CFG scale minimum": "2",
    "Scheduler value": "3", "Separate Feature Channels": "False", "Scaling Startpoint": "ZERO",
    "Variability Measure": "STD", "Interpolate Phi": "0.5",
}  # fmt: skip


def test_dynamic_thresholding_is_read_with_all_its_settings() -> None:
    found = read(**HALF_COSINE)

    assert found["drawable"] == "exact"
    assert found["recipe"]["thresholding"] == {
        "mimic_scale": 7.0, "percentile": 99.5, "mimic_mode": "Half Cosine Up", "mimic_minimum": 3.0,
        "cfg_mode": "Power Up", "cfg_minimum": 2.0, "power": 3.0, "per_channel": False, "starts_at_mean": False,
        "by_deviation": True, "phi": 0.5, "counts_calls": True,
    }  # fmt: skip
    assert read(**HALF_COSINE, Version="v1.5.1")["recipe"]["thresholding"]["counts_calls"] is False
    assert read(**HALF_COSINE | {"Dynamic thresholding enabled": "False"})["recipe"]["thresholding"] is None
    assert read(**HALF_COSINE | {"CFG mode": "Sideways"})["drawable"] == "no"


HIRES = {"Hires upscale": "1.5", "Denoising strength": "0.6", "Size": "256x256"}


def test_merged_tokens_and_skipped_prompts_are_read_for_both_passes() -> None:
    one = read(**HIRES, **{"Token merging ratio": "0.5"})["recipe"]
    assert (one["token_merging"], one["hires"]["token_merging"]) == (0.5, 0.5)
    two = read(**HIRES, **{"Token merging ratio hr": "0.3"})["recipe"]
    assert (two["token_merging"], two["hires"]["token_merging"]) == (0.0, 0.3)
    skipped = read(**{"NGMS": "1.2", "NGMS all steps": "True", "Skip Early CFG": "0.1"})
    assert skipped["drawable"] == "exact"
    names = ("skip_negative_below", "skip_negative_always", "skip_early_guidance")
    assert [skipped["recipe"][name] for name in names] == [1.2, True, 0.1]


def test_hypernetworks_are_named_by_tags_and_until_2023_by_entries() -> None:
    tagged = read(prompt="a <hypernet:x:0.5> b <hypernet:y>")
    assert [(use["name"], use["strength"]) for use in tagged["recipe"]["hypernetworks"]] == [("x", 0.5), ("y", 1.0)]
    assert tagged["recipe"]["prompt"] == "a  b "
    old = read(**{"Hypernet": "ink", "Hypernet hash": "D706261D", "Hypernet strength": "0.833"})
    assert old["recipe"]["hypernetworks"] == [{"name": "ink", "hash": "d706261d", "strength": 0.833}]
    assert {"role": "hypernetwork", "name": "ink", "hash": "d706261d", "weight": 0.833} in old["resources"]
    assert read(Hypernet="None")["recipe"]["hypernetworks"] == []


@pytest.mark.parametrize(
    ("listed", "named"),
    [
        ([("x", "29ca9f769878", 0.4)], ("x", "29ca9f769878")),
        ([("x", "29CA9F769878", None)], ("x", "29ca9f769878")),
        ([("x", "29ca9f769878", None), ("y", "39ca9f769878", None)], ("file-1", "")),
        ([("x", "29ca9f76", None)], ("file-1", "")),
    ],
    ids=["weight", "alone", "two", "other hash"],
)
def test_an_additional_network_has_the_hash_that_the_api_lists(listed: list[Any], named: tuple[str, str]) -> None:
    resources = [
        {"type": "lora", "name": name, "hash": digest} | ({} if weight is None else {"weight": weight})
        for name, digest, weight in listed
    ]
    found = read(**{"AddNet Enabled": "True", "AddNet Module 1": "LoRA", "AddNet Model 1": "file-1",
                    "AddNet Weight A 1": "0.4", "AddNet Weight B 1": "0.3"}, resources=resources)  # fmt: skip
    [lora] = found["recipe"]["loras"]
    assert (lora["name"], lora["hash"], lora["scale"], lora["text_scale"]) == (*named, 0.4, 0.3)


def test_emphasis_and_the_length_of_the_negative_prompt_follow_the_version() -> None:
    assert read(Emphasis="No norm")["recipe"]["emphasis"] == "no norm"
    assert read()["recipe"]["emphasis"] == "original"
    for changes, is_fitted in (
        ({"Version": "v1.5.1", "sampler": "DDIM"}, True), ({"Version": "v1.6.0", "sampler": "DDIM"}, False),
        ({"Version": "v1.5.1", "sampler": "Euler"}, False), ({"Version": None, "sampler": "UniPC"}, True),
        ({"Pad conds v0": "True"}, True), ({"Version": "v1.5.1", "sampler": "PLMS", "Pad conds": "True"}, False),
    ):  # fmt: skip
        assert read(**changes)["recipe"]["fit_negative"] == is_fitted, changes


@pytest.mark.parametrize(
    ("name", "base", "schedule"),
    [("DPM++ 2M Karras MOD", "DPM++ 2M", "Karras"), ("DPM++ 2M alt Karras", "DPM++ 2M", "Karras"),
     ("DPM++ 2M Karras v2", "DPM++ 2M", "Karras"), ("DPM++ 2M Test", "DPM++ 2M", "Normal")],
)  # fmt: skip
def test_a_private_sampler_is_replaced_by_the_one_it_was_made_from(name: str, base: str, schedule: str) -> None:
    found = read(sampler=name, Version="v1.5.1")

    assert (found["drawable"], found["recipe"]["sampler"], found["recipe"]["schedule"]) == ("differs", base, schedule)
    assert f"`{name}` is a sampler of a modified A1111" in found["reasons"][0]
    assert read(sampler="KKW Karras")["drawable"] == "no"


def test_a_dropped_level_is_part_of_the_recipe() -> None:
    found = read(**{"Discard penultimate sigma": "True"})
    assert (found["drawable"], found["recipe"]["sampling"]["drop_penultimate"]) == ("exact", True)


@pytest.mark.parametrize(
    ("changes", "verdict", "reason"),
    [
        ({"Size": "512x768"}, "differs", "depends on the graphics card"),
        ({"Size": "512x768", "RNG": "CPU"}, "exact", ""),
        ({"Emphasis": "Loud"}, "no", "emphasis"),
        ({"Version": None, "VAE": None}, "differs", "did not record the VAE"),
        ({"Model hash": None}, "differs", "without a hash"),
        (
            {"Hires upscaler": "Lanczos", "Hires upscale": "1.5", "Denoising strength": "0.5"},
            "differs",
            "between the passes, A1111 encodes the image",
        ),
        (
            {"Hires upscaler": "4x-UltraSharp", "Hires upscale": "2", "Denoising strength": "0.5"},
            "differs",
            "the upscaler `4x-UltraSharp` without a hash",
        ),
        ({"Hires upscaler": "Swin2SR_4x", "Hires upscale": "2", "Denoising strength": "0.5"}, "no", "Swin2SR_4x"),
        ({"Strange entry": "5"}, "differs", "`Strange entry`"),
        ({"Denoising strength": "0.5"}, "needs-input", "another image"),
        ({"Mask blur": "4", "Denoising strength": "0.5"}, "needs-input", "inpainted"),
        ({"Mask blur": "4", "Denoising strength": "0.5", "Version": None}, "needs-input", "another image"),
        ({"Image CFG scale": "1.5", "Denoising strength": "0.5"}, "no", "by instructions"),
        ({"ControlNet 0 Enabled": "True", "ControlNet 0 Model": "x"}, "needs-input", "ControlNet"),
        ({'"preprocessor': "canny", "model": "x", "weight": "1"}, "needs-input", "ControlNet"),
        ({"Face restoration": "CodeFormer"}, "differs", "faces"),
        ({"Face restoration": "None"}, "exact", ""),
        ({"Hypernetworks": "a, b"}, "no", "hypernetworks"),
        ({"prompt": "a <hypernet:x:strong>"}, "no", "no number"),
        ({"prompt": "a <lora:x:1:1,0,0,1>"}, "no", "block weights whose length"),
        ({"prompt": "a <lora:x:1:FACE>"}, "differs", "preset that civman does not"),
        ({"prompt": "a <lora:x:much>"}, "no", "no number"),
        ({"prompt": None}, "no", "no prompt"),
        ({"prompt": None, "seed": -1}, "no", "no prompt and no seed"),
        ({"steps": None, "sampler": "", "cfgScale": None}, "no", "no sampler, no steps and no CFG scale"),
        ({"seed": None}, "no", "no seed"),
        ({"sampler": None}, "no", "no sampler"),
        ({"sampler": "uni_pc_bh2"}, "no", "UniPC"),
        ({"steps": 5000}, "no", "steps must be"),
        ({"Size": "0x512"}, "no", "not a size"),
        ({"ADetailer model": "face_yolov8n.pt"}, "differs", "detector"),
        ({"Ultimate SD upscale upscaler": "x", "Denoising strength": "0.2"}, "needs-input", "Ultimate SD upscale"),
        (
            {"SD upscale upscaler": "x", "SD upscale overlap": "64", "Denoising strength": "0.2"},
            "needs-input",
            "--picture SOURCE",
        ),
        (
            {"First pass size": "0x0", "Denoising strength": "0.7"},
            "differs",
            "between the passes, A1111 encodes the image",
        ),
        ({"Parser": "Full parser"}, "differs", "SD.Next"),
        ({"Parser": "Fixed attention"}, "no", "SD.Next"),
        ({"Hires prompt": "other"}, "differs", "but no second pass"),
        ({"Wildcard prompt": "__x__"}, "exact", "template"),
        ({"Score": "6.5", "resources": []}, "exact", ""),
    ],
    ids=str,
)
def test_what_differs_or_cannot_be_drawn_says_why(changes: dict[str, Any], verdict: str, reason: str) -> None:
    found = read(**changes)

    assert found["drawable"] == verdict, found["reasons"]
    assert any(reason in words for words in found["reasons"]) or not reason


@pytest.mark.parametrize(
    ("stated", "tile"),
    [({"tile_width": "640", "tile_height": "0"}, (640, 640)), ({"tile_size": "768"}, (768, 768)), ({}, (512, 512))],
)
def test_ultimate_upscale_is_a_recipe_with_the_image_that_it_was_given(stated: dict[str, str], tile: Any) -> None:
    names = {"upscaler": "4x-UltraSharp", "mask_blur": "6", "padding": "24"} | stated
    meta = PLAIN | {f"Ultimate SD upscale {name}": value for name, value in names.items()}
    meta |= {"Size": "1024x1536", "Mask blur": "4", "Denoising strength": "0.3"}
    source = SourceImage(Path("source.png"), Sha256("a" * 64), (512, 768))

    found = redraw({"id": 1, "baseModel": "SD 1.5", "meta": meta, "source": source})

    assert found.made is not None, found.reasons
    made = found.made.ultimate
    assert made is not None
    assert (made.method, made.tile_width, made.tile_height, made.blur, made.padding) == ("model", *tile, 6, 24)
    assert (found.made.width, found.made.height, found.drawable) == (1024, 1536, "differs")
    assert found.recipe["ultimate"]["model"]["name"] == "4x-UltraSharp"
    assert not any("unknown to civman" in words for words in found.reasons)


FORMS = {
    "torn": {
        "\"{'Method'": "'MultiDiffusion'", "'Tile tile width'": "96", "'Tile tile height'": "80",
        "'Tile Overlap'": "40", "'Tile batch size'": "4", "'Upscaler'": "'4x-UltraSharp'", "'Upscale factor'": "2",
        "'Keep input size'": 'True}"', "Tiled Diffusion upscaler": "4x-UltraSharp", "Tiled Diffusion scale factor": "2",
    },
    "torn JSON": {
        '{"Method"': '"MultiDiffusion"', '"Tile tile width"': "96", '"Tile tile height"': "80", '"Tile Overlap"': "40",
        '"Upscaler"': '"4x-UltraSharp"', '"Upscale factor"': "2}",
    },
    "older names": {
        "\"{'Method'": "'MultiDiffusion'", "'Latent tile width'": "96", "'Latent tile height'": "80", "'Overlap'": "40",
        "'Upscaler'": "'4x-UltraSharp'", "'Scale factor'": "2", "'Keep input size'": 'True}"',
    },
    "flat": {
        "Tiled Diffusion method": "MultiDiffusion", "Tiled Diffusion tile width": "96",
        "Tiled Diffusion tile height": "80", "Tiled Diffusion overlap": "40", "Tiled Diffusion batch size": "2",
        "Tiled Diffusion upscaler": "4x-UltraSharp", "Tiled Diffusion scale factor": "2",
    },
    "Python": {
        "Tiled Diffusion": "{'Method': 'MultiDiffusion', 'Tile tile width': 96, 'Tile tile height': 80, "
        "'Tile Overlap': 40, 'Tile batch size': 4, 'Upscaler': '4x-UltraSharp', 'Upscale factor': 2, 'Keep input "
        "size': True}",
    },
    "JSON": {
        "Tiled Diffusion": '{"Method": "MultiDiffusion", "Tile tile width": 96, "Tile tile height": 80, '
        '"Tile Overlap": 40, "Upscaler": "4x-UltraSharp", "Upscale factor": 2}',
    },
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("version", "larger"), [("v1.3.2", (1026, 1536)), ("v1.6.0", (1024, 1536))])
def test_each_form_of_tiled_diffusion_is_read(form: str, version: str, larger: tuple[int, int]) -> None:
    meta = PLAIN | FORMS[form] | {"Size": "1024x1536", "Denoising strength": "0.3", "Version": version}
    source = SourceImage(Path("source.png"), Sha256("a" * 64), (513, 768))
    row = {"id": 1, "baseModel": "SD 1.5", "meta": meta}

    found, without = redraw(row | {"source": source}), redraw(row)

    assert found.made is not None, found.reasons
    made, enlarged = found.made.tiled_diffusion, found.made.input_upscale
    assert made is not None
    assert enlarged is not None
    assert (made.method, made.tile_width, made.tile_height, made.overlap) == ("MultiDiffusion", 96, 80, 40)
    assert (enlarged.method, enlarged.width, enlarged.height) == ("model", *larger)
    assert found.recipe["input_upscale"]["model"]["name"] == "4x-UltraSharp"
    assert (found.drawable, without.drawable) == ("differs", "needs-input")
    assert not any("unknown to civman" in words for words in (*found.reasons, *without.reasons))


def test_tiled_diffusion_without_an_image_is_exact_and_what_it_adds_is_refused() -> None:
    plain = {"Tiled Diffusion": '{"Method": "Mixture of Diffusers", "Tile tile width": 64, "Tile tile height": 64}'}
    found = redraw({"id": 1, "baseModel": "SD 1.5", "meta": PLAIN | plain})
    assert (found.drawable, found.reasons) == ("exact", ())
    assert found.made is not None
    assert found.made.tiled_diffusion is not None
    assert found.made.tiled_diffusion.method == "Mixture of Diffusers"
    for more, words in (("'NoiseInv'", "noise inversion"), ("'Region control'", "regions")):
        assert any(words in each for each in read(**plain, **{more: "True"})["reasons"])


def test_plain_img2img_is_drawn_from_the_image_that_it_was_given() -> None:
    row = {"id": 1, "baseModel": "SD 1.5", "meta": PLAIN | {"Denoising strength": "0.4"}}
    found = redraw(row | {"source": SourceImage(Path("source.png"), Sha256("a" * 64), (1024, 1024))})
    other = redraw(row | {"source": SourceImage(Path("source.png"), Sha256("a" * 64), (1024, 768))})

    assert found.made is not None
    assert found.made.start is not None
    assert (found.made.start.strength, found.drawable) == (0.4, "differs")
    assert any("aspect ratio" in words for words in other.reasons)
    masked = row | {"meta": PLAIN | {"Denoising strength": "0.4", "Masked content": "fill"}}
    assert redraw(masked | {"source": SourceImage(Path("a"), Sha256("a" * 64), (512, 512))}).drawable == "needs-input"


IMG2IMG = {"Denoising strength": "0.4", "Noise multiplier": "1.05"}


@pytest.mark.parametrize(
    "script", [{}, {"SD upscale overlap": "64"}, {"Ultimate SD upscale upscaler": "None"}], ids=str
)
def test_the_noise_multiplier_of_an_input_image_is_in_the_recipe_or_named(script: dict[str, str]) -> None:
    row = {"id": 1, "baseModel": "SD 1.5", "meta": PLAIN | IMG2IMG | script}
    found, without = redraw(row | {"source": SOURCE}), redraw(row)
    assert found.made is not None
    assert found.made.start is not None
    assert (found.made.start.strength, found.made.start.noise_multiplier) == (0.4, 1.05)
    assert not any("multiplier" in words or "unknown to civman" in words for words in found.reasons)
    assert without.drawable == "needs-input"
    assert any("noise multiplier 1.05" in words for words in without.reasons)

    plain = redraw(row | {"source": SOURCE, "meta": PLAIN | IMG2IMG | script | {"Noise multiplier": None}})
    assert plain.made is not None
    assert plain.made.start is not None
    assert plain.made.start.noise_multiplier == 1.0
    too_much = redraw(row | {"source": SOURCE, "meta": PLAIN | IMG2IMG | script | {"Noise multiplier": "99"}})
    assert (too_much.drawable, too_much.made) == ("no", None)


def test_the_entries_of_an_input_image_are_used_or_named() -> None:
    def with_source(**more: str) -> Any:
        return redraw({"id": 1, "baseModel": "SD 1.5", "source": SOURCE, "meta": PLAIN | IMG2IMG | more})

    cropped = with_source(**{"Resize mode": "Crop and resize"})
    assert cropped.made.start.resize_mode == "crop and resize"
    assert any(
        "the resize mode `fold` of the input image" in words for words in with_source(**{"Resize mode": "fold"}).reasons
    )
    hashed = with_source(**{"Init image hash": "abc"})
    assert any("ignores these settings of the input image: `Init image hash`" in words for words in hashed.reasons)
    masked = with_source(**{"Conditional mask weight": "0.5"})
    assert masked.drawable == "needs-input"
    assert any("noise multiplier 1.05" in words for words in masked.reasons)
    second = read(**HIRES, **{"Noise multiplier": "1.05", "Mask blur": "4"})
    assert any("are ignored: `Noise multiplier`, `Mask blur`" in words for words in second["reasons"])
    assert read(**HIRES)["drawable"] == "exact"


@pytest.mark.parametrize(
    ("changes", "pixels", "factor"),
    [
        ({}, (512, 512), ""), ({}, (1024, 1024), "2 times"), ({}, (1536, 1536), "3 times"), ({}, (1024, 768), ""),
        ({}, (256, 256), ""), ({}, (None, None), ""), ({}, (1024, None), ""), ({}, (768, 768), "1.5 times"),
        ({"Hires upscale": "2", "Denoising strength": "0.5"}, (1024, 1024), ""),
        ({"Hires upscale": "2", "Denoising strength": "0.5"}, (2048, 2048), "2 times"),
        ({"Hires upscale": "2", "Hires upscaler": "Lanczos", "Denoising strength": "0.5"}, (2048, 2048), "2 times"),
        ({"Denoising strength": "0.5"}, (1024, 1024), "2 times"),
        ({"Size": "515x512"}, (1024, 1024), "2 times"),
        ({"Size": None}, (1024, 1024), ""),
        ({"Postprocess upscale by": "2", "Postprocess upscaler": "Lanczos"}, (1024, 1024), ""),
        ({"Postprocess upscale by": "2", "Postprocess upscaler": "Lanczos"}, (2048, 2048), "2 times"),
        ({"Postprocess upscaler": "Lanczos"}, (2048, 2048), ""),
        ({"SD upscale overlap": "64", "Denoising strength": "0.5"}, (1024, 1024), ""),
        (FORMS["torn"] | {"Denoising strength": "0.5"}, (1024, 1024), ""),
    ],
    ids=str,
)  # fmt: skip
def test_an_image_larger_than_its_settings_was_enlarged_afterwards(
    changes: dict[str, Any], pixels: tuple[int | None, int | None], factor: str
) -> None:
    meta = {key: value for key, value in (PLAIN | changes).items() if value is not None}
    found = redraw({"id": 1, "baseModel": "SD 1.5", "meta": meta, "width": pixels[0], "height": pixels[1]})

    named = [words for words in found.reasons if "enlarged afterwards" in words]
    assert [factor in words for words in named] == [True] * bool(factor)
    assert not factor or found.drawable != "exact"
    assert all(("grid" in words) == (factor != "1.5 times") for words in named)


def test_other_families_are_not_promised() -> None:
    assert read(base="Flux.1 D")["drawable"] == "no"
    assert read(base="SDXL 1.0")["drawable"] == "exact"


@pytest.mark.parametrize(
    ("version", "prompt", "scales"),
    [
        ("v1.10.1", "a <lora:one:0.5>", ("one", 0.5, 0.5)),
        ("v1.10.1", "a <lora:one:0.5:0.8>", ("one", 0.8, 0.5)),
        ("v1.4.0", "a <lora:one:0.5:0.8>", ("one", 0.5, 0.5)),
        ("v1.4.0", "a <lyco:one:0.5:0.8>", ("one", 0.8, 0.5)),
        ("v1.10.1", "a <lora:one:te=0.2:unet=0.9>", ("one", 0.9, 0.2)),
        ("v1.10.1", "a <lora:one>", ("one", 1.0, 1.0)),
    ],
)
def test_tags_are_loras_with_the_scales_of_their_version(
    version: str, prompt: str, scales: tuple[str, float, float]
) -> None:
    found = read(prompt=prompt, Version=version, resources=[{"type": "lora", "name": "one", "hash": "AABBCCDDEE"}])

    [lora] = found["recipe"]["loras"]
    assert (lora["name"], lora["scale"], lora["text_scale"]) == scales
    assert found["recipe"]["prompt"] == "a "
    assert {"role": "lora", "name": "one", "hash": "aabbccddee", "weight": scales[1]} in found["resources"]


@pytest.mark.parametrize("tag", ["<quill_lake:0.8>", "<lora:x:1>", "<hypernet:y:much>", "<lora:x:1:FACE>"])
def test_tags_are_removed_from_prompts_and_words_in_negative_prompts(tag: str) -> None:
    words = f"x {tag} y"
    second = {"Hires prompt": words, "Hires negative prompt": words}

    hires = read(**HIRES, **second)["recipe"]["hires"]
    assert hires["prompt"] == "x  y"
    assert emphasis.parse(hires["negative_prompt"]).sections == ((emphasis.Fragment(words, 1.0),),)
    alone = read(negativePrompt=words)
    assert (alone["drawable"], alone["reasons"], alone["recipe"]["loras"]) == ("exact", [], [])
    assert emphasis.parse(alone["recipe"]["negative_prompt"]).sections == ((emphasis.Fragment(words, 1.0),),)
    [made] = read(**FACES, **{"ADetailer negative prompt": f'"{words}"'})["recipe"]["details"]
    assert emphasis.parse(made["negatives"][0]).sections == ((emphasis.Fragment(words, 1.0),),)

    by_comfyui = read(negativePrompt=words, Version="ComfyUI")
    assert by_comfyui["recipe"]["negative_prompt"] == words
    plain = read(negativePrompt=words, Emphasis="None")
    assert (plain["drawable"], "with a backslash" in plain["reasons"][0]) == ("differs", True)


@pytest.mark.parametrize("tag", ["<quill_lake:0.8>", "<any:x:1:2>"])
def test_a_tag_of_an_unknown_kind_is_removed_from_the_prompt(tag: str) -> None:
    found = read(prompt=f"a {tag} b <heart-8500>")
    assert found["recipe"]["prompt"] == "a  b <heart-8500>"
    assert (found["drawable"], [tag in words for words in found["reasons"]]) == ("exact", [True])


def test_additional_networks_are_loras_with_the_unet_first() -> None:
    found = read(**{
        "AddNet Enabled": "True", "AddNet Module 1": "LoRA", "AddNet Model 1": "one(4bd1b9a1e0d2)",
        "AddNet Weight A 1": "0.7", "AddNet Weight B 1": "0.3",
    })  # fmt: skip

    assert found["recipe"]["loras"] == [
        {
            "name": "one",
            "hash": "4bd1b9a1e0d2",
            "scale": 0.7,
            "text_scale": 0.3,
            "blocks": "",
            "keyframes": "",
            "hires_keyframes": "",
        }
    ]
    assert found["drawable"] == "exact"


def test_hashes_torn_out_of_a_list_are_those_of_its_loras() -> None:
    found = read(**{"prompt": "a <lora:one:1>", '"one': '7c6bad76eb54"'})

    assert found["recipe"]["loras"][0]["hash"] == "7c6bad76eb54"
    assert found["drawable"] == "exact"


NAMES = [
    *PLAIN, "Hires upscale", "Hires resize", "hashes", "resources", "ENSD", "Eta", "Variation seed",
    "Variation seed strength", "Seed resize from", "AddNet Model 1", "AddNet Enabled", "AddNet Weight A 1",
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
    | st.sampled_from(["1e999", "-5", "0x0", "99999x99999", "nan", "[a:b:1e400]", "Euler a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


@settings(deadline=None, max_examples=120)
@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), JSON))
def test_no_settings_end_in_an_error(changes: dict[str, Any]) -> None:
    found = redraw({"id": 1, "baseModel": "SD 1.5", "meta": PLAIN | changes}).value()

    assert found["drawable"] in ("exact", "differs", "needs-input", "no")
    assert found["reasons"] or found["drawable"] == "exact"
    json.dumps(found)


def test_the_command_prints_one_object_a_line_and_counts_for_people(civman: Civman, tmp_path: Path) -> None:
    file = tmp_path / "settings.jsonl"
    lines = [json.dumps({"id": 7, "baseModel": "SD 1.5", "meta": PLAIN}), "", "{broken", json.dumps({"id": 8})]
    file.write_text("\n".join(lines))
    command = ("replay", "--settings", file, "--assume-files", "--dry-run")

    found = [json.loads(line) for line in civman(*command, "--json").out.splitlines()]

    assert [(each["id"], each["drawable"]) for each in found] == [(7, "exact"), (None, "no"), (8, "no")]
    assert found[1]["reasons"] == ["line 3 is not a JSON object"]
    assert "3 images checked" in civman(*command).out
    assert civman(*command, "--quiet").out.splitlines() == ["7 exact", "None no", "8 no"]


@pytest.mark.parametrize(
    "options", [(), ("--dry-run",), ("--settings", "x.jsonl"), ("picture.png", "--settings", "x", "--dry-run")], ids=str
)
def test_half_of_the_options_is_a_usage_error(civman: Civman, options: tuple[str, ...]) -> None:
    assert civman("replay", *options).code == 2


@pytest.mark.skipif(not ROWS.is_file(), reason="shared fixtures are not here")
def test_real_settings_are_read_as_they_are_written_and_fast() -> None:
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]

    began = time.process_time()
    found = [redraw(row).value() for row in rows]
    assert len(rows) / (time.process_time() - began) > 50

    for row, each in zip(rows, found, strict=True):
        meta, recipe = row["meta"] or {}, each["recipe"]
        assert each["id"] == row["id"]
        assert each["reasons"] or each["drawable"] == "exact"
        if not recipe:
            assert each["drawable"] == "no"
            continue
        assert recipe["seed"] == int(meta["seed"])
        assert recipe["steps"] == int(meta["steps"])
        assert recipe["guidance_scale"] == float(meta["cfgScale"])
        assert meta["sampler"].startswith(recipe["sampler"])
        assert recipe["clip_skip"] == int(meta.get("Clip skip", meta.get("clipSkip", 1)))
        is_old = "First pass size" in meta
        size = f"{row['width']}x{row['height']}" if "Size" not in meta else meta["Size"]
        width, height = map(int, size.split("x"))
        passes = recipe["hires"] if is_old else recipe
        assert (passes["width"], passes["height"]) == (width - width % 8, height - height % 8)
        assert recipe["prompt"].replace("\\", "") == re.sub(r"<\w+:[^>]+>|\\", "", meta["prompt"])
        tags = [tag.split(":") for tag in re.findall(r"<(?:lora|lyco):([^>]*)>", meta.get("prompt", ""))]
        if each["drawable"] != "no" and all(len(tag) == 2 for tag in tags):
            from_prompt = recipe["loras"][: len(tags)]
            assert [(lora["name"], lora["scale"]) for lora in from_prompt] == [
                (name.strip(), float(scale)) for name, scale in tags
            ]
        assert bool(recipe["hires"]) == any(
            key in meta for key in ("Hires upscale", "Hires resize", "Hires upscaler", "First pass size")
        )
        if "Model hash" in meta:
            assert each["resources"][0]["hash"] == meta["Model hash"].lower()
        if meta.get("Face restoration") in ("CodeFormer", "GFPGAN") or "ADetailer model" in meta:
            assert each["drawable"] != "exact"
        if "Denoising strength" in meta and not recipe["hires"]:
            assert each["drawable"] in ("needs-input", "no")
    verdicts = [each["drawable"] for each in found[:200]]
    assert sum(verdict in ("exact", "differs") for verdict in verdicts) >= 160


@pytest.mark.parametrize(
    ("changes", "verdict", "size"),
    [
        ({"Postprocess upscale by": "2", "Postprocess upscaler": "R-ESRGAN 4x+"}, "differs", (1024, 1536)),
        ({"Postprocess upscale by": 1.3, "Postprocess upscaler": "Lanczos"}, "exact", (664, 992)),
        ({"Postprocess upscale to": "1000x1000", "Postprocess upscaler": "Lanczos"}, "exact", (1000, 1496)),
        (
            {"Postprocess upscale to": "1000x1000", "Postprocess crop to": "1000x1000",
             "Postprocess upscaler": "Lanczos"}, "exact", (1000, 1000),
        ),
        ({"Postprocess upscale by": "2", "Postprocess upscaler": "Lanczos", "Hires upscale": "2",
          "Hires upscaler": "Latent", "Denoising strength": "0.5"}, "exact", (2048, 3072)),
        ({"Postprocess upscale by": "4", "Max side length": "1024", "Postprocess upscaler": "Lanczos"}, "exact",
         (680, 1024)),
        ({"Postprocess upscale by": "2", "Postprocess upscaler": "LDSR"}, "no", None),
        ({"Postprocess upscale by": "2", "Postprocess upscaler": "X", "Postprocess upscaler 2": "Y"}, "no", None),
        ({"Postprocess upscaler": "Lanczos"}, "no", None),
        ({"Postprocess upscale by": "99", "Postprocess upscaler": "Lanczos"}, "no", None),
        ({"Postprocess upscale by": "2", "Postprocess upscaler": "Latent"}, "no", None),
        ({"Postprocess GFPGAN": "1"}, "no", None),
    ],
    ids=str,
)  # fmt: skip
def test_an_upscale_of_the_finished_image_is_its_last_step(
    changes: dict[str, Any], verdict: str, size: tuple[int, int] | None
) -> None:
    found = read(**({"Size": "512x768", "RNG": "CPU"} | changes))

    assert found["drawable"] == verdict, found["reasons"]
    if size is not None:
        made = found["recipe"]["upscale"]
        kept = made["crop_width"] or made["width"], made["crop_height"] or made["height"]
        assert kept == size


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"Hires sampler": "DPM++ 2M Karras"}, {"sampler": "DPM++ 2M", "schedule": "Karras"}),
        ({"Hires sampler": "DPM++ 2M", "Schedule type": "Beta"}, {"sampler": "DPM++ 2M", "schedule": "Beta"}),
        ({"Hires sampler": "DPM++ 3M SDE", "Version": "v1.10.1"}, {"schedule": "Exponential"}),
        ({"Hires schedule type": "Beta"}, {"schedule": "Beta"}),
        ({"Hires sampler": "Use same sampler", "Hires schedule type": "Use same scheduler"}, {"sampler": ""}),
        ({"Hires CFG Scale": "5.5", "Hires Module 1": "Use same choices"}, {"guidance_scale": 5.5, "sampler": ""}),
    ],
    ids=str,
)  # fmt: skip
def test_a_second_pass_may_have_its_own_sampler_and_guidance(changes: dict[str, str], wanted: dict[str, Any]) -> None:
    hires = {"Hires upscale": "2", "Hires upscaler": "Latent", "Denoising strength": "0.5", "Sampler": "Euler"}

    found = read(**hires | changes)

    assert found["drawable"] != "no", found["reasons"]
    assert wanted.items() <= found["recipe"]["hires"].items()


def test_a_changing_prompt_counts_the_evaluations_of_the_second_sampler() -> None:
    """The recipe states the prompt of the second pass, because only then its own sampler is counted."""
    found = read(**{"Hires upscale": "2", "Hires upscaler": "Latent", "Denoising strength": "0.5",
                    "Hires sampler": "Heun", "prompt": "[a:b:0.5]"})  # fmt: skip

    assert found["drawable"] == "differs"
    assert found["recipe"]["hires"]["prompt"] == found["recipe"]["prompt"] == "[a:b:0.5]"


FACES = {
    "ADetailer model": "face_yolov8n.pt",
    "ADetailer confidence": "0.3",
    "ADetailer dilate erode": "4",
    "ADetailer mask blur": "4",
    "ADetailer denoising strength": "0.4",
    "ADetailer inpaint only masked": "True",
    "ADetailer inpaint padding": "32",
    "ADetailer version": "24.1.1",
}


@pytest.mark.parametrize(
    ("more", "values", "words"),
    [
        ({}, {"strength": 0.4, "dilate": 4, "padding": 32, "only_masked": True, "prompts": ()}, "civman's detector"),
        ({"ADetailer conf": "30", "ADetailer dilate/erode": "32", "ADetailer dilate erode": None,
          "ADetailer inpaint full": "False", "ADetailer inpaint only masked": None},
         {"dilate": 32, "only_masked": False}, "civman's detector"),
        ({"ADetailer prompt": '"a face, [PROMPT] [SEP] <lora:x:1> two"'},
         {"prompts": ("a face, [PROMPT]", "two")}, "contains adapter tags"),
        ({"ADetailer use separate steps": "True", "ADetailer steps": "30", "ADetailer use separate CFG scale": "True",
          "ADetailer CFG scale": "5", "ADetailer use separate sampler": "True", "ADetailer sampler": "Euler a",
          "ADetailer use inpaint width height": "True", "ADetailer inpaint width": "768",
          "ADetailer inpaint height": "640"},
         {"steps": 30, "guidance_scale": 5, "sampler": "Euler a", "width": 768, "height": 640}, "civman's detector"),
        ({"ADetailer restore face": "True"}, {}, "restored the face"),
        ({"ADetailer ControlNet model": "control_x"}, {}, "ControlNet"),
        ({"ADetailer prompt": '"torn, words'}, None, "only the beginning"),
        ({"ADetailer model": "hand_yolov8n.pt"}, None, "does not support this detector"),
        ({"ADetailer denoising strength": "0"}, None, "above 0"),
    ],
)  # fmt: skip
def test_passes_of_adetailer_for_faces_are_read(
    more: dict[str, Any], values: dict[str, Any] | None, words: str
) -> None:
    settings = {key: value for key, value in (FACES | more).items() if value is not None}
    found = read(**settings)

    assert found["drawable"] == "differs"
    assert any(words in reason for reason in found["reasons"]), found["reasons"]
    assert not any("unknown to civman" in reason for reason in found["reasons"])
    passes = found["recipe"]["details"]
    assert len(passes) == (values is not None)
    for key, value in (values or {}).items():
        assert passes[0][key] == value, key


def test_a_second_pass_of_adetailer_may_be_for_hands() -> None:
    second = {f"{key} 2nd": value for key, value in FACES.items() if key != "ADetailer version"}
    found = read(**FACES, **second | {"ADetailer model 2nd": "hand_yolov8n.pt"})
    assert len(found["recipe"]["details"]) == 1
    assert len(read(**FACES, **second)["recipe"]["details"]) == 2


def test_a_sampler_of_adetailer_without_a_scheduler_has_the_image_s() -> None:
    own = {"ADetailer use separate sampler": "True", "ADetailer sampler": "DPM++ 2M"}
    [made] = read(**FACES, **own, **{"Schedule type": "Exponential", "Version": "v1.10.0"})["recipe"]["details"]
    assert (made["sampler"], made["schedule"]) == ("DPM++ 2M", "Exponential")
    [older] = read(**FACES, **own | {"ADetailer sampler": "DPM++ 2M Karras"}, Version="v1.7.0")["recipe"]["details"]
    assert (older["sampler"], older["schedule"]) == ("DPM++ 2M", "Karras")


@pytest.mark.parametrize("sampler", ["PLMS", "UniPC", "DDIM", "Euler a"])
@pytest.mark.parametrize(
    ("extension", "version", "is_old"),
    [("23.5.19", None, True), ("23.8.1", "v1.5.2", True), ("v23.8.1", "v1.6.0", True), ("23.9.0", "v1.5.2", False),
     ("23.11.1", None, False), ("24.1.1", "v1.10.1", False), (None, None, True), (None, "24d8570", True),
     (None, "v1.5.2", True), (None, "v1.6.0", False), (None, "v1.10.1", False), (None, "civman 0.1.0", False)],
)  # fmt: skip
def test_adetailer_before_23_9_drew_with_euler_instead_of_plms_and_unipc(
    extension: str | None, version: str | None, is_old: bool, sampler: str
) -> None:
    stated = {"sampler": sampler, "Version": version} | FACES | {"ADetailer version": extension}
    [made] = read(**stated)["recipe"]["details"]

    image = read(sampler=sampler, Version=version)["recipe"]
    is_replaced = is_old and sampler in ("PLMS", "UniPC")
    wanted = ("Euler", "Normal") if is_replaced else (sampler, image["schedule"])
    assert (made["sampler"], made["schedule"]) == wanted
    assert image["sampler"] == sampler
    own = {"ADetailer use separate sampler": "True", "ADetailer sampler": "Heun"}
    assert read(**stated, **own)["recipe"]["details"][0]["sampler"] == "Heun"
    same = own | {"ADetailer sampler": "Use same sampler"}
    assert read(**stated, **same)["recipe"]["details"][0]["sampler"] == made["sampler"]


GRID = {"X Type": "Prompt S/R", "X Values": '"-1,0,1"'}
DDETAILER = {"DDetailer conf a": "30", "DDetailer cfg": "7", "DDetailer model a": "mmdet_anime-face_yolov3.pth"}
SEVERAL = "a script combined several images into one"


@pytest.mark.parametrize(
    ("title", "is_grid"),
    [("X/Y/Z plot", True), ("X/Y plot", True), ("x/y/z Plot", True), ("Prompt matrix", True),
     ("Prompts from file or textbox", True), ("Generate Infinite-Axis Grid", True), ("Detection Detailer", False),
     ("kettle dune", False), ("Loopback", False), ("img2img alternative test", False), ("None", None), ("", None)],
)  # fmt: skip
def test_only_a_script_that_makes_several_images_prevents_drawing(title: str, is_grid: bool | None) -> None:
    named = f"the script `{title}` may have changed the image; civman does not run it"

    for more in ({}, DDETAILER):
        found = read(Script=title, **more)
        words = found["reasons"]
        assert found["drawable"] == ("no" if is_grid else "differs" if is_grid is False or more else "exact")
        assert ([SEVERAL in words, named in words]) == [is_grid is True, is_grid is False and not more]
        assert any("DDetailer" in each for each in words) == bool(more)
        assert not any("unknown to civman" in each for each in words)
        assert read(Script=title, **more | GRID)["drawable"] == "no"


@pytest.mark.parametrize("axis", ["X", "Y", "Z"])
@pytest.mark.parametrize("entry", ["{} Type", "{} Values", "Fixed {} Values"])
def test_an_axis_of_a_grid_prevents_drawing_without_a_title(entry: str, axis: str) -> None:
    found = read(**{entry.format(axis): "Seed"})
    assert (found["drawable"], found["reasons"]) == ("no", [SEVERAL])
