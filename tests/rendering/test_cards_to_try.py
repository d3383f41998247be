"""The graphics cards that a replay tries are exactly those whose noise is another one, and the best one is kept."""

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch
from running import Civman

from civman.diffusion.noise import draws
from civman.domain.digests import Sha256
from civman.domain.recipes.noise_sources import THREADS
from civman.domain.recipes.recipe import Hires, Recipe
from civman.library import Library
from civman.pictures import image_text
from civman.planning.likely_causes import cards_to_try, depends_on_card, values_of_noise

RECIPE = Recipe(
    checkpoint=Sha256("0" * 64), prompt="", negative_prompt="", sampler="Euler", schedule="normal", steps=1,
    guidance_scale=4.0, width=64, height=64, seed=1, clip_skip=1, prediction="epsilon", is_zero_snr=False,
    precision="float32", rng="nv",
)  # fmt: skip


@pytest.mark.parametrize(
    ("width", "height"), [(512, 512), (512, 640), (512, 648), (640, 640), (768, 768), (1024, 1536)]
)
def test_a_card_is_tried_if_its_numbers_differ(width: int, height: int) -> None:
    recipe = replace(RECIPE, width=width, height=height)
    shape = (1, 4, height // 8, width // 8)
    plain = draws("nv", 3).randn(shape)

    tried = {rng for rng, _ in cards_to_try(recipe)}

    other = {
        f"nv:{threads}"
        for threads in set(THREADS.values())
        if not torch.equal(draws(f"nv:{threads}", 3).randn(shape), plain)
    }
    assert tried == other
    assert depends_on_card(recipe) == bool(other)
    assert values_of_noise(recipe) == plain.numel()


def test_the_second_pass_counts_and_a_stated_card_does_not() -> None:
    hires = replace(RECIPE, hires=Hires(1024, 1024, 1, 0.5, "latent"))

    assert values_of_noise(hires) == 4 * 128 * 128
    assert [names for _, names in cards_to_try(hires)][:2] == ["T4, GTX 1080", "RTX 3060"]
    assert depends_on_card(hires)
    assert not depends_on_card(replace(hires, rng="nv:43008"))
    assert not depends_on_card(replace(hires, rng="cpu"))


@pytest.mark.long
@pytest.mark.usefixtures("online")
def test_the_card_of_the_original_is_found(civman: Civman, tmp_path: Path, library: Library) -> None:
    library.download("91001@191010")
    library.close()
    text = tmp_path / "settings.txt"
    text.write_text(
        "a large red circle on a blue background\nSteps: 3, Sampler: Euler a, CFG scale: 4, Seed: 5, Size: 640x640, "
        "Model: tinyShapes_v10, Version: v1.10.1", encoding="utf-8",
    )  # fmt: skip
    drawn = civman("replay", text, "--set", "rng=GTX 1660", "--device", "cpu", "--json", "-o", tmp_path / "a.png")
    original = tmp_path / "original.jpg"
    original.write_bytes(
        image_text.write(image_text.pixels(tmp_path / "a.png"), record=None, parameters=None, format="jpeg", quality=80)
    )

    ran = civman("replay", text, "--compare", original, "--try-cards", "--device", "cpu", "--json")

    assert drawn.code == 0, drawn.err
    assert drawn.json["render"][0]["compared"] is None
    assert (ran.code, ran.json["render"][0]["compared"]["rng"]) == (0, "nv:22528"), ran.err
    assert "the noise of GTX 1660 is the most similar one" in ran.err
