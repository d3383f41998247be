# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Second passes with values of their own, and refiners: drawn again from A1111's text, and from the command line."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from running import Civman

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from PIL import Image, PngImagePlugin
from rendering_stock import QUICK
from site_rules import judge

from civman.domain.recipes.machine import Machine
from civman.domain.recipes.recipe import HiresRequest, LoraRequest, RenderRequest
from civman.library import Library
from civman.pictures import image_text, record_text
from civman.planning.plan import Conditions
from civman.rendering.draw import draw

ON_CPU = Conditions(device="cpu", triggers=False)
PROMPTS = (
    "a dog", "a (dog:1.2), [fox] \\(x\\)", 'a "dog", [fox:cat:1.5], {b}', "dog\nAND cat :0.5", "",
    "Steps: 4, easydream", "a cat", " Negative prompt: b, Resources: c",
)  # fmt: skip


def settings(number: int) -> RenderRequest:
    """One of the seeded settings; each value of its own has its share."""
    chance = random.Random(f"own values {number}")
    kind = chance.choice(["sd1", "sd1", "sdxl"])
    lora = {"sd1": "ink", "sdxl": "xl-ink"}[kind]

    def some(share: float, *values: Any) -> Any:
        return chance.choice(values) if chance.random() < share else None

    loras = tuple(LoraRequest(f"{lora}{end}", chance.choice([0.5, 1.0, -0.3])) for end in ("", "2"))
    hires = HiresRequest(
        width=96, height=chance.choice([80, 96]), steps=chance.choice([2, 3]), strength=chance.choice([0.5, 0.7]),
        upscaler=chance.choice(["latent", "lanczos"]), sampler=some(0.3, "Heun", "Euler a"),
        prompt=some(0.7, *PROMPTS), negative_prompt=some(0.4, "ugly", "", "[bad:worse:1.3]"),
        loras=some(0.5, (), loras[1:], loras, (replace(loras[0], scale=0.25),)),
        checkpoint=some(0.3, f"other-{kind}"),
    )  # fmt: skip
    refiner = some(0.4, f"other-{kind}", "finisher" if kind == "sdxl" else f"other-{kind}")
    has_two = chance.random() < 0.85
    return RenderRequest(
        checkpoint=f"tiny-{kind}", prompt=chance.choice(["a cat", "a [cat:dog:0.5]", "cat, easydream"]),
        negative_prompt=chance.choice(["", "bad"]), loras=loras[: chance.choice([0, 1, 1, 2])],
        sampler=chance.choice(["Euler", "Euler a", "DPM++ 2M", "DDIM", "DPM++ SDE"]), steps=3, guidance_scale=4.0,
        width=64, height=64, seed=number, hires=hires if has_two else None, refiner=refiner,
        refiner_at=some(0.7, 0.4, 0.75) if refiner else None, refiner_by_steps=some(0.3, True) if refiner else None,
        refiner_passes=some(0.6, "first", "both") if refiner and has_two else None,
        vae=some(0.2, "other-vae") if kind == "sd1" else None,
    )  # fmt: skip


def again(library: Library, folder: Path, numbers: range) -> dict[int, str]:
    """Draw these settings, and again from their text alone. Returns what differs for each that is not identical."""
    plans = {number: library.plan(settings(number), ON_CPU) for number in numbers}
    first = dict(zip(plans, draw(plans.values(), Machine("cpu", threads=1)), strict=True))
    second = {}
    for number, each in first.items():
        text = record_text.parameters(each.record)
        judge(text)
        facts = PngImagePlugin.PngInfo()
        facts.add_text("parameters", text)
        Image.fromarray(each.pixels).save(folder / f"{number}.png", pnginfo=facts)
        carried = image_text.read(folder / f"{number}.png")
        assert carried.record is None, "nothing but A1111's text"
        second[number] = library.pictures.plan_settings(carried.entries["parameters"], ON_CPU)
    failed = {}
    for number, one in zip(second, draw(second.values(), Machine("cpu", threads=1)), strict=True):
        if one.record.pixel_sha256 != first[number].record.pixel_sha256:
            before, after = first[number].record.recipe, one.record.recipe
            failed[number] = ", ".join(
                f"{name}: {getattr(before, name)!r} → {getattr(after, name)!r}"
                for name in before.__dataclass_fields__
                if getattr(before, name) != getattr(after, name)
            )
    for number, words in failed.items():
        print(number, words)
    return failed


