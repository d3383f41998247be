"""Repeats the upscale of an image from its recipe and compares the result with the original."""

from dataclasses import dataclass, field, replace
from typing import Any

from civman.domain.events import OnEvent, ignore
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.upscale_recipe import UpscaleRecord
from civman.pictures import image_text
from civman.planning.plan_upscale import PlannedUpscale
from civman.planning.recipe_sources import RecipeSource, pixel_sha256
from civman.rendering.compare_pictures import Difference, Distance, Verdict, differences, distance, judge
from civman.rendering.upscale import UpscaledPicture, upscale


@dataclass(frozen=True, slots=True)
class UpscaledAgain:
    """An image that was upscaled again, compared with the original if there is one.

    `is_unchanged`: whether the original's file still has the pixels with which it was saved.
    """

    verdict: Verdict
    made: UpscaledPicture = field(repr=False)
    original: UpscaleRecord | None
    distance: Distance | None = None
    environment: tuple[Difference, ...] = ()
    is_unchanged: bool = True


def upscale_again(
    source: RecipeSource, planned: PlannedUpscale, *, machine: Machine, on_event: OnEvent = ignore
) -> UpscaledAgain:
    """Repeat an upscale and compare the result with the original.

    The recorded number of threads is used unless `machine` sets another number. Raises: the errors of
    `civman.rendering.upscale.upscale`.
    """
    then = source.origin.upscaled_record
    if machine.threads is None and then is not None:
        recorded = then.environment.get("threads")
        machine = replace(machine, threads=recorded if isinstance(recorded, int) and 0 < recorded <= 1024 else None)
    (made,) = upscale([planned], machine=machine, on_event=on_event)
    if then is None:
        return UpscaledAgain(Verdict.MADE, made, None)
    made = replace(made, record=replace(made.record, picture_name=then.picture_name, parent=then.parent))
    is_same = made.record.pixel_sha256 == then.pixel_sha256
    before = _pixels(source)
    is_unchanged = before is None or pixel_sha256(before) == then.pixel_sha256 or not source.is_lossless
    apart = None if is_same or before is None else distance(before[..., :3], made.pixels[..., :3])
    return UpscaledAgain(
        judge(is_same, apart), made, then, apart, differences(then.environment, made.record.environment), is_unchanged
    )


def _pixels(source: RecipeSource) -> Any:
    """Return the pixels of the original's file, including transparency; None if there is no file."""
    return image_text.pixels(source.path, with_alpha=True) if source.path is not None else None
