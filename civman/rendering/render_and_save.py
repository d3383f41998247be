"""Renders plans for a library: saves the pictures, records them in the index, and keeps copies of the input images."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Protocol

from civman.domain.events import OnEvent, ignore
from civman.domain.plurals import counted
from civman.domain.recipes.machine import Machine
from civman.errors import CivmanError, Interrupted
from civman.index import Index
from civman.planning.input_pictures import keep_inputs
from civman.planning.plan_types import Planned, Rendering
from civman.rendering.draw import Drawn, draw
from civman.rendering.save_pictures import OutputOptions, Place
from civman.rendering.saver import Saver


def render(
    index: Index, root: Path, plans: Iterable[Planned], place: Place, *, machine: Machine,
    clock: Callable[[], datetime], on_event: OnEvent = ignore,
) -> list[Rendering]:  # fmt: skip
    """Render all plans, saving and recording each picture while the next one is computed.

    Returns the pictures in the order of the plans. After an error, finished pictures are kept and listed in the error
    (`paths`).

    Raises: CannotRender, Incompatible: as in `civman.rendering.draw.draw`. StoreError, LibraryError. Interrupted: the
        user interrupted the render.
    """
    plans = list(plans)
    for planned in plans:
        keep_inputs(root, planned.files)
    made: list[Rendering] = []
    places: list[tuple[int, int]] = []
    with (
        keeping(made, place),
        Saver[Drawn, Rendering](lambda drawn: save_one(index, place, drawn, clock()), made.append) as saver,
    ):
        for drawn in draw(plans, machine, on_event):
            places.append(drawn.place)
            saver.put(drawn)
    index.mark_used({file.sha256 for planned in plans for file in planned.files}, clock())
    return [rendering for _, rendering in sorted(zip(places, made, strict=True), key=lambda pair: pair[0])]


def save_one(index: Index, place: Place, drawn: Drawn, at: datetime) -> Rendering:
    """Save one picture and record it in the index. Raises: StoreError, UsageError, LibraryError."""
    path = place.keep(drawn.pixels, drawn.record)
    (number,) = index.record_pictures([(path.absolute(), drawn.record)], at)
    return Rendering(path, drawn.record, drawn.applied, number)


class Saved(Protocol):
    """A rendered or upscaled image that was saved."""

    @property
    def path(self) -> Path:
        """The path of the image's file."""


@contextmanager
def keeping(made: Sequence[Saved], place: Place) -> Iterator[None]:
    """If the block raises an error or is interrupted, add the paths of the images saved so far to the error."""
    try:
        yield
    except KeyboardInterrupt:
        done = f"; saved {counted(len(made), 'finished picture')} in `{place.folder}`" if made else ""
        raise Interrupted(f"stopped{done}", paths=[str(rendering.path) for rendering in made]) from None
    except CivmanError as error:  # one picture could not be rendered or saved, but the earlier ones are saved
        error.facts["paths"] = [str(rendering.path) for rendering in made]
        raise


def save(
    index: Index, drawn: Sequence[Drawn], output: Path, options: OutputOptions | None, at: datetime
) -> list[Rendering]:
    """Save pictures and record them in the index. Raises: UsageError, StoreError, LibraryError."""
    place = Place(output, options or OutputOptions())
    paths = [place.keep(each.pixels, each.record) for each in drawn]
    made = [(path.absolute(), each.record) for path, each in zip(paths, drawn, strict=True)]
    numbers = index.record_pictures(made, at)
    return [
        Rendering(path, each.record, each.applied, number)
        for path, each, number in zip(paths, drawn, numbers, strict=True)
    ]
