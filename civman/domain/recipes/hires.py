"""The second (hires) pass of a recipe."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from civman.domain.digests import Sha256
from civman.domain.recipes.adapter_uses import HypernetworkUse, LoraUse
from civman.domain.recipes.checkpoint_use import CheckpointUse


@dataclass(frozen=True, slots=True)
class Hires:
    """The second pass: upscale the image to this size, then denoise it in `steps` steps with strength `strength`."""

    width: int
    height: int
    steps: int
    strength: float
    upscaler: str
    model: Sha256 | None = None
    """The upscaler model that enlarges the image, if `upscaler` is "model"."""
    token_merging: float = 0.0
    """The share of tokens that are merged in the second pass, see `Recipe.token_merging`."""
    trim_width: int = 0
    trim_height: int = 0
    """How many pixels in all are cropped from the first pass's image before it is enlarged, half of them at each side.
    """
    stretches: bool = False
    """Stretch the first pass's image to exactly the second pass's size, instead of enlarging it to cover it and
    cropping.
    """
    seed: int | None = None
    """The seed of the second pass's noise; None: the image's seed."""
    guidance_scale: float | None = None
    sampler: str = ""
    schedule: str = ""
    """The second pass's sampler and schedule; "" means the first pass's, as does a `guidance_scale` of None."""
    resize: str = ""
    """The filter that resizes an upscaler model's result (one of `recipe_limits.RESIZES`); "": as in A1111."""
    prompt: str | None = None
    negative_prompt: str | None = None
    """The prompts of the second pass; None means the first pass's."""
    loras: tuple[LoraUse, ...] | None = None
    hypernetworks: tuple[HypernetworkUse, ...] | None = None
    """The adapters and hypernetworks of the second pass, which replace those of the first pass; None means the same
    ones.
    """
    checkpoint: CheckpointUse | None = None
    """The second pass's checkpoint, which must be of the first checkpoint's family; None means the first checkpoint."""


def own_value_problems(recipe: Any) -> Iterator[str]:
    """Explain why the second pass cannot use the prompts, adapters and checkpoint that the recipe gives it."""
    hires: Hires = recipe.hires
    own = (hires.prompt, hires.negative_prompt, hires.loras, hires.hypernetworks, hires.checkpoint)
    if recipe.rules == 1 and any(each is not None for each in own):
        yield "rules 1 have no second pass with prompts, adapters or a checkpoint of its own"
    if hires.checkpoint is not None and recipe.flow is not None:
        yield "the second pass of a flow-matching model cannot have another checkpoint"
    if (recipe.prompt_parts or recipe.negative_parts) and own[:2] != (None, None):
        yield "a prompt with further parts cannot be combined with a prompt of the second pass"
