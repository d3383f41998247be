"""Decides which images are rendered side by side in slots, before anything is loaded."""

from collections.abc import Sequence

from civman.domain.recipes.recipe import Recipe, RenderRequest
from civman.planning.plan_types import MODEL_FIELDS, Planned

_UNET_FIELDS = ("slots", "loras", "hypernetworks", "freeu", "odd_sizes")
"""Recipe fields that change the UNet itself, besides those that choose its weights (`MODEL_FIELDS`)."""
_SHAPE_FIELDS = ("width", "height", "steps", "sampler", "guidance_scale")


def slot_groups(plans: Sequence[Planned]) -> list[tuple[int, ...]]:
    """Group plans whose images can share slots. Returns the positions of the plans in each group, from 0.

    Images share slots if their recipes have the same number of slots and need the same model with the same adapters,
    hypernetworks and FreeU. Prompts, seeds, sizes, samplers, steps, guidance and everything else may differ. Plans with
    images of the same shape are adjacent in a group, because one call of the UNet can compute only images of the same
    size. A plan without slots is a group of its own.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, planned in enumerate(plans):
        recipe = planned.recipe
        shared = tuple(getattr(recipe, name) for name in (*MODEL_FIELDS, *_UNET_FIELDS))
        groups.setdefault((*shared, planned.allow_partial) if recipe.slots else (number,), []).append(number)
    return [_by_shape(plans, numbers) for numbers in groups.values()]


def slot_notices(request: RenderRequest, recipe: Recipe) -> tuple[str, ...]:
    """Return a notice if slots were requested but the image must be computed alone."""
    if request.slots in (None, 0, 1) or recipe.slots:
        return ()
    why = (
        "it is rendered in tiles"
        if recipe.enlarged_input is not None
        else "its regions are rendered again in detail passes"
        if recipe.details
        else "its model changes between or during the passes"
        if recipe.changes_model
        else "the scale of a LoRA changes over the steps"
    )
    return (f"--slots has no effect, because the image must be computed alone: {why}",)


def beside(plans: Sequence[Planned]) -> list[int]:
    """For each plan, count the images of other plans that can be rendered in the same calls of the UNet (in slots)."""
    others = [0] * len(plans)
    for numbers in slot_groups(plans):
        images = sum(plans[number].recipe.count for number in numbers)
        for number in numbers:
            others[number] = images - plans[number].recipe.count
    return others


def _by_shape(plans: Sequence[Planned], numbers: Sequence[int]) -> tuple[int, ...]:
    """Order the plans of a group so that plans of the same shape are adjacent."""
    shapes: dict[tuple[object, ...], list[int]] = {}
    for number in numbers:
        recipe = plans[number].recipe
        last = recipe.hires and (recipe.hires.width, recipe.hires.height, recipe.hires.steps)
        shape = (*(getattr(recipe, name) for name in _SHAPE_FIELDS), last)
        shapes.setdefault(shape, []).append(number)
    return tuple(number for same in shapes.values() for number in same)
