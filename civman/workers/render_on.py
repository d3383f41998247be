"""Render or upscale a large job on several workers, and continue one that was stopped."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path

from civman.domain.events import Notice, OnEvent
from civman.domain.plurals import counted
from civman.index import Index
from civman.planning.input_pictures import keep_inputs
from civman.planning.plan_types import Rendering
from civman.rendering.import_pictures import import_pictures
from civman.rendering.render_and_save import keeping, save_one
from civman.rendering.save_pictures import Place
from civman.rendering.saver import Saver
from civman.rendering.upscale import SavedUpscale, UpscaledPicture, save_upscale
from civman.workers.dispatch import Made, OnFailure, Pool, work_off
from civman.workers.tasks import Task, Work, side_by_side, tasks_of

Kept = Rendering | SavedUpscale
"""An image that was rendered or upscaled, and saved."""


def render_on(
    index: Index, root: Path, plans: Sequence[Work], place: Place, *,
    start: Callable[[list[Task]], Pool], resumes: bool,
    clock: Callable[[], datetime], on_event: OnEvent, on_failure: OnFailure | None = None,
) -> list[Kept]:  # fmt: skip
    """Carry out all plans on the workers of a pool; each image is saved and recorded as soon as it arrives.

    `start` starts a pool for these tasks. `resumes`: leave out images that the index lists with the same recipe in the
    same folder. `on_failure` receives each task that fails; without it, the first error ends the job.

    Returns the newly made images, in the order of the plans.

    Raises: what `civman.workers.dispatch.work_off` raises; StoreError, LibraryError. Interrupted.
    """
    for planned in plans:
        keep_inputs(root, planned.files)
    tasks = tasks_of(plans)
    if resumes:
        # import the images in the folder, because a killed job may have left one that was saved but not recorded
        import_pictures(index, place.folder)
        left = unfinished(index, tasks, place)
        if len(left) < len(tasks):
            on_event(
                Notice("render", f"{len(tasks) - len(left)} of {counted(len(tasks), 'image')} are already finished")
            )
        tasks = left
    files = {file.sha256 for task in tasks for file in task.planned.files}
    tasks = side_by_side(tasks)
    made: list[Kept] = []
    places: list[tuple[int, int]] = []
    if tasks:
        with (
            closing(start(tasks)) as pool,
            keeping(made, place),
            Saver[Made, Kept](lambda each: _saved(index, place, each, clock()), made.append) as saver,
        ):
            for task, drawn in work_off(tasks, pool, on_event, on_failure):
                for number, each in enumerate(drawn):
                    places.append((task.number, number))
                    saver.put(each)
        index.mark_used(files, clock())
    return [rendering for _, rendering in sorted(zip(places, made, strict=True), key=lambda pair: pair[0])]


def _saved(index: Index, place: Place, each: Made, at: datetime) -> Kept:
    if isinstance(each, UpscaledPicture):
        return save_upscale(index, each, place, at)
    return save_one(index, place, each, at)


def unfinished(index: Index, tasks: Sequence[Task], place: Place) -> list[Task]:
    """List the tasks with an image that is not recorded, or not in the folder where it would be saved.

    The index is queried once for all tasks.
    """
    folder, kept = str(place.folder.absolute()), defaultdict[str, list[tuple[str, int | None]]](list)
    for recipe, path, seed in index.seeds_of(task.planned.recipe.sha256 for task in tasks):
        if str(Path(path).parent) == folder:
            kept[recipe].append((path, seed))

    def is_finished(task: Task) -> bool:
        found = kept[task.planned.recipe.sha256]
        return len({seed for path, seed in found if Path(path).is_file()}) >= task.count

    return [task for task in tasks if not is_finished(task)]
