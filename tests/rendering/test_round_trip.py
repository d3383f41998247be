# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Images drawn again from nothing but the A1111 text that civman wrote into them."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from running import Civman

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from PIL import Image, PngImagePlugin

from civman.diffusion.samplers import SAMPLERS
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.recipe import HiresRequest, LoraRequest, RenderRequest
from civman.errors import CannotRender, NotFound
from civman.library import Library
from civman.pictures import image_text, record_text
from civman.planning.plan import Conditions
from civman.planning.redraw import old_first_pass
from civman.rendering.draw import draw

ON_CPU = Conditions(device="cpu", triggers=False)
PROMPTS = (
    "a cat", "a (cat:1.3), [dog] on ((grass))", "a [cat:dog:0.5] and [x|y] here", "cat AND dog :0.7", "a, BREAK b",
    "a\\(b\\) cat, easydream", "(red [cat) on a chair]", "line one\nline two, cat", 'cat: 3, dog; "quoted" <3',
    "ein Hündchen, 猫", "x" * 90 + " " + "word, " * 60,
)  # fmt: skip
SCHEDULES = ("Automatic", "Normal", "Karras", "Exponential", "SGM Uniform", "Simple", "Beta", "Polyexponential", "DDIM",
             "Align Your Steps", "KL Optimal", "Turbo")  # fmt: skip
UPSCALERS = ("latent", "latent-antialiased", "latent-bicubic", "latent-bicubic-antialiased", "latent-nearest",
             "latent-nearest-exact", "lanczos", "nearest")  # fmt: skip
STEPS = {"DPM adaptive": 2}


def some(chance: random.Random, share: float, *values: Any) -> Any:
    return chance.choice(values) if chance.random() < share else None


def settings(number: int) -> RenderRequest:
    """One of the seeded settings: samplers and schedules in turn, each other setting with its share."""
    chance = random.Random(f"settings {number}")
    sampler = SAMPLERS[number % len(SAMPLERS)].name
    has_two = chance.random() < 0.35
    hires = None
    if has_two:
        is_old = chance.random() < 0.15
        hires = HiresRequest(
            *chance.choice([(96, 96), (80, 96), (96, 80)]), steps=chance.choice([2, 3]),
            strength=chance.choice([0.4, 0.7]),
            upscaler="lanczos" if is_old else chance.choice(UPSCALERS), trim="0x0" if is_old else None,
            token_merging=some(chance, 0.2, 0.3),
        )  # fmt: skip
    kind = chance.choice(["sd1", "sd1", "sdxl"])
    lora = {"sd1": "ink", "sdxl": "xl-ink"}[kind]
    is_cfgpp = sampler.endswith("CFG++")
    prompt = chance.choice(PROMPTS)
    return RenderRequest(
        checkpoint=f"tiny-{kind}", prompt=prompt,
        negative_prompt=chance.choice(["", "bad", "(bad:1.2), [ugly:worse:0.4]"]),
        loras=(LoraRequest(lora, chance.choice([0.5, 1.0, -0.3]), some(chance, 0.4, 0.2, 0.0)),)
        * (chance.random() < 0.35),
        vae=some(chance, 0.1, "other-vae") if kind == "sd1" else None,
        sampler=sampler, schedule=some(chance, 0.6, *SCHEDULES), steps=STEPS.get(sampler, chance.choice([3, 4])),
        guidance_scale=chance.choice([1.0, 3.0, 7.5]), guidance_rescale=None if is_cfgpp else some(chance, 0.1, 0.6),
        width=chance.choice([64, 64, 72]), height=chance.choice([64, 64, 80]), seed=chance.randrange(2**32),
        clip_skip=some(chance, 0.3, 2, 3) if kind == "sd1" else None, rng=chance.choice(["cpu", "cpu", "nv"]),
        eta_seed_delta=some(chance, 0.3, 31337), hires=hires,
        eta=some(chance, 0.2, 0.5, 0.68), eta_ddim=some(chance, 0.2, 0.7), s_churn=some(chance, 0.15, 4.0),
        s_noise=some(chance, 0.15, 1.01), pad_prompts=some(chance, 0.15, True),
        drop_penultimate=some(chance, 0.1, True),
        half_levels=some(chance, 0.15, True), variation_seed=(seed := some(chance, 0.2, 5, 77)),
        variation_strength=None if seed is None else chance.choice([0.1, 0.5]), seed_resize=some(chance, 0.1, "96x64"),
        token_merging=some(chance, 0.1, 0.5),
        thresholding=None if is_cfgpp or prompt.startswith("cat AND") else some(
            chance, 0.1, "3", "2,percentile=90,cfg_mode=Half Cosine Up,cfg_minimum=1"
        ),
        skip_negative_below=None if is_cfgpp else some(chance, 0.1, 3.0),
        prompt_rules=some(chance, 0.3, "a1111-1.3", "a1111-1.6"),
        emphasis=some(chance, 0.2, "no norm", "ignore", "none"), fit_negative=some(chance, 0.1, True),
    )  # fmt: skip


