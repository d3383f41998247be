"""Refuses renders that are not possible with compiled model blocks (`--compile`), before anything is loaded."""

from collections.abc import Iterable

from civman.domain.recipes.machine import Machine
from civman.domain.recipes.recipe import Recipe
from civman.errors import Cause, UsageError


def require_compilable(recipes: Iterable[Recipe], machine: Machine) -> None:
    """Check that all recipes can be rendered with compiled blocks, if `machine.compiled` is set. Raises: UsageError."""
    if not machine.compiled:
        return
    if machine.low_vram:
        raise UsageError(
            "--compile needs all weights in memory, so it cannot be combined with --low-vram",
            hint="leave out --compile or --low-vram", code=Cause.NOT_COMPILABLE,
        )  # fmt: skip
    for recipe in recipes:
        merged = recipe.token_merging or (recipe.hires is not None and recipe.hires.token_merging)
        changes = {"token merging": merged, "a hypernetwork": recipe.hypernetworks, "an IP-Adapter": recipe.references}
        for name, is_used in changes.items():
            if is_used:
                raise UsageError(
                    f"--compile cannot be combined with {name}, which changes how the model's blocks "
                    "compute",
                    hint="render without --compile (replay: --no-compile)", code=Cause.NOT_COMPILABLE,
                )  # fmt: skip
