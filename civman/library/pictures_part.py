"""`library.pictures`: the pictures that were made, the recipes in picture files, and the models those need."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from civman.domain.catalog import Asset
from civman.domain.events import OnEvent, ignore
from civman.library.context import Part
from civman.library.downloads_part import DownloadsPart

if TYPE_CHECKING:
    from civman.domain.recipes.recipe import Recipe
    from civman.index.read_pictures import KeptPicture, PictureFilter
    from civman.planning.plan import Conditions
    from civman.planning.plan_types import Planned, Rendering
    from civman.planning.recipe_sources import Missing, RecipeSource
    from civman.planning.vary import Change
    from civman.rendering.draw import Drawn
    from civman.rendering.import_pictures import ImportedPictures
    from civman.rendering.picture_report import PictureReport
    from civman.rendering.save_pictures import OutputOptions


class PicturesPart(Part):
    """List, import, describe and save pictures; read recipes and vary them."""

    def list(
        self, wanted: "PictureFilter | None" = None, *, limit: int | None = None, offset: int = 0
    ) -> "Sequence[KeptPicture]":
        """Pictures that this library made and that pass the filter, newest first."""
        context = self._context
        return context.index.pictures(wanted, limit=limit, offset=offset) if context.has_index else []

    def count(self, wanted: "PictureFilter") -> int:
        """How many pictures pass the filter."""
        return self._context.index.count_pictures(wanted) if self._context.has_index else 0

    def forget(self, pictures: "Sequence[KeptPicture]") -> None:
        """Remove pictures from the index; their files stay as they are."""
        self._context.index.forget_pictures([picture.id for picture in pictures])

    def import_folder(self, folder: Path) -> "ImportedPictures":
        """Put the pictures below `folder` that carry a recipe of civman's into the index."""
        from civman.rendering.import_pictures import import_pictures

        return import_pictures(self._context.index, folder)

    def describe(self, path: Path) -> "PictureReport":
        """All metadata of a picture, whichever program made it, and which of its models are stored here.

        Raises: UsageError (`bad-picture`).
        """
        from civman.rendering.picture_report import describe

        return describe(self._context.index if self._context.has_index else None, path)

    def find_recipe(self, what: str) -> "RecipeSource":
        """The recipe in a picture or a JSON file, or of a picture's number or a recipe's digest.

        Raises: NotFound, AmbiguousRef; UsageError (`bad-picture`, `bad-recipe`); IntegrityError (`edited-recipe`).
        """
        from civman.planning.recipe_sources import find_recipe

        return find_recipe(self._context.index, what)

    def missing_files(self, source: "RecipeSource") -> "Sequence[Missing]":
        """The model files that a recipe needs and that are not stored here."""
        from civman.planning.recipe_sources import missing

        return missing(self._context.index, source)

    def fetch_missing(self, missing: "Sequence[Missing]", *, on_event: OnEvent = ignore) -> "Sequence[Asset]":
        """Download missing files from CivitAI by their ids, each verified by its digest.

        Raises: Gone (`deleted-upstream`), IntegrityError (`replaced-upstream`), NotFound (`not-on-civitai`); as
            `Library.download`.
        """
        from civman.download.fetch_missing import fetch_missing

        context, downloads = self._context, DownloadsPart(self._context)
        return fetch_missing(
            missing, context.resolve, lambda ref: downloads.fetch(ref, on_event=on_event), context.on_notice
        )

    def plan_variation(
        self,
        of: "Recipe | RecipeSource",
        changes: "Sequence[Change]",
        *,
        pictures: Sequence[Path] = (),
        conditions: "Conditions | None" = None,
        on_event: OnEvent = ignore,
    ) -> "Planned":
        """A recipe with fields changed (`civman.planning.vary.FIELDS`); a picture's is recorded as its parent.

        `pictures` are the files that the recipe may start from. Raises: UsageError; as `Library.plan`.
        """
        from civman.domain.recipes.recipe import Recipe
        from civman.planning.input_pictures import kept_inputs
        from civman.planning.plan import Conditions
        from civman.planning.recipe_sources import recipe_of
        from civman.planning.vary import vary

        context = self._context
        recipe = of if isinstance(of, Recipe) else recipe_of(of)
        inputs = kept_inputs(context.root, recipe, pictures)
        planned = vary(context.index, recipe, changes, conditions or Conditions(), pictures=inputs, on_event=on_event)
        return planned if isinstance(of, Recipe) else replace(planned, parent=recipe.sha256)

    def save(
        self, drawn: "Sequence[Drawn]", *, output: Path | None = None, options: "OutputOptions | None" = None
    ) -> "Sequence[Rendering]":
        """Write pictures that `Library.replay` made into `output` (default: the library's renders/) and the index."""
        from civman.rendering.render_and_save import save

        context = self._context
        return save(context.index, drawn, output or context.renders, options, context.clock())