def drawn(library: Library, plans: list[Any]) -> Iterator[Any]:
    del library
    return draw(plans, Machine("cpu", threads=1))


def again(library: Library, tmp_path: Path, numbers: range) -> dict[int, str]:
    """Draw these settings, and again from their text alone. Returns the reason for each one that is not identical."""
    asked = sorted(numbers, key=lambda number: settings(number).checkpoint)
    plans = {number: library.plan(_fitting(settings(number)), ON_CPU) for number in asked}
    first = dict(zip(plans, drawn(library, list(plans.values())), strict=True))
    failed: dict[int, str] = {}
    second = {}
    for number, each in first.items():
        facts = PngImagePlugin.PngInfo()
        facts.add_text("parameters", record_text.parameters(each.record))
        Image.fromarray(each.pixels).save(tmp_path / f"{number}.png", pnginfo=facts)
        carried = image_text.read(tmp_path / f"{number}.png")
        assert carried.record is None, "nothing but A1111's text"
        second[number] = library.pictures.plan_settings(carried.entries["parameters"], ON_CPU)
    for number, one in zip(second, drawn(library, list(second.values())), strict=True):
        if one.record.pixel_sha256 != first[number].record.pixel_sha256:
            before, after = first[number].record.recipe, one.record.recipe
            failed[number] = ", ".join(
                f"{name}: {getattr(before, name)!r} → {getattr(after, name)!r}"
                for name in before.__dataclass_fields__
                if getattr(before, name) != getattr(after, name)
            )  # fmt: skip
    return failed


def _fitting(request: RenderRequest) -> RenderRequest:
    """Leave out what the rules do not allow together; cut what A1111 would have cut in 2022."""
    hires = request.hires
    if hires and hires.trim and hires.width and hires.height and request.width and request.height:
        (width, height), cut = old_first_pass((request.width, request.height), (hires.width, hires.height))
        trim = f"{cut[0] // 16 * 16}x{cut[1] // 16 * 16}"
        request = replace(request, width=width, height=height, hires=replace(hires, trim=trim))
    if " AND " in request.prompt and request.guidance_rescale:
        request = replace(request, guidance_rescale=None)
    if request.fit_negative and request.pad_prompts:
        request = replace(request, pad_prompts=None)
    if request.thresholding and request.guidance_rescale:
        request = replace(request, guidance_rescale=None)
    if (
        " AND " in request.prompt
        and request.prompt_rules == "a1111-1.3"
        and request.sampler in ("DDIM", "PLMS", "UniPC")
    ):
        request = replace(request, prompt_rules="a1111-1.6")
    return request


FOREIGN = (
    "a cat\nNegative prompt: bad\nSteps: 3, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 64x64, "
    "Model hash: {}, Model: {}, Version: v1.6.0"
)


