"""Plans upscales: finds the upscaler model, reads every image and determines its new size, before loading weights."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from civman.domain.digests import Sha256
from civman.domain.events import OnEvent, ignore
from civman.domain.recipes.enlargement import UpscaleRequest, enlargement_of
from civman.domain.recipes.record_parts import FileName
from civman.domain.recipes.upscale_recipe import UpscaleRecipe, UpscaleRecord
from civman.errors import CannotRender, Cause, UsageError
from civman.index import Index
from civman.pictures import image_text
from civman.pictures.upscale_text import ExtrasSettings, extras_settings, request_of
from civman.planning.find_files import Finder, Found
from civman.planning.find_upscaler import any_upscaler, scale_of
from civman.planning.input_pictures import find_input
from civman.planning.plan_types import PlannedFile
from civman.planning.recipe_sources import RecipeSource
from civman.planning.render_extra import require_render_extra
from civman.planning.upscale_sources import SourcePicture, read_source


@dataclass(frozen=True, slots=True)
class PlannedUpscale:
    """An upscale that can be computed: its recipe, the image's path and size, and the file of the upscaler model."""

    recipe: UpscaleRecipe
    picture: Path
    size: tuple[int, int]
    model: PlannedFile | None = None
    notices: tuple[str, ...] = ()
    picture_name: str = ""
    """The image's file name, if `picture` is a copy under another name."""

    @property
    def name(self) -> str:
        """The file name of the image."""
        return self.picture_name or self.picture.name

    @property
    def files(self) -> tuple[PlannedFile, ...]:
        """The files of the plan: the image and, if there is one, the upscaler model."""
        picture = PlannedFile("picture", self.name, self.recipe.picture, self.picture)
        return (picture, self.model) if self.model is not None else (picture,)

    def with_files(self, files: Sequence[PlannedFile]) -> "PlannedUpscale":
        """Return this plan with the paths of copies of its files.

        `files`: the copies, in the order of the plan's `files`.
        """
        return replace(self, picture=files[0].path, picture_name=self.name, model=files[1] if files[1:] else None)

    @property
    def names(self) -> tuple[FileName, ...]:
        """The names of the upscaler model: its file and, if known, its model and version on CivitAI."""
        model = self.model
        return (FileName(model.sha256, model.name, model.model, model.version),) if model is not None else ()


def plan_upscales(
    index: Index, pictures: Iterable[Path], request: UpscaleRequest, *, on_event: OnEvent = ignore
) -> list[PlannedUpscale]:
    """Plan the upscale of several images with the same settings.

    Raises: NotFound, AmbiguousRef: the upscaler is not in the library, or several files match. UsageError: an image
        cannot be read, the upscaler is another kind of file, or a size is invalid. CannotRender: the render extra
            is missing.
    """
    require_render_extra()
    found, notices = any_upscaler(Finder(index, on_event), request.upscaler)
    return [_planned(read_source(path), request, found, notices) for path in pictures]


def _planned(
    source: SourcePicture, request: UpscaleRequest, found: Found | None, notices: tuple[str, ...]
) -> PlannedUpscale:
    made = enlargement_of(
        request, source.size, model=found.sha256 if found else None, model_scale=scale_of(found)
    )  # fmt: skip
    recipe = UpscaleRecipe(source.sha256, made, (found.in_recipe,) if found else ())
    told = tuple(f"`{source.path.name}`: {each}" for each in source.notices)
    if source.image.mode == "RGBA":
        told += (f"`{source.path.name}`: its alpha channel is upscaled separately, with the same upscaler",)
    return PlannedUpscale(recipe, source.path, source.size, found.planned if found else None, (*notices, *told))


def plan_upscale_recipe(
    index: Index, recipe: UpscaleRecipe, pictures: Mapping[Sha256, Path], *, on_event: OnEvent = ignore
) -> PlannedUpscale:
    """Plan an upscale recipe unchanged. `pictures`: image files by SHA-256 that may be its source.

    Raises: UsageError (`no-start-image`): the source is not among them. NotFound: the model is not in the library.
    """
    require_render_extra()
    path = pictures.get(recipe.picture)
    if path is None:
        raise UsageError(
            f"the image that was upscaled (sha256 {recipe.picture[:12]}…) is missing",
            hint="pass the original image with --picture FILE", code=Cause.NO_START_IMAGE, sha256=[str(recipe.picture)],
        )  # fmt: skip
    model = recipe.enlargement.model
    found = Finder(index, on_event).with_digest("upscaler", model) if model else None
    return PlannedUpscale(recipe, path, read_source(path).size, found.planned if found else None)


def plan_extras(index: Index, settings: ExtrasSettings, picture: Path, *, on_event: OnEvent = ignore) -> PlannedUpscale:
    """Plan an upscale of `picture` with the settings of A1111's Extras tab, rounding sizes as A1111 does.

    Raises: CannotRender (`not-drawable`): the settings contain more than one upscale. The errors of `plan_upscales`.
    """
    if settings.others:
        raise CannotRender(
            f"the image was changed by more than one upscale: {', '.join(settings.others)}",
            hint="civman can only repeat the work of a single upscaler, because A1111 does not record how a "
                    "second one was blended in",
            code=Cause.NOT_DRAWABLE,
        )  # fmt: skip
    source = read_source(picture)
    request = request_of(settings, source.size)
    found, notices = any_upscaler(Finder(index, on_event), settings.upscaler)
    return _planned(source, request, found, notices)


def plan_extras_of(
    index: Index, picture: Path, source: Path | None, *, on_event: OnEvent = ignore
) -> PlannedUpscale | None:
    """Plan the upscale that A1111's settings in `picture` describe, with `source` as the image to upscale.

    Returns None if `picture` contains no such settings. Raises: UsageError (`no-start-image`): `source` is None. The
    errors of `plan_extras`.
    """
    settings = extras_settings(image_text.read(picture))
    if settings is None:
        return None
    if source is None:
        raise UsageError(
            f"`{picture.name}` was upscaled in A1111's Extras tab from an image that its settings do not contain",
            hint="pass the original image with --picture FILE", code=Cause.NO_START_IMAGE,
        )  # fmt: skip
    return plan_extras(index, settings, source, on_event=on_event)


def plan_again(
    index: Index, root: Path, source: RecipeSource, pictures: Iterable[Path], *, on_event: OnEvent = ignore
) -> PlannedUpscale:
    """Plan the recipe of an upscaled image unchanged, with its source in `pictures` or among the library's copies.

    Raises: UsageError (`bad-recipe`): the image was not upscaled. The errors of `plan_upscale_recipe`.
    """
    upscaled = source.origin.upscaled
    if upscaled is None:
        raise UsageError(f"`{source.name}` was not upscaled", code=Cause.BAD_RECIPE)
    recipe = upscaled.recipe if isinstance(upscaled, UpscaleRecord) else upscaled
    return plan_upscale_recipe(index, recipe, find_input(root, recipe.picture, pictures), on_event=on_event)
