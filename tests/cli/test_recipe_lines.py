"""`civman show` leaves no setting of a recipe out."""

import dataclasses
from typing import Any

import pytest

from civman.cli.recipe_lines import _ELSEWHERE, recipe_lines
from civman.domain.digests import Sha256
from civman.domain.recipes.control import ControlUse
from civman.domain.recipes.recipe import Hires, Recipe, Sampling, StartImage
from civman.domain.recipes.reference import ReferenceUse

SHA = Sha256("a" * 64)
BASE: dict[str, Any] = {
    "checkpoint": SHA, "prompt": "a cat", "negative_prompt": "", "sampler": "Euler", "schedule": "Normal", "steps": 20,
    "guidance_scale": 7.0, "width": 512, "height": 512, "seed": 1, "clip_skip": 1, "prediction": "epsilon",
    "is_zero_snr": False, "precision": "float32",
}  # fmt: skip


def unusual(kind: type[Any], **given: Any) -> Any:
    """A value of a dataclass in which every field with a usual value has another one."""
    values = dict(given)
    for field in dataclasses.fields(kind):
        if field.name in values or field.default is dataclasses.MISSING:
            continue
        usual = field.default
        if isinstance(usual, bool):
            values[field.name] = not usual
        elif isinstance(usual, int | float):
            values[field.name] = type(usual)(usual + 3)
        elif isinstance(usual, str):
            values[field.name] = f"other-{field.name}"
    return values


@pytest.mark.parametrize("part", ["recipe", "start", "hires", "sampling"])
def test_every_field_with_another_value_is_printed(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start = unusual(StartImage, sha256=SHA, strength=0.4, mask_sha256=Sha256("b" * 64))
    hires = unusual(Hires, width=1024, height=768, steps=11, strength=0.3, upscaler="latent")
    fields = {
        "recipe": unusual(Recipe, **BASE, files=(), sampling=Sampling()), "start": start, "hires": hires,
        "sampling": unusual(Sampling),
    }[part]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "__post_init__", lambda self: None)  # these values make no sense together
        recipe = {
            "recipe": lambda: Recipe(**fields),
            "start": lambda: Recipe(**BASE, start=StartImage(**fields)),
            "hires": lambda: Recipe(**BASE, hires=Hires(**fields)),
            "sampling": lambda: Recipe(**BASE, sampling=Sampling(**fields)),
        }[part]()

    words = " ".join(recipe_lines(recipe))

    for name, value in fields.items():
        if part == "recipe" and (name in _ELSEWHERE or name in BASE or not value or name == "sampling"):
            continue
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        assert isinstance(value, bool) or shown in words, name
        assert not isinstance(value, bool) or name.removeprefix("is_").replace("_", " ") in words, name


def test_usual_values_are_left_out() -> None:
    words = " ".join(recipe_lines(Recipe(**BASE)))

    assert "mask" not in words
    assert "rng" not in words.lower()


def test_each_control_image_and_reference_picture_has_a_line_of_its_own() -> None:
    references = (ReferenceUse(SHA, SHA, SHA, 0.5, crop=(1, 2, 30, 40)), ReferenceUse(SHA, SHA, SHA))
    recipe = Recipe(**BASE, references=references, controls=(ControlUse(SHA, SHA, 0.7),))

    lines = list(recipe_lines(recipe))

    assert [line.partition(":")[0] for line in lines[:3]] == ["control image", "reference picture", "reference picture"]
    assert f"sha256 {SHA}, encoder {SHA}, picture {SHA}, weight 0.5, crop 1,2,30,40" in lines[1]
    assert "weight 0.7" in lines[0]