@pytest.mark.usefixtures("stocked")
def test_a_foreign_text_is_planned_with_files_found_by_hash_or_by_name(library: Library) -> None:
    sha256 = library.plan(RenderRequest(checkpoint="tiny-sd1", width=64, height=64), ON_CPU).recipe.checkpoint
    by_hash = library.pictures.plan_settings(FOREIGN.format(sha256[:10].upper(), "another name"), ON_CPU)
    by_name = library.pictures.plan_settings(FOREIGN.format("0123456789", "tiny-sd1"), ON_CPU)

    lora = library.plan(RenderRequest(checkpoint="tiny-sd1", loras=(LoraRequest("ink"),)), ON_CPU).names
    [autov3] = [each.autov3 for each in lora if each.name.startswith("ink")]
    tagged = "a <lora:gone:0.5>" + FOREIGN.format(sha256[:10], "x")[5:] + f', Lora hashes: "gone: {autov3.upper()}"'
    planned = library.pictures.plan_settings(tagged, ON_CPU)
    assert [planned.name(use.sha256) for use in planned.recipe.loras] == ["ink.safetensors"]
    for planned in (by_hash, by_name):
        recipe = planned.recipe
        assert (recipe.checkpoint, recipe.rng, recipe.rounding, recipe.odd_sizes) == (sha256, "nv", "down", "a1111")
        assert recipe.sampling.half_levels
    assert not any("by its name" in notice for notice in by_hash.notices)
    assert any("by its name" in notice for notice in by_name.notices)


@pytest.mark.usefixtures("stocked")
def test_what_is_missing_or_not_drawable_is_named(library: Library) -> None:
    with pytest.raises(NotFound, match=r"checkpoint `gone` \(0123456789\)"):
        library.pictures.plan_settings(FOREIGN.format("0123456789", "gone"), ON_CPU)
    for other in ("tiny", "ink", "easydream"):  # a part of a name, and files of other kinds
        with pytest.raises(NotFound, match="not in the library"):
            library.pictures.plan_settings(FOREIGN.format("0123456789", other), ON_CPU)
    with pytest.raises(CannotRender, match="Cutoff"):
        library.pictures.plan_settings(FOREIGN.format("0123456789", "tiny-sd1") + ", Cutoff enabled: True", ON_CPU)
    with pytest.raises(CannotRender, match="no sampler"):
        library.pictures.plan_settings("a cat", ON_CPU)


@pytest.mark.usefixtures("stocked")
def test_replay_draws_an_image_of_a1111_from_its_settings(civman: Civman, tmp_path: Path) -> None:
    text = FOREIGN.format("0123456789", "tiny-sd1").replace("Sampler: Euler a", "Sampler: Euler, RNG: CPU")
    facts = PngImagePlugin.PngInfo()
    facts.add_text("parameters", text)
    Image.new("RGB", (64, 64)).save(tmp_path / "foreign.png", pnginfo=facts)
    (tmp_path / "settings.txt").write_text(text, encoding="utf-8")

    for name, code in (("foreign.png", 11), ("settings.txt", 0)):  # a black original shows nothing to compare with
        ran = civman("replay", tmp_path / name, "--device", "cpu", "-o", tmp_path / f"{name}.again.png")
        assert ran.code == code, ran.err
        assert "found by its name only" in ran.err
    assert (
        image_text.pixels(tmp_path / "foreign.png.again.png") == image_text.pixels(tmp_path / "settings.txt.again.png")
    ).all()
    options = ("--rng", "cpu", "--half-levels", "--odd-sizes", "a1111", "--sampler", "Euler", "--schedule", "Normal")
    typed = civman("render", "tiny-sd1", "a cat", "--negative", "bad", "--size", "64x64", "--steps", "3", "--cfg", "7",
                   "--seed", "5", "--device", "cpu", *options, "-o", tmp_path / "typed.png")  # fmt: skip
    assert typed.code == 0, typed.err
    apart = image_text.pixels(tmp_path / "typed.png").astype(int) - image_text.pixels(
        tmp_path / "foreign.png.again.png"
    )
    assert 0 <= apart.min() <= apart.max() <= 1, "A1111 rounds down"
    varied = civman("replay", tmp_path / "settings.txt", "--set", "seed=8", "--device", "cpu", "-o", tmp_path / "v.png")
    assert varied.code == 0, varied.err
    assert (image_text.pixels(tmp_path / "v.png") != image_text.pixels(tmp_path / "typed.png")).any()


@pytest.mark.usefixtures("stocked")
def test_some_settings_are_drawn_again_identically(library: Library, tmp_path: Path) -> None:
    assert again(library, tmp_path, range(0, 200, 17)) == {}


@pytest.mark.long
@pytest.mark.usefixtures("stocked")
def test_nearly_all_of_200_settings_are_drawn_again_identically(library: Library, tmp_path: Path) -> None:
    failed = again(library, tmp_path, range(200))

    print(failed)
    assert len(failed) <= 10, failed
