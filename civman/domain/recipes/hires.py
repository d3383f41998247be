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
    """The fraction of tokens that are merged in the second pass; see `Recipe.token_merging`."""
    trim_width: int = 0
    trim_height: int = 0
    """The number of pixels to crop from the first pass's image before enlarging it, half of them on each side."""
    stretches: bool = False
    """Whether the first pass's image is stretched to the second pass's size, instead of enlarged and cropped."""
    seed: int | None = None
    """The seed of the second pass's noise; None: the image's seed."""
    guidance_scale: float | None = None
    sampler: str = ""
    """The second pass's sampler; "" means the first pass's."""
    schedule: str = ""
    """The second pass's schedule; "" means the first pass's."""
    resize: str = ""
    """The filter that resizes an upscaler model's result (one of `recipe_limits.RESIZES`); "" means as in A1111."""
    prompt: str | None = None
    """The prompt of the second pass; None means the first pass's."""
    negative_prompt: str | None = None
    """The negative prompt of the second pass; None means the first pass's."""
    loras: tuple[LoraUse, ...] | None = None
    """The adapters of the second pass, which replace those of the first pass; None means the same adapters."""
    hypernetworks: tuple[HypernetworkUse, ...] | None = None
    """The hypernetworks of the second pass, which replace those of the first pass; None means the same ones."""
    checkpoint: CheckpointUse | None = None
    """The second pass's checkpoint, which must be of the first checkpoint's family; None means the first checkpoint."""


def own_value_problems(recipe: Any) -> Iterator[str]:
    """Explain why the second pass cannot use the prompts, adapters and checkpoint that the recipe gives it."""
    hires: Hires = recipe.hires
    own = (hires.prompt, hires.negative_prompt, hires.loras, hires.hypernetworks, hires.checkpoint)
    if recipe.rules == 1 and any(each is not None for each in own):
        yield "recipe rules 1 do not support separate prompts, adapters or checkpoints for the second pass"
    if hires.checkpoint is not None and recipe.flow is not None:
        yield "the second pass of a flow-matching model cannot have another checkpoint"
    if (recipe.prompt_parts or recipe.negative_parts) and own[:2] != (None, None):
        yield "the second pass cannot have its own prompt if the prompt has additional texts (concat, average …)"
