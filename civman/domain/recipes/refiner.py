"""The refiner of a recipe: a second checkpoint that takes over from the first one during the steps of a pass.

Source: A1111 1.6 to 1.10. Since 1.8, A1111 switches to the refiner at a noise level; earlier versions switched at a
step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from civman.domain.recipes.checkpoint_use import CheckpointUse

PASSES: Final = ("first", "second", "both")
"""The values of `Refiner.passes`: in which of two passes the refiner takes over."""


@dataclass(frozen=True, slots=True)
class Refiner:
    """The checkpoint that takes over a pass after a fraction of the denoising."""

    checkpoint: CheckpointUse
    switch_at: float
    """The fraction of the denoising after which the refiner takes over; 0: from the first step on; 1: never."""
    by_steps: bool = False
    """Whether `switch_at` is a fraction of the steps instead of a fraction of the training timesteps."""
    passes: str = "second"
    """In which of two passes the refiner takes over, one of `PASSES`; ignored if there is only one pass."""
    is_same_family: bool = True
    """Whether the refiner is of the first checkpoint's family; if not, LoRAs and embeddings have no effect on it."""

    def continues(self, *, is_second: bool, has_second: bool) -> bool:
        """Whether the refiner takes over in this pass.

        `is_second`: it is the second pass. `has_second`: there are two passes.
        """
        return not has_second or self.passes == "both" or (self.passes == "second") == is_second


def further_checkpoint_problems(recipe: Any) -> Iterator[str]:
    """Explain why a recipe's refiner or second checkpoint cannot be used, with one clause for each problem."""
    refiner: Refiner | None = recipe.refiner
    second: CheckpointUse | None = recipe.hires.checkpoint if recipe.hires else None
    for use in (second, refiner.checkpoint if refiner else None):
        if use is None:
            continue
        if use.prediction not in ("epsilon", "v_prediction"):
            yield f"prediction `{use.prediction}` is not one of epsilon, v_prediction"
        if use.is_zero_snr and recipe.sampling.half_levels:
            yield "noise levels of zero terminal SNR cannot be rounded to half precision"
    if recipe.slots and recipe.changes_model:
        yield "slots cannot be used if the model changes between the passes or during a pass"
    if refiner is not None:
        yield from _refiner_problems(recipe, refiner)


def _refiner_problems(recipe: Any, refiner: Refiner) -> Iterator[str]:
    if not 0 <= refiner.switch_at <= 1:
        yield "the fraction of the denoising after which the refiner takes over must be 0 to 1"
    if refiner.passes not in PASSES:
        yield f"the refiner's passes `{refiner.passes}` are not one of {', '.join(PASSES)}"
    if recipe.flow is not None:
        yield "flow-matching models cannot have a refiner"
    if recipe.sampling.program != "a1111":
        yield "a refiner needs A1111's sampling rules"
    if recipe.rules == 1:
        yield "recipe rules 1 do not support a refiner"
    if recipe.enlarged_input is not None:
        yield "an image that is redrawn in tiles cannot have a refiner"
