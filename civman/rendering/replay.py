"""Pictures made again from their recipes, and the verdict on what came of it."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from civman.domain.events import OnEvent, ignore
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.record import Record
from civman.errors import Cause, UsageError
from civman.planning.plan_types import Planned
from civman.planning.recipe_sources import RecipeSource, pixel_sha256, pixels_of
from civman.rendering.compare_pictures import Difference, Distance, Verdict, differences, distance, judge
from civman.rendering.draw import Drawn, draw
from civman.rendering.file_changes import ChangeKind, FileChange, change_of


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """A picture made again, compared with the original. `original`: its record; `distance`: how far its pixels are."""

    verdict: Verdict
    drawn: Drawn = field(repr=False)
    original: Record | None
    distance: Distance | None = None
    environment: tuple[Difference, ...] = ()
    """What differs from when the original was made: versions, device, threads."""
    notices: tuple[str, ...] = ()
    file_change: FileChange | None = None
    """How the replayed file differs from the image that was made; None: unchanged, or there is no file."""

    @property
    def record(self) -> Record:
        """The record of the picture made now."""
        return self.drawn.record


def replay(
    source: RecipeSource, planned: Planned, *, machine: Machine, on_event: OnEvent = ignore
) -> list[ReplayResult]:
    """Draw the picture again, with as many threads as recorded unless `machine` says otherwise, and compare.

    One picture where a record tells which; all of the recipe's where there is only the recipe.

    Raises: as `civman.rendering.draw.draw`.
    """
    then = source.record
    if machine.threads is None and then is not None:
        recorded = then.environment.get("threads")
        machine = replace(machine, threads=recorded if isinstance(recorded, int) and 0 < recorded <= 1024 else None)
    drawn = list(draw([planned], machine, on_event))
    if then is None:
        return [ReplayResult(Verdict.MADE, each, None) for each in drawn]
    mine = next((each for each in drawn if each.record.seed == then.seed), None)
    if mine is None:
        raise UsageError(f"the recipe makes no picture with seed {then.seed}", code=Cause.BAD_RECIPE)
    return [_compared(source, then, mine)]


def _compared(source: RecipeSource, then: Record, mine: Drawn) -> ReplayResult:
    is_same = mine.record.pixel_sha256 == then.pixel_sha256
    before = pixels_of(source)
    is_original = before is not None and pixel_sha256(before) == then.pixel_sha256
    change = None
    if source.path is not None and before is not None and not is_original:
        change = _changed(source, source.path, mine, is_same=is_same)
    apart, notices = None, _renamed(then, mine.record)
    if not is_same and before is not None and change is None:
        apart = distance(before, mine.pixels)
        if not source.is_lossless:
            notices += (f"`{source.name}` is a lossy file, so it is compared without the details that it lost",)
    return ReplayResult(
        judge(is_same, apart), mine, then, apart, differences(then.environment, mine.record.environment), notices,
        change,
    )  # fmt: skip


def _changed(source: RecipeSource, path: Path, mine: Drawn, *, is_same: bool) -> FileChange | None:
    """How a file whose pixels are not the recorded ones differs from the image that was made.

    Only if the replay has the recorded pixels can the file be compared with them. Otherwise a lossless file is known
    to be changed, and nothing more; a lossy file may be as it was written.
    """
    if is_same:
        return change_of(mine.pixels, path, is_lossless=source.is_lossless)
    if source.is_lossless:
        return FileChange(ChangeKind.RETOUCHED, "was changed after it was made: its pixels are not the recorded ones")
    return None


def _renamed(then: Record, now: Record) -> tuple[str, ...]:
    """Files that are called something else here."""
    before = {name.sha256: name.name for name in then.names}
    return tuple(
        f"`{before[name.sha256]}` is here as `{name.name}`"
        for name in now.names
        if before.get(name.sha256, name.name) != name.name
    )
