"""Finds the adapters of a request: those given by refs, and those that tags in a prompt name."""

from collections.abc import Sequence

from civman.domain.recipes.recipe import LoraRequest, LoraUse
from civman.errors import NotFound
from civman.planning.find_files import Finder, Found
from civman.planning.prompt_references import ScaledLora, Words


def loras_for(finder: Finder, asked: Sequence[LoraRequest], words: Words) -> list[ScaledLora]:
    """Find the adapters in the order in which they are merged: those given by refs first, then those in tags.

    Raises: NotFound, AmbiguousRef: no file matches, or several do. UsageError (`bad-scale`, `wrong-kind`): a scale is
        invalid, or a file is not an adapter. Refused: a file cannot be loaded.
    """
    named = [
        ScaledLora.of(
            _lora(finder, each.ref), each.scale, each.text_scale, each.blocks, each.keyframes, each.hires_keyframes
        )
        for each in asked
    ]
    return named + [
        ScaledLora.of(
            finder.named("lora", tag.name), tag.unet_scale, tag.te_scale, tag.blocks, tag.keyframes, tag.hires_keyframes
        )
        for tag in words.loras
    ]


def uses_of(loras: Sequence[ScaledLora], *, has_hires: bool) -> tuple[LoraUse, ...]:
    """The adapters as a recipe lists them. `has_hires`: whether there is a second pass."""
    return tuple(lora.use(has_hires=has_hires) for lora in loras)


def _lora(finder: Finder, ref: str) -> Found:
    try:
        return finder.find("lora", ref)
    except NotFound as error:
        name, colon, _ = ref.partition(":")
        if colon and finder.holds("lora", name):
            error.hint = f"a scale is one number or two, such as `{name}:0.7` or `{name}:0.7:0.5`"
        raise
