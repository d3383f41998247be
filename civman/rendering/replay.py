"""Replays pictures: renders them again from their recipes and compares the result with the original."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from civman.domain.events import OnEvent, ignore
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.record import Record
from civman.errors import Cause, UsageError
from civman.planning.compiling import require_compilable
from civman.planning.plan_types import Planned
from civman.planning.recipe_sources import RecipeSource, pixel_sha256, pixels_of
from civman.rendering.compare_pictures import Difference, Distance, Verdict, differences, distance, judge
from civman.rendering.draw import Drawn, draw
from civman.rendering.file_changes import ChangeKind, FileChange, change_of


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """A replayed picture, compared with the original.

    `original`: the original's record, if there is one; `distance`: how much the pixels of the two pictures differ.
    """

    verdict: Verdict
    drawn: Drawn = field(repr=False)
    original: Record | None
    distance: Distance | None = None
    environment: tuple[Difference, ...] = ()
    """How the environment differs from the original's, such as in versions, device or number of threads."""
    notices: tuple[str, ...] = ()
    file_change: FileChange | None = None
    """How the original's file was changed after its image was made; None if the file is unchanged or missing."""

    @property
    def record(self) -> Record:
        """The record of the replayed picture."""
        return self.drawn.record


def replay(
    source: RecipeSource, planned: Planned, *, machine: Machine, on_event: OnEvent = ignore
) -> list[ReplayResult]:
    """Render a picture again from its recipe and compare the result with the original.

    The recorded number of threads and engine are used unless `machine` sets others. If the picture has a record, only
    that picture is returned; otherwise, all pictures of the recipe are returned.

    Raises: the errors of `civman.rendering.draw.draw`.
    """
    then = source.record
    if machine.threads is None and then is not None:
        recorded = then.environment.get("threads")
        machine = replace(machine, threads=recorded if isinstance(recorded, int) and 0 < recorded <= 1024 else None)
    if machine.compiled is None and then is not None:
        machine = replace(machine, compiled=str(then.environment.get("engine", "")).startswith("inductor/"))
    require_compilable([planned.recipe], machine)
    drawn = list(draw([planned], machine, on_event))
    if then is None:
        return [ReplayResult(Verdict.MADE, each, None) for each in drawn]
    mine = next((each for each in drawn if each.record.seed == then.seed), None)
    if mine is None:
        raise UsageError(f"the recipe contains no picture with seed {then.seed}", code=Cause.BAD_RECIPE)
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
            notices += (
                f"`{source.name}` is a lossy file, so its pixels differ slightly from those that were computed",
            )
    return ReplayResult(
        judge(is_same, apart), mine, then, apart, differences(then.environment, mine.record.environment), notices,
        change,
    )  # fmt: skip


def _changed(source: RecipeSource, path: Path, mine: Drawn, *, is_same: bool) -> FileChange | None:
    """Find out how a file was changed after its image was made, if its pixels differ from the recorded ones.

    Only a replay with exactly the recorded pixels can be compared with the file. If the replay has other pixels, a
    lossless file was changed in an unknown way; a lossy file may be unchanged, so None is returned.
    """
    if is_same:
        return change_of(mine.pixels, path, is_lossless=source.is_lossless)
    if source.is_lossless:
        return FileChange(ChangeKind.RETOUCHED, "was changed after it was made: its pixels are not the recorded ones")
    return None


def _renamed(then: Record, now: Record) -> tuple[str, ...]:
    """List notices about model files whose names in this library differ from the recorded names."""
    before = {name.sha256: name.name for name in then.names}
    return tuple(
        f"the file recorded as `{before[name.sha256]}` is called `{name.name}` in this library"
        for name in now.names
        if before.get(name.sha256, name.name) != name.name
    )
