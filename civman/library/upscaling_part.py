"""`library.upscaling`: enlarge images with the upscaler models of the library."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from civman.domain.events import OnEvent, ignore
from civman.library.context import Part

if TYPE_CHECKING:
    from civman.domain.recipes.enlargement import UpscaleRequest
    from civman.domain.recipes.machine import Machine
    from civman.planning.plan_upscale import PlannedUpscale
    from civman.planning.recipe_sources import RecipeSource
    from civman.rendering.save_pictures import OutputOptions
    from civman.rendering.upscale import SavedUpscale, UpscaledPicture
    from civman.rendering.upscale_again import UpscaledAgain


class UpscalingPart(Part):
    """Plan, compute and save upscales, and repeat the upscales of images that civman or A1111 made."""

    def plan(
        self, pictures: Iterable[Path], request: "UpscaleRequest", *, on_event: OnEvent = ignore
    ) -> "Sequence[PlannedUpscale]":
        """Plan the upscales of image files. A folder is replaced with the images directly in it.

        Raises: NotFound, AmbiguousRef, UsageError: the upscaler, an image or a size cannot be used. CannotRender: the
        packages for rendering are not installed.
        """
        from civman.planning.plan_upscale import plan_upscales
        from civman.planning.upscale_sources import pictures_in

        return plan_upscales(self._context.index, list(pictures_in(pictures)), request, on_event=on_event)

    def run(
        self,
        plans: "Iterable[PlannedUpscale]",
        *,
        output: Path | None = None,
        options: "OutputOptions | None" = None,
        machine: "Machine | None" = None,
        on: str | None = None,
        resume: bool = False,
        on_event: OnEvent = ignore,
    ) -> "Sequence[SavedUpscale]":
        """Compute upscales and save each image in `output` (default: the library's renders/) as soon as it is finished.

        `on` and `resume`: as in `Library.render`. `on_event` receives a `Step` with the stage "upscale" after each
        tile, or after each image if `on` or `resume` is used. Raises: CannotRender, StoreError. Interrupted: images
        that were finished before are kept.
        """
        from civman.domain.recipes.machine import Machine
        from civman.rendering.save_pictures import OutputOptions, Place

        context = self._context
        place = Place(output or context.renders, options or OutputOptions())
        # imported on first use, because importing torch takes 2 s or more
        from civman.rendering.upscale import SavedUpscale, upscale_and_save

        if on is not None or resume:
            from civman.workers.choose_pool import choose_pool
            from civman.workers.render_on import render_on

            made = render_on(
                context.index, context.root, list(plans), place, resumes=resume, clock=context.clock,
                on_event=on_event, start=choose_pool(on, machine or Machine()),
            )  # fmt: skip
            return [each for each in made if isinstance(each, SavedUpscale)]
        return upscale_and_save(
            context.index, context.root, plans, place, machine=machine or Machine(), clock=context.clock,
            on_event=on_event,
        )  # fmt: skip

    def pixels(
        self, pixels: Any, request: "UpscaleRequest", *, machine: "Machine | None" = None, on_event: OnEvent = ignore
    ) -> Any:
        """Enlarge an image in memory. Input and output are uint8 arrays (H, W, 3) or (H, W, 4). Nothing is saved.

        Raises: the errors of `plan` and `run`.
        """
        from civman.domain.recipes.machine import Machine
        from civman.rendering.upscale import upscale_pixels

        return upscale_pixels(self._context.index, pixels, request, machine=machine or Machine(), on_event=on_event)

    def again(
        self,
        source: "RecipeSource",
        *,
        pictures: Sequence[Path] = (),
        machine: "Machine | None" = None,
        on_event: OnEvent = ignore,
    ) -> "UpscaledAgain":
        """Repeat an upscale that civman made, and compare the pixels with the original. `save` saves the result.

        The image that was upscaled is searched for in `pictures` and among the library's copies. Raises: UsageError
        (`no-start-image`): it is missing. NotFound (`missing-files`): the upscaler model is missing.
        """
        from civman.domain.recipes.machine import Machine
        from civman.planning.plan_upscale import plan_again
        from civman.planning.recipe_sources import missing, require_all

        context = self._context
        require_all(missing(context.index, source))
        planned = plan_again(context.index, context.root, source, pictures, on_event=on_event)
        # imported on first use, because importing torch takes 2 s or more
        from civman.rendering.upscale_again import upscale_again

        return upscale_again(source, planned, machine=machine or Machine(), on_event=on_event)

    def plan_extras(
        self, picture: Path, *, source: Path | None = None, on_event: OnEvent = ignore
    ) -> "PlannedUpscale | None":
        """Plan the upscale that A1111's Extras tab made of `source`, with the settings that `picture` contains.

        Returns None if `picture` contains no such settings. Raises: UsageError (`no-start-image`): `source` is None,
        but needed. CannotRender (`not-drawable`): the image was not only upscaled; and the errors of `plan`.
        """
        from civman.planning.plan_upscale import plan_extras_of

        return plan_extras_of(self._context.index, picture, source, on_event=on_event)

    def save(
        self, made: "UpscaledPicture", *, output: Path | None = None, options: "OutputOptions | None" = None
    ) -> "SavedUpscale":
        """Save an image from `again` in `output` (default: the library's renders/) and in the index."""
        from civman.rendering.save_pictures import OutputOptions, Place
        from civman.rendering.upscale import save_upscale

        context = self._context
        place = Place(output or context.renders, options or OutputOptions())
        return save_upscale(context.index, made, place, context.clock())
