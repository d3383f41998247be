# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""A scale that changes over the steps: from the command line into plan, recipe and A1111's text, and back."""

import json
from pathlib import Path
from typing import Any

import pytest
from running import Civman

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from rendering_stock import QUICK

from civman.pictures import image_text
from civman.planning.redraw import redraw

BASIS = ("render", "tiny-sd1", *QUICK[:2], "--steps", "5", *QUICK[4:], "--no-preview")


def drawn(civman: Civman, *arguments: object) -> Any:
    ran = civman(*BASIS[:2], *arguments, *BASIS[2:], "--json")
    assert ran.code == 0, ran.out + ran.err
    return ran.json["render"][0]


@pytest.mark.usefixtures("stocked", "no_sockets")
def test_keyframes_are_in_the_recipe_the_text_and_the_replay(civman: Civman, tmp_path: Path) -> None:
    hires = ("--hires", "1.5", "--hires-steps", "3")
    plain = drawn(civman, "a cat", "--lora", "ink:1", *hires)
    option = drawn(civman, "a cat", "--lora", "ink:1@0,0@0.5:0.5:hr=0.25:lbw=ALL", *hires)
    tag = drawn(civman, "a cat <lora:ink:te=0.5:unet=1@0,0@0.5:hr=0.25:lbw=ALL>", *hires)

    assert option["pixel_sha256"] == tag["pixel_sha256"] != plain["pixel_sha256"]
    [use] = option["recipe"]["loras"]
    assert (use["scale"], use["text_scale"], use["keyframes"], use["hires_keyframes"]) == (
        1.0, 0.5, "1@0,0@0.5", "0.25@0",
    )  # fmt: skip
    assert (option["recipe"]["schema"], option["applied"][0]["keyframes"]) == (10, "1@0,0@0.5")
    text = image_text.read(Path(option["path"])).parameters or ""
    assert "<lora:ink:te=0.5:unet=1@0,0@0.5:lbw=1" in text
    assert ":hrunet=0.25@0>" in text
    assert civman("replay", option["path"], "--json").json["replay"]["pictures"][0]["verdict"] == "identical"
    (tmp_path / "settings.txt").write_text(text)
    again = civman("replay", tmp_path / "settings.txt", "--json")
    assert again.json["render"][0]["pixel_sha256"] == option["pixel_sha256"], again.err
    other = civman("replay", option["path"], "--set", "lora:ink=0@0,1@1:0.5", "--json").json["render"][0]
    assert other["recipe"]["loras"][0]["keyframes"] == "0@0,1@1"
    assert other["pixel_sha256"] != option["pixel_sha256"]


@pytest.mark.usefixtures("stocked", "no_sockets")
def test_constant_keyframes_are_a_plain_scale_and_streaming_changes_nothing(civman: Civman) -> None:
    plain = drawn(civman, "a cat", "--lora", "ink:0.5")
    same = drawn(civman, "a cat", "--lora", "ink:0.5@0,0.5@1:hr=2")
    assert (same["recipe"], same["pixel_sha256"]) == (plain["recipe"], plain["pixel_sha256"])

    changing = ("a cat", "--lora", "ink:0@0,1@1", "--lora", "ink2:0.5", "--count", "2")
    first, second = (drawn(civman, *changing, *more) for more in ((), ("--low-vram",)))
    assert first["pixel_sha256"] == second["pixel_sha256"] != plain["pixel_sha256"]
    ends = drawn(civman, "a cat", "--lora", "ink:1@0.2-0.6")
    assert ends["recipe"]["loras"][0]["keyframes"] == "0@0,0@0.2,1@0.2,1@0.6,0@0.6"


@pytest.mark.usefixtures("stocked", "no_sockets")
def test_a_plan_shows_the_keyframes_and_refuses_what_cannot_change(civman: Civman) -> None:
    shown = civman(*BASIS[:2], "a cat", "--lora", "ink:0@0,1@0.5", *BASIS[2:], "--dry-run")
    assert "UNet 0@0,1@0.5, text 0" in shown.out
    for arguments, words in (
        (("--lora", "ink:0@0,1@1", "--sampler", "DPM adaptive"), "cannot change over the steps"),
        (("--lora", "ink:0@0,101@1"), "keyframes"),
        (("--lora", "ink:0.5:0@0,1@1"), "text encoders cannot change"),
        (("--lora", "ink:0.5:hr=x", "--hires", "1.5"), "keyframes"),
    ):
        ran = civman(*BASIS[:2], "a cat", *BASIS[2:], *arguments, "--dry-run", "--json")
        assert ran.code == 2, ran.out
        assert words in json.loads(ran.out)["error"]["message"]


def test_settings_of_the_extension_are_read() -> None:
    row = {"meta": {"prompt": "a cat <lora:ink:te=1:unet=0@0,1@0.5:hr=0.5>", "Steps": "20", "Sampler": "Euler",
                    "cfgScale": 7, "seed": 1, "Size": "512x512", "Model": "x", "Model hash": "0123456789",
                    "Denoising strength": "0.5", "Hires upscale": "2", "Hires upscaler": "Latent",
                    "Version": "v1.10.1"}}  # fmt: skip
    found = redraw(row)
    assert found.made is not None, found.reasons
    [use] = found.made.loras
    assert (use.scale, use.text_scale, use.keyframes, use.hires_keyframes) == (0, 1, "0@0,1@0.5", "0.5@0")
