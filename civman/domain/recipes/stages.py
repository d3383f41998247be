"""The stages of a render: each is computed by one checkpoint with one set of adapters and prompts.

Source: A1111 1.5 to 1.10. The second pass uses the LoRAs and hypernetworks that its own prompt names; the refiner uses
those of the pass that it takes over. The VAE is the one that the user chose, else that of the checkpoint in use.
"""

from dataclasses import replace
from enum import StrEnum

from civman.domain.recipes.recipe import CheckpointUse, Recipe


class Stage(StrEnum):
    """The stages of a render, in order: each pass is followed by the part of it that the refiner takes over."""

    FIRST = "first"
    FIRST_REFINED = "first, refined"
    SECOND = "second"
    SECOND_REFINED = "second, refined"

    @property
    def is_second(self) -> bool:
        """Whether the stage belongs to the second pass."""
        return self in (Stage.SECOND, Stage.SECOND_REFINED)

    @property
    def is_refined(self) -> bool:
        """Whether the refiner computes the stage."""
        return self in (Stage.FIRST_REFINED, Stage.SECOND_REFINED)

    @property
    def refined(self) -> "Stage":
        """The stage in which the refiner takes over this stage's pass."""
        return Stage.SECOND_REFINED if self.is_second else Stage.FIRST_REFINED


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """Return the stages of a recipe in order."""
    passes = (Stage.FIRST, Stage.SECOND) if recipe.hires else (Stage.FIRST,)
    found = []
    for stage in passes:
        found.append(stage)
        if recipe.refiner and recipe.refiner.continues(is_second=stage.is_second, has_second=recipe.hires is not None):
            found.append(stage.refined)
    return tuple(found)


def stage_recipe(recipe: Recipe, stage: Stage) -> Recipe:
    """Return the recipe with its checkpoint, adapters and prompts replaced with those of one stage.

    The result lists no files and no refiner, and its second pass has no prompts, adapters or checkpoint of its own.
    Stages with equal results share their model and, except where prompts change during the steps, their conditioning.
    """
    hires, refiner = recipe.hires, recipe.refiner
    found = replace(
        recipe, files=(), refiner=None,
        hires=hires and replace(
            hires, prompt=None, negative_prompt=None, loras=None, hypernetworks=None, checkpoint=None
        ),
    )  # fmt: skip
    if stage.is_second and hires is not None:
        found = replace(
            _with_checkpoint(found, hires.checkpoint),
            prompt=recipe.prompt if hires.prompt is None else hires.prompt,
            negative_prompt=recipe.negative_prompt if hires.negative_prompt is None else hires.negative_prompt,
            loras=recipe.loras if hires.loras is None else hires.loras,
            hypernetworks=recipe.hypernetworks if hires.hypernetworks is None else hires.hypernetworks,
        )
    if stage.is_refined and refiner is not None:
        found = _with_checkpoint(found, refiner.checkpoint)
        if not refiner.is_same_family:
            found = replace(found, loras=(), embeddings=(), config="")
    return found


def _with_checkpoint(recipe: Recipe, use: CheckpointUse | None) -> Recipe:
    if use is None:
        return recipe
    return replace(recipe, checkpoint=use.sha256, prediction=use.prediction, is_zero_snr=use.is_zero_snr)
