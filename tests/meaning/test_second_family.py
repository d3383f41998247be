"""The demo's flow-matching model: it draws what the caption says, its LoRA draws stripes, and both are offered."""

from itertools import pairwise

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from tiny_studio import Shots, model, shots_of

from civman.domain.recipes.recipe import LoraRequest, RenderRequest
from civman.library import Library

COUNT = 3


def drawn(studio: Library, prompt: str, *loras: LoraRequest) -> Shots:
    request = RenderRequest(
        model("tiny-flow"), prompt, seed=0, count=COUNT, batch_size=COUNT, precision="float32", loras=loras
    )
    return shots_of(studio, [request], COUNT)[0]


@pytest.mark.parametrize(
    ("colour", "shape", "ground"),
    [("green", "square", "white"), ("red", "triangle", "yellow"), ("blue", "circle", "orange")],
)
def test_the_caption_is_what_the_pictures_show(studio: Library, colour: str, shape: str, ground: str) -> None:
    article = "an" if ground == "orange" else "a"

    shown = drawn(studio, f"a large {colour} {shape} on {article} {ground} background")

    assert shown.share(kind="large", colour=colour, ground=ground) == 1
    assert shown.share(shape=shape) >= 2 / 3


def test_its_lora_draws_stripes_the_more_the_higher_its_scale(studio: Library) -> None:
    prompt = "a large blue square on a white background"

    banding = [
        drawn(studio, prompt, *([LoraRequest(model("tiny-flow-stripes"), scale)] if scale else [])).mean("banding")
        for scale in (0, 0.5, 1)
    ]

    assert all(after > before + 0.05 for before, after in pairwise(banding)), banding
    assert banding[-1] > 0.4
