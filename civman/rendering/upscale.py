"""Upscales images with the upscaler models of the library, saves the results, and records them in the index."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from civman.diffusion.environment import choose_device, deterministic, environment, threads
from civman.diffusion.guard import memory_errors
from civman.diffusion.upscaler_models import AnyUpscaler, load_upscaler
from civman.diffusion.upscaler_tiles import upscaled
from civman.domain.digests import Sha256
from civman.domain.events import OnEvent, Step, ignore
from civman.domain.recipes.enlargement import UpscaleRequest, enlargement_of
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.upscale_recipe import UpscaleRecord
from civman.errors import IntegrityError
from civman.index import Index
from civman.pictures import image_text, upscale_text
from civman.planning.find_files import Finder
from civman.planning.find_upscaler import any_upscaler, scale_of
from civman.planning.input_pictures import keep_input
from civman.planning.plan_types import PlannedFile
from civman.planning.plan_upscale import PlannedUpscale
from civman.planning.recipe_sources import pixel_sha256
from civman.planning.upscale_sources import SourcePicture, read_source
from civman.rendering.render_and_save import keeping
from civman.rendering.save_pictures import EmbeddedMetadata, OutputOptions, Place
from civman.store.safe_copies import make_copy

_KEPT_STEM = 60
"""The maximum number of characters that a result's file name takes from the name of its source."""


@dataclass(frozen=True, slots=True)
class UpscaledPicture:
    """An image that was upscaled, with its record and its source.

    `pixels` are (H, W, 3) or, with transparency, (H, W, 4) uint8.
    """

    pixels: Any = field(repr=False, compare=False)
    record: UpscaleRecord
    source: SourcePicture = field(repr=False)


@dataclass(frozen=True, slots=True)
class SavedUpscale:
    """An image that was upscaled and saved. `id`: its number in the library."""

    path: Path
    record: UpscaleRecord
    id: int | None = None


def upscale(
    plans: Iterable[PlannedUpscale], *, machine: Machine, on_event: OnEvent = ignore
) -> Iterator[UpscaledPicture]:
    """Compute all planned upscales in order; consecutive plans with the same model load it only once.

    `on_event` receives a `Step` with the stage "upscale" after each tile.

    Raises: CannotRender: the model cannot be run, or there is not enough memory. IntegrityError: a source was changed
    after it was planned.
    """
    plans = list(plans)
    with threads(machine.threads):
        upscaler = Upscaler(machine)
        for number, planned in enumerate(plans, 1):
            yield upscaler.upscale(planned, _reporter(on_event, number, len(plans)))


class Upscaler:
    """Computes one upscale after another, and keeps the last upscaler model loaded."""

    def __init__(self, machine: Machine) -> None:
        self._device = choose_device(machine.device)
        self._sha256: Sha256 | None = None
        self._model: AnyUpscaler | None = None

    def upscale(self, planned: PlannedUpscale, on_tile: Callable[[int, int], None]) -> UpscaledPicture:
        """Compute one planned upscale.

        `on_tile` is called after each tile with its number and the number of tiles. Raises: the errors of
        `civman.rendering.upscale.upscale`.
        """
        made = planned.recipe.enlargement
        if made.model != self._sha256:
            self._model = load_model(planned.model).to(self._device) if planned.model else None
            self._sha256 = made.model
        source = read_source(planned.picture)
        if source.sha256 != planned.recipe.picture:
            raise IntegrityError(f"`{planned.picture}` was changed after the upscale was planned", hint="try again")
        with deterministic(), memory_errors("upscaling"):
            result = upscaled(source.image, made, self._model, on_tile)
        return _picture(planned, source, result, environment(self._device).to_facts())


