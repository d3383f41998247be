"""`library.pictures`: rendered images, the recipes in image files, and the model files that recipes need."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from civman.domain.catalog import Asset
from civman.domain.events import OnEvent, ignore
from civman.library.context import Part
from civman.library.downloads_part import DownloadsPart

if TYPE_CHECKING:
    from civman.civitai.responses import Picture
    from civman.domain.recipes.machine import Machine
    from civman.domain.recipes.recipe import Recipe
    from civman.index import Index
    from civman.index.read_pictures import KeptPicture, PictureFilter
    from civman.planning.default_checkpoint import DefaultCheckpoint
    from civman.planning.plan import Conditions
    from civman.planning.plan_types import Planned, Rendering
    from civman.planning.recipe_sources import Missing, RecipeSource
    from civman.planning.redraw import Redraw
    from civman.planning.redraw_tiles import SourceImage
    from civman.planning.site_image import SiteImage
    from civman.planning.vary import Change
    from civman.rendering.draw import Drawn
    from civman.rendering.import_pictures import ImportedPictures
    from civman.rendering.picture_report import PictureReport
    from civman.rendering.save_pictures import OutputOptions


class PicturesPart(Part):
    """List, import, describe and save images; read recipes and vary them."""

    def list(
        self, wanted: "PictureFilter | None" = None, *, limit: int | None = None, offset: int = 0
    ) -> "Sequence[KeptPicture]":
        """List the rendered images in the index that match the filter, newest first."""
        context = self._context
        return context.index.pictures(wanted, limit=limit, offset=offset) if context.has_index else []

    def count(self, wanted: "PictureFilter") -> int:
        """The number of images that match the filter."""
        return self._context.index.count_pictures(wanted) if self._context.has_index else 0

    def forget(self, pictures: "Sequence[KeptPicture]") -> None:
        """Remove images from the index. Their files stay on disk."""
        self._context.index.forget_pictures([picture.id for picture in pictures])

    def import_folder(self, folder: Path) -> "ImportedPictures":
        """Add all images in `folder` and its subfolders that contain a civman recipe to the index."""
        from civman.rendering.import_pictures import import_pictures

        return import_pictures(self._context.index, folder)

    def describe(self, path: Path) -> "PictureReport":
        """Report all metadata of an image, whichever program wrote it, and which of its models are in the library.

        Raises: UsageError (`bad-picture`).
        """
        from civman.rendering.picture_report import describe

        return describe(self._index_if_any, path)

    def find_recipe(self, what: str) -> "RecipeSource":
        """Read a recipe from an image or a JSON file, or look it up by an image's id or the recipe's SHA-256.

        Raises: NotFound, AmbiguousRef; UsageError (`bad-picture`, `bad-recipe`); IntegrityError (`edited-recipe`).
        """
        from civman.planning.recipe_sources import find_recipe

        return find_recipe(self._context.index, what)

    def missing_files(self, source: "RecipeSource") -> "Sequence[Missing]":
        """List the model files that a recipe needs but this computer does not have."""
        from civman.planning.recipe_sources import missing

        return missing(self._context.index, source)

    def fetch_missing(self, missing: "Sequence[Missing]", *, on_event: OnEvent = ignore) -> "Sequence[Asset]":
        """Download missing files from CivitAI by their ids or SHA-256, and verify their SHA-256.

        Raises: Gone (`deleted-upstream`), IntegrityError (`replaced-upstream`), NotFound (`not-on-civitai`), and the
        errors of `Library.download`.
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
        """Plan a recipe with some fields changed (`civman.planning.vary.FIELDS`).

        If the original recipe came from an image or file, it is recorded as the parent. `pictures` are the files of the
        input image and mask. Raises: UsageError: a change is invalid; and the errors of `Library.plan`.
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

    def keep_inputs(self, planned: "Planned") -> None:
        """Copy a plan's input and control images into the library, so that variations of its recipe find them."""
        from civman.planning.input_pictures import keep_inputs

        keep_inputs(self._context.root, planned.files)

    def check_settings(self, file: Path) -> "Iterator[Redraw]":
        """Check whether images can be rendered again from their settings, and what would differ.

        `file` is a JSON Lines file with one image per line: an object with `id`, `meta` (as in CivitAI's API) and
        `baseModel`. The model files that the settings name are assumed to be present. Raises: UsageError: the file
        cannot be read.
        """
        from civman.planning.redraw import redraw_file

        return redraw_file(file)

    def foreign_settings(self, what: str) -> str | None:
        """Read A1111's `parameters` text or another program's JSON from an image, text or JSON file.

        The JSON may be a ComfyUI graph. Returns None if the file contains neither, or if civman made the image.

        An image that this library made is recognised by its pixels, even if its metadata was removed.

        Raises: UsageError (`bad-picture`): the image is damaged.
        """
        from civman.planning.redraw_request import settings_in

        return settings_in(self._context.index if self._context.has_index else None, Path(what).expanduser())

    def fetch_image(self, url: str, *, with_original: bool = True) -> "SiteImage | None":
        """Request an image on CivitAI and download its original to the library's `originals` folder.

        Returns None if `url` is not the URL of an image on CivitAI. An original that was already downloaded is not
        downloaded again. `with_original=False`: only the settings are requested.

        Raises: NotFound: the image is hidden from this account or was deleted. UsageError (`bad-picture`): it is a
            video or damaged; and the errors of `civman.download.fetch_image.fetch_image`.
        """
        from civman.domain.refs import ImageRef, parse_ref

        if "/images/" not in url or not isinstance(ref := parse_ref(url), ImageRef):
            return None
        from civman.civitai.storage_connection import StorageConnection, tls_context
        from civman.download.fetch_image import fetch_image
        from civman.errors import Cause, UsageError
        from civman.pictures import image_text, infotext
        from civman.planning.site_image import SiteImage
        from civman.store.served_files import ORIGINALS

        context = self._context
        found = context.client.image(ref.image_id)
        if found.media != "image":
            raise UsageError(f"image {found.id} on CivitAI is a {found.media}", code=Cause.BAD_PICTURE)
        path = context.root / ORIGINALS / f"{found.id}.image"
        if with_original and not path.is_file():
            fetch_image(lambda: StorageConnection(context.network, tls_context), found.url, path)
        carried = image_text.read(path) if path.is_file() else None
        text = carried.parameters if carried is not None else None
        return SiteImage(
            found.id, path, found.meta, found.base_model or "", carried is not None and carried.record is not None,
            text if text is not None and infotext.is_infotext(text) else None, found.version_ids,
        )  # fmt: skip

    def examples(self, version: int, *, limit: int = 20) -> "Sequence[Picture]":
        """Request images made with a model version from CivitAI, whatever their rating, with their settings."""
        from civman.domain.catalog import VersionId

        return self._context.client.images(VersionId(version), limit=limit)

    def plan_settings(
        self, settings: "str | SiteImage", conditions: "Conditions | None" = None, *,
        source: "SourceImage | None" = None, on_event: OnEvent = ignore,
    ) -> "Planned":  # fmt: skip
        """Plan the image that A1111's `parameters` text, a ComfyUI graph or an image on CivitAI describes.

        `source`: the input image for A1111's script SD upscale. The plan's notices list what differs from the original.

        Raises: CannotRender (`not-drawable`): the settings request something that civman does not render. NotFound
            (`missing-files`): files that they name are not in the library; and the errors of `Library.plan`.
        """
        from civman.planning.plan import Conditions, plan
        from civman.planning.redraw_request import prepare, request_of

        request, rounding, notices = request_of(
            self._context.index, prepare(self._context.index, settings, source), source
        )
        planned = plan(
            self._context.index, request, replace(conditions or Conditions(), triggers=False), on_event=on_event
        )
        recipe = replace(planned.recipe, rounding=rounding)
        return replace(planned, recipe=recipe, notices=(*notices, *planned.notices), typed=None)

    def drawn(
        self, plans: "Iterable[Planned]", *, machine: "Machine | None" = None, on_event: OnEvent = ignore
    ) -> "Iterator[Drawn]":
        """Render plans without saving. Each image is computed when the iterator reaches it; `save` saves the images.

        Raises: the errors of `Library.render`.
        """
        from civman.domain.recipes.machine import Machine
        from civman.rendering.draw import draw  # imports torch, which takes 2 s or more

        return draw(plans, machine or Machine(), on_event)

    def default_checkpoint(self) -> "DefaultCheckpoint":
        """Return the checkpoint for requests without one: the default in the settings, or else the library's only one.

        Raises: UsageError (`no-checkpoint`): neither exists.
        """
        from civman.planning.default_checkpoint import default_checkpoint

        return default_checkpoint(self._index_if_any, self._context.settings)

    def is_model_name(self, text: str) -> bool:
        """Whether `text` is a ref of a model, or the full name or alias of a stored model, rather than a prompt."""
        from civman.planning.default_checkpoint import names_a_model

        return names_a_model(self._index_if_any, text)

    @property
    def _index_if_any(self) -> "Index | None":
        return self._context.index if self._context.has_index else None

    def require_output(self, output: Path, options: "OutputOptions | None" = None) -> None:
        """Check before rendering that images can be saved to `output`.

        Raises: UsageError: the file name contradicts the options. StoreError: the folder cannot be written.
        """
        from civman.rendering.save_pictures import OutputOptions, Place

        Place(output, options or OutputOptions())

    def save(
        self, drawn: "Sequence[Drawn]", *, output: Path | None = None, options: "OutputOptions | None" = None
    ) -> "Sequence[Rendering]":
        """Save rendered images to `output` (default: the library's renders/), and record them.

        `drawn`: the images from `Library.replay` or from this part's method `drawn`.
        """
        from civman.rendering.render_and_save import save

        context = self._context
        return save(context.index, drawn, output or context.renders, options, context.clock())
