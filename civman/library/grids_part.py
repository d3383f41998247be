"""`library.grids`: contact sheets of images that vary along one or two axes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from civman.domain.events import OnEvent, ignore
from civman.library.context import Part
from civman.library.pictures_part import PicturesPart

if TYPE_CHECKING:
    from civman.domain.recipes.machine import Machine
    from civman.domain.recipes.recipe import Recipe, RenderRequest
    from civman.planning.grid_axes import Axis
    from civman.planning.plan import Conditions
    from civman.planning.plan_types import Planned
    from civman.planning.recipe_sources import RecipeSource
    from civman.planning.vary import Change
    from civman.rendering.grid import DrawnGrid, Grid
    from civman.rendering.save_pictures import OutputOptions


class GridsPart(Part):
    """Plan and render grids."""

    def plan(
        self,
        of: "RenderRequest | Recipe | RecipeSource",
        axes: "Sequence[Axis]",
        *,
        changes: "Sequence[Change]" = (),
        pictures: Sequence[Path] = (),
        conditions: "Conditions | None" = None,
        on_event: OnEvent = ignore,
    ) -> "Grid":
        """Plan every cell of a grid, from a render request or from a recipe with `changes` applied to all cells.

        Raises: UsageError (`bad-grid`), and for any cell the errors of `Library.plan` and
        `PicturesPart.plan_variation`.
        """
        from civman.domain.recipes.recipe import Recipe, RenderRequest
        from civman.planning.plan import Conditions
        from civman.planning.recipe_sources import recipe_of
        from civman.rendering.grid import of_recipe, of_request

        index, variations = self._context.index, PicturesPart(self._context)
        if isinstance(of, RenderRequest):
            return of_request(index, of, axes, conditions or Conditions(), on_event=on_event)

        def vary(cell: "Sequence[Change]") -> "Planned":
            return variations.plan_variation(of, cell, pictures=pictures, conditions=conditions, on_event=on_event)

        recipe = of if isinstance(of, Recipe) else recipe_of(of)
        record = None if isinstance(of, Recipe) else of.record
        return of_recipe(index, recipe, axes, vary, seed=record.seed if record else None, changes=changes)

    def draw(
        self,
        grid: "Grid",
        *,
        output: Path | None = None,
        options: "OutputOptions | None" = None,
        machine: "Machine | None" = None,
        on_event: OnEvent = ignore,
    ) -> "DrawnGrid":
        """Render every cell as an image of its own, and a labelled contact sheet.

        `output`: a folder, or the path of the sheet's PNG. Raises: the errors of `Library.render`. After an error, the
        cells that were finished are kept, but no sheet is made.
        """
        from civman.domain.recipes.machine import Machine
        from civman.planning.compiling import require_compilable
        from civman.rendering.grid import draw
        from civman.rendering.save_pictures import OutputOptions

        context = self._context
        require_compilable((cell.planned.recipe for cell in grid.cells), machine or Machine())
        return draw(
            context.index, context.root, grid, output or context.renders, options or OutputOptions(),
            machine=machine or Machine(), clock=context.clock, on_event=on_event,
        )  # fmt: skip
