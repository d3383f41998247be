"""Formats a recipe's settings as text: those that `civman show` prints after prompt, sampler and size."""

import dataclasses
from collections.abc import Iterator
from dataclasses import MISSING
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from civman.domain.recipes.recipe import Recipe

_ELSEWHERE: Final = frozenset({
    "checkpoint", "vae", "loras", "embeddings", "files", "prompt", "negative_prompt", "sampler", "schedule", "steps",
    "guidance_scale", "width", "height", "seed", "clip_skip", "parts",
})  # fmt: skip
"""Fields of a recipe that are left out here, because `civman show` prints them on other lines."""
_TITLES: Final = {
    "rng": "RNG", "eta_seed_delta": "ENSD", "guidance_rescale": "CFG rescale", "is_zero_snr": "zero terminal SNR",
    "hires": "second pass", "prompt_rules": "prompt rules", "start": "input image", "upscale": "upscaled to",
    "references": "reference picture", "edit_images": "reference picture", "controls": "control image",
    "hypernetworks": "hypernetwork",
    "prompt_parts": "prompt part", "negative_parts": "negative prompt part",
    "config": "model config", "flow": "flow matching", "faces": "restored faces",
    "tiled": "redrawn in tiles", "ultimate": "Ultimate SD upscale",
    "tiled_diffusion": "Tiled Diffusion", "input_upscale": "input image enlarged to",
}  # fmt: skip


def recipe_lines(recipe: "Recipe") -> Iterator[str]:
    """Format a recipe's settings: a line for each group, and a last line for all others. Default values are omitted."""
    others = []
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if field.name in _ELSEWHERE or value is None or value == field.default:
            continue
        if value is False and field.default is MISSING:
            continue
        if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            yield from (f"{_title(field.name)}: {', '.join(_parts(each, MISSING))}" for each in value)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            if words := ", ".join(_parts(value, field.default)):
                yield f"{_title(field.name)}: {words}"
        else:
            others.append(_setting(field.name, value))
    if others:
        yield "also: " + ", ".join(others)


def _parts(value: Any, usual: object) -> Iterator[str]:
    """Format the fields of a nested value, except those that equal the same field of `usual`, the default."""
    has_usual = usual is not MISSING and usual is not None
    names = [field.name for field in dataclasses.fields(value)]
    if {"width", "height"} <= set(names):
        yield f"{value.width}x{value.height}"
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        expected = getattr(usual, field.name) if has_usual else field.default
        if field.name not in ("width", "height") and item is not None and item != expected:
            yield _setting(field.name, item)


def _setting(name: str, value: object) -> str:
    files = value if isinstance(value, tuple) else (value,)
    if all(hasattr(each, "sha256") for each in files):
        return f"{_title(name)} {' + '.join(map(_file, files)) or 'none'}"
    if isinstance(value, bool):
        return _title(name) if value else f"{_title(name)} off"
    if isinstance(value, tuple):
        return f"{_title(name)} {','.join(map(str, value))}"
    if isinstance(value, float):
        return f"{_title(name)} {value:g}"
    return f"{_title(name)} {value}"


def _file(use: Any) -> str:
    """Format a file that a nested value refers to: the start of its SHA-256, and its scale or strength."""
    scale = getattr(use, "scale", getattr(use, "strength", None))
    return f"{use.sha256[:12]}" + (f" at {scale:g}" if scale is not None else "")


def _title(name: str) -> str:
    return _TITLES.get(name, name.removeprefix("is_").replace("_", " "))
