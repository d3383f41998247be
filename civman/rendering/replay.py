"""Pictures made again from their recipes, and the verdict on what came of it."""

from dataclasses import dataclass, field, replace

from civman.domain.events import OnEvent, ignore
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.record import Record
from civman.errors import Cause, UsageError
from civman.planning.plan_types import Planned
from civman.planning.recipe_sources import RecipeSource, pixel_sha256, pixels_of
from civman.rendering.compare_pictures import Difference, Distance, Verdict, differences, distance, judge
from civman.rendering.draw import Drawn, draw


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
    before = pixels_of(source)
    is_same = mine.record.pixel_sha256 == then.pixel_sha256
    notices = _renamed(then, mine.record)
    if before is not None and source.is_lossless and pixel_sha256(before) != then.pixel_sha256:
        notices += (f"the pixels of `{source.name}` are not those that were made: somebody changed the file since",)
        before = None
    apart = None
    if not is_same and before is not None:
        apart = distance(before, mine.pixels)
        if not source.is_lossless:
            notices += (f"`{source.name}` has lost detail when it was written: what is compared with is not all there",)
    return ReplayResult(
        judge(is_same, apart), mine, then, apart, differences(then.environment, mine.record.environment), notices
    )


def _renamed(then: Record, now: Record) -> tuple[str, ...]:
    """Files that are called something else here."""
    before = {name.sha256: name.name for name in then.names}
    return tuple(
        f"`{before[name.sha256]}` is here as `{name.name}`"
        for name in now.names
        if before.get(name.sha256, name.name) != name.name
    )