def upscale_pixels(
    index: Index, pixels: Any, request: UpscaleRequest, *, machine: Machine, on_event: OnEvent = ignore
) -> Any:
    """Enlarge (H, W, 3) or (H, W, 4) uint8 pixels in memory; the result has the same number of channels.

    Raises: the errors of `civman.planning.plan_upscale.plan_upscales` and of `upscale`.
    """
    import numpy as np
    from PIL import Image

    found, _ = any_upscaler(Finder(index, on_event), request.upscaler)
    image = Image.fromarray(pixels)
    made = enlargement_of(
        request, image.size, model=found.sha256 if found else None, model_scale=scale_of(found)
    )  # fmt: skip
    with threads(machine.threads), deterministic(), memory_errors("upscaling"):
        model = load_model(found.planned).to(choose_device(machine.device)) if found else None
        return np.asarray(upscaled(image, made, model, _reporter(on_event, 1, 1)))


def load_model(file: PlannedFile) -> AnyUpscaler:
    """Load an upscaler model; a pickle is read through its safetensors copy. Raises: CannotRender, InvalidModelFile."""
    return load_upscaler(make_copy(file.path, file.copy).path if file.copy is not None else file.path)


def _reporter(on_event: OnEvent, number: int, count: int) -> Callable[[int, int], None]:
    return lambda done, tiles: on_event(Step("upscale", done, tiles, number, 1, count, "upscale"))


def _picture(
    planned: PlannedUpscale, source: SourcePicture, result: Any, facts: dict[str, str | int]
) -> UpscaledPicture:
    import numpy as np

    pixels = np.asarray(result)
    record = UpscaleRecord(
        planned.recipe, pixel_sha256(pixels), facts, planned.names, picture_name=planned.name,
        picture_size=source.size, parent=source.parent,
    )  # fmt: skip
    return UpscaledPicture(pixels, record, source)


def upscale_and_save(
    index: Index, root: Path, plans: Iterable[PlannedUpscale], place: Place, *, machine: Machine,
    clock: Callable[[], datetime], on_event: OnEvent = ignore,
) -> list[SavedUpscale]:  # fmt: skip
    """Upscale all images, saving and recording each one as soon as it is finished.

    The library keeps copies of the source images. After an error, finished images are kept and listed in the error
    (`paths`).

    Raises: the errors of `upscale`. StoreError, UsageError: an image cannot be saved. Interrupted.
    """
    plans = list(plans)
    made: list[SavedUpscale] = []
    with keeping(made, place):
        for each in upscale(plans, machine=machine, on_event=on_event):
            keep_input(root, each.source.path, each.source.sha256)
            made.append(save_upscale(index, each, place, clock()))
    index.mark_used({planned.model.sha256 for planned in plans if planned.model is not None}, clock())
    return made


def save_upscale(index: Index, each: UpscaledPicture, place: Place, at: datetime) -> SavedUpscale:
    """Save one upscaled image and record it in the index. Raises: UsageError, StoreError, LibraryError."""
    path = place.keep_bytes(picture_bytes(each, place.format, place.options), _stem(each))
    (number,) = index.record_pictures([(path.absolute(), each.record)], at)
    return SavedUpscale(path, each.record, number)


def picture_bytes(each: UpscaledPicture, format: image_text.Format, options: OutputOptions) -> bytes:  # noqa: A002
    """Encode an upscaled image as a file with its record and its source's text metadata, reproducibly."""
    if options.metadata is EmbeddedMetadata.NOTHING:
        record, parameters, others = None, None, dict[str, str]()
    else:
        source = each.source.parameters if options.metadata is EmbeddedMetadata.ALL else None
        record = each.record.to_json()
        parameters, others = upscale_text.texts(each.record, source, format)
    return image_text.write(
        each.pixels, record=record, parameters=parameters, format=format, quality=options.quality, others=others,
        profile=each.source.profile,
    )  # fmt: skip


def _stem(each: UpscaledPicture) -> str:
    """Return the stem of the result's file name: the source's stem and the final size."""
    width, height = each.record.recipe.enlargement.final_size
    return f"{Path(each.record.picture_name).stem[:_KEPT_STEM]}-{width}x{height}"
