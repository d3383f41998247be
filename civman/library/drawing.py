"""Wishes about pictures: planned, drawn, remembered, read, made again."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from civman.domain.catalog import Asset
from civman.domain.events import OnEvent, ignore

if TYPE_CHECKING:
    from civman.domain.recipes.recipe import Recipe, RenderRequest
    from civman.index.read_pictures import KeptPicture, PictureFilter
    from civman.planning.grid_axes import Axis
    from civman.planning.plan import Conditions
    from civman.planning.plan_types import Planned, Rendering
    from civman.planning.recipe_sources import Missing, Told
    from civman.planning.vary import Change
    from civman.rendering.draw import Drawn
    from civman.rendering.grid import DrawnGrid, Grid
    from civman.rendering.import_pictures import Scanned
    from civman.rendering.picture_report import About
    from civman.rendering.replay import Again
    from civman.rendering.save_pictures import Manner
from civman.library.models import Models


class Drawing(Models):
    """Plan, render, vary, grids; pictures, told, replay."""

    def plan(
        self, request: "RenderRequest", conditions: "Conditions | None" = None, *, on_event: OnEvent = ignore
    ) -> "Planned":
        """Settle everything that decides the pictures, before a weight is loaded. Needs no network.

        Raises: NotFound, AmbiguousRef, Incompatible, IntegrityError: the files. UsageError: the values. CannotRender.
        """
        from civman.planning.plan import Conditions, plan

        return plan(self.index, request, conditions or Conditions(), on_event=on_event)

    def plan_recipe(self, recipe: "Recipe", pictures: Sequence[Path] = (), *, on_event: OnEvent = ignore) -> "Planned":
        """A recipe as it stands, its files found by digest; `pictures` are those that it may start from."""
        from civman.planning.plan import plan_recipe

        return plan_recipe(self.index, recipe, pictures, on_event=on_event)

    def vary(
        self,
        what: "Recipe | Told",
        changes: "Sequence[Change]",
        *,
        pictures: Sequence[Path] = (),
        conditions: "Conditions | None" = None,
        on_event: OnEvent = ignore,
    ) -> "Planned":
        """A recipe with fields changed (`civman.planning.vary.FIELDS`); a picture's is remembered as its parent."""
        from civman.domain.recipes.recipe import Recipe
        from civman.planning.input_pictures import kept_inputs
        from civman.planning.plan import Conditions
        from civman.planning.recipe_sources import recipe_of
        from civman.planning.vary import vary

        recipe = what if isinstance(what, Recipe) else recipe_of(what)
        kept = kept_inputs(self.root, recipe, pictures)
        planned = vary(self.index, recipe, changes, conditions or Conditions(), pictures=kept, on_event=on_event)
        return planned if isinstance(what, Recipe) else replace(planned, parent=recipe.sha256)

    def render(
        self,
        what: "Planned | Recipe | Sequence[Planned]",
        *,
        output: Path | None = None,
        manner: "Manner | None" = None,
        device: str | None = None,
        low_vram: bool = False,
        threads: int | None = None,
        on_event: OnEvent = ignore,
    ) -> "Sequence[Rendering]":
        """The pictures of a plan, a recipe or several plans, kept in `output` (default: renders/ of the library).

        Never reaches for the network. Raises: CannotRender, Incompatible, StoreError; Interrupted: what was made
        until then is kept.
        """
        from civman.domain.recipes.recipe import Recipe
        from civman.planning.plan_types import Planned
        from civman.rendering.save_pictures import Manner, Place

        if isinstance(what, Recipe):
            what = self.plan_recipe(what, on_event=on_event)
        plans = [what] if isinstance(what, Planned) else list(what)
        place = Place(output or self.root / "renders", manner or Manner())
        from civman.rendering.draw import Machine  # torch: 2 s and more, so last of all
        from civman.rendering.render_and_save import render

        machine = Machine(device, low_vram, threads)
        return render(self.index, self.root, plans, place, machine=machine, clock=self._clock, on_event=on_event)

    def pipeline(
        self,
        planned: "Planned",
        kind: str = "txt2img",
        *,
        device: str | None = None,
        low_vram: bool = False,
        on_event: OnEvent = ignore,
    ) -> Any:
        """Diffusers' own pipeline around a plan's model, its adapters merged: all that diffusers offers, from there on.

        `kind`: "txt2img", "img2img" or "inpaint". The plan's sampler and schedule are in it; prompts, seed and size
        are its call's. Nothing is kept or recorded. Raises: CannotRender, Incompatible; UsageError: no such kind.
        """
        from civman.rendering.draw import Machine, pipeline

        return pipeline(planned, kind, machine=Machine(device, low_vram), on_event=on_event)

    def plan_grid(
        self,
        what: "RenderRequest | Recipe | Told",
        axes: "Sequence[Axis]",
        *,
        changes: "Sequence[Change]" = (),
        pictures: Sequence[Path] = (),
        conditions: "Conditions | None" = None,
        on_event: OnEvent = ignore,
    ) -> "Grid":
        """Every cell of a grid, settled: of a request, or of variations of a picture's recipe with `changes` for all.

        Raises: UsageError (`bad-grid`); as `plan` and `vary`, of whichever cell.
        """
        from civman.domain.recipes.recipe import Recipe, RenderRequest
        from civman.planning.plan import Conditions
        from civman.planning.recipe_sources import recipe_of
        from civman.rendering.grid import of_recipe, of_request

        if isinstance(what, RenderRequest):
            return of_request(self.index, what, axes, conditions or Conditions(), on_event=on_event)

        def vary(cell: "Sequence[Change]") -> "Planned":
            return self.vary(what, cell, pictures=pictures, conditions=conditions, on_event=on_event)

        recipe = what if isinstance(what, Recipe) else recipe_of(what)
        record = None if isinstance(what, Recipe) else what.record
        return of_recipe(self.index, recipe, axes, vary, seed=record.seed if record else None, changes=changes)

    def draw_grid(
        self,
        grid: "Grid",
        *,
        output: Path | None = None,
        manner: "Manner | None" = None,
        device: str | None = None,
        low_vram: bool = False,
        threads: int | None = None,
        on_event: OnEvent = ignore,
    ) -> "DrawnGrid":
        """Every cell as a picture of its own, and a labelled sheet in `output`: a folder, or the sheet's PNG.

        Raises: as `render`; what was done until then is kept, without a sheet.
        """
        from civman.rendering.draw import Machine  # torch, see `render`
        from civman.rendering.grid import draw
        from civman.rendering.save_pictures import Manner

        return draw(
            self.index, self.root, grid, output or self.root / "renders", manner or Manner(),
            machine=Machine(device, low_vram, threads), clock=self._clock, on_event=on_event,
        )  # fmt: skip

    def pictures(
        self, wanted: "PictureFilter | None" = None, *, limit: int | None = None, offset: int = 0
    ) -> "Sequence[KeptPicture]":
        """Pictures that this library made and that pass the filter, newest first."""
        return self.index.pictures(wanted, limit=limit, offset=offset) if self.has_index else []

    def scan_pictures(self, folder: Path) -> "Scanned":
        """Take in pictures below `folder` that carry a recipe of civman's."""
        from civman.rendering.import_pictures import scan

        return scan(self.index, folder)

    def about(self, path: Path) -> "About":
        """All that a picture tells, whoever made it, and which of its models are here. Raises: UsageError."""
        from civman.rendering.picture_report import about

        return about(self.index if self.has_index else None, path)

    def told(self, what: str) -> "Told":
        """What a picture, a recipe's JSON, a picture's number or a recipe's digest tells.

        Raises: NotFound, AmbiguousRef; UsageError (`bad-picture`, `bad-recipe`); IntegrityError (`edited-recipe`).
        """
        from civman.planning.recipe_sources import told_by

        return told_by(self.index, what)

    def missing(self, told: "Told") -> "Sequence[Missing]":
        """The model files that a picture was made with and that are not here."""
        from civman.planning.recipe_sources import missing

        return missing(self.index, told)

    def regain(self, missing: "Sequence[Missing]", *, on_event: OnEvent = ignore) -> "Sequence[Asset]":
        """Fetch them from CivitAI by their ids, each verified by its digest.

        Raises: Gone (`deleted-upstream`), IntegrityError (`replaced-upstream`), NotFound (`not-on-civitai`); as
            `download`.
        """
        from civman.download.fetch_missing import regain

        return regain(missing, self._meant, lambda ref: self.download(ref, on_event=on_event), self._on_notice)

    def replay(
        self,
        told: "Told",
        *,
        pictures: Sequence[Path] = (),
        device: str | None = None,
        low_vram: bool = False,
        threads: int | None = None,
        on_event: OnEvent = ignore,
    ) -> "Sequence[Again]":
        """Make a picture again and compare; its files must be here (`missing`, `regain`). Keeps nothing.

        Raises: NotFound (`missing-files`); CannotRender, Incompatible, IntegrityError.
        """
        from civman.planning.input_pictures import kept_inputs
        from civman.planning.plan import plan_again
        from civman.planning.recipe_sources import recipe_of, require_all

        require_all(self.missing(told))
        kept = kept_inputs(self.root, recipe_of(told), pictures)
        planned = plan_again(self.index, told, tuple(kept.values()), on_event=on_event)
        from civman.rendering.draw import Machine  # torch, see `render`
        from civman.rendering.replay import again

        return again(told, planned, machine=Machine(device, low_vram, threads), on_event=on_event)

    def keep(
        self, drawn: "Sequence[Drawn]", *, output: Path | None = None, manner: "Manner | None" = None
    ) -> "Sequence[Rendering]":
        """Write pictures that `replay` made into `output` (default: renders/ of the library), and remember them."""
        from civman.rendering.render_and_save import keep

        return keep(self.index, drawn, output or self.root / "renders", manner, self._clock())