@pytest.mark.usefixtures("filled")
def test_options_of_render_and_what_is_said_of_them(civman: Civman, tmp_path: Path) -> None:
    options = (
        "--hires", "96x96", "--hires-steps", "2", "--hires-prompt", "a dog <lora:ink2:0.5>", "--hires-negative", "ugly",
        "--hires-checkpoint", "other-sd1", "--hires-lora", "none", "--refiner", "tiny-sd1", "--refiner-at", "0.5",
        "--refiner-passes", "both", "--refiner-by-steps",
    )  # fmt: skip
    made = civman("render", "tiny-sd1", "a cat", "--lora", "ink", *QUICK, *options, "--json", "-o", tmp_path / "a.png")
    assert made.code == 0, made.err
    [value] = made.json["render"]
    recipe = value["recipe"]
    assert (recipe["hires"]["prompt"], recipe["hires"]["negative_prompt"]) == ("a dog", "ugly")
    assert [use["scale"] for use in recipe["hires"]["loras"]] == [0.5]
    assert {key: recipe["refiner"][key] for key in ("switch_at", "by_steps", "passes", "is_same_family")} == {
        "switch_at": 0.5, "by_steps": True, "passes": "both", "is_same_family": True,
    }  # fmt: skip
    assert len({recipe["checkpoint"], recipe["hires"]["checkpoint"]["sha256"]}) == 2

    text = image_text.read(tmp_path / "a.png").entries["parameters"]
    wanted = (
        'Hires prompt: "a dog <lora:ink2:0.5>"', 'Hires negative prompt: "ugly"', "Hires checkpoint: other-sd1 [",
        "Refiner: tiny-sd1 [", "Refiner switch at: 0.5", "Refiner switch by sampling steps: True",
        "Hires refiner: both passes",
    )  # fmt: skip
    assert [words for words in wanted if words not in text] == []
    shown = civman("show", tmp_path / "a.png").out
    assert all(words in shown for words in ("prompt a dog", "at 0.5", "passes both", "other-sd1"))
    again = civman("replay", tmp_path / "a.png", "--device", "cpu")
    assert again.code == 0, again.err
    varied = civman(
        "replay", tmp_path / "a.png", "--set", "hires_prompt=", "--set", "hires_checkpoint=", "--set", "refiner=",
        "--device", "cpu", "--json", "-o", tmp_path / "b.png",
    )  # fmt: skip
    assert varied.code == 0, varied.err
    recipe = image_text.read(tmp_path / "b.png").record
    assert '"refiner":null' in str(recipe) or "refiner" not in str(recipe)
    assert "other-sd1" not in image_text.read(tmp_path / "b.png").entries["parameters"]


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--hires-prompt", "a"), 2, "--hires-prompt requires a second pass"),
        (("--hires-lora", "ink"), 2, "--hires-lora requires a second pass"),
        (("--refiner-at", "0.5"), 2, "--refiner-at requires a refiner"),
        (("--hires", "2", "--hires-checkpoint", "tiny-sdxl"), 7, "same model family"),
        (("--refiner", "finisher"), 7, "cannot continue"),
        (("--hires", "2", "--hires-lora", "gone"), 3, "gone"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(civman: Civman, options: tuple[str, ...], code: int, words: str) -> None:
    refused = civman("render", "tiny-sd1", "a cat", *QUICK, *options, "--dry-run")

    assert refused.code == code
    assert words in refused.err


@pytest.mark.usefixtures("filled")
def test_some_are_drawn_again_identically(library: Library, tmp_path: Path) -> None:
    assert again(library, tmp_path, range(0, 100, 34)) == {}


@pytest.mark.long
@pytest.mark.usefixtures("filled")
def test_all_of_100_are_drawn_again_identically(library: Library, tmp_path: Path) -> None:
    assert again(library, tmp_path, range(100)) == {}
