"""Plans the noise levels of a sampling run, for diffusion models and for flow-matching models."""

from collections.abc import Sequence

from civman.diffusion import samplers
from civman.diffusion.flow_levels import FLOW_SCHEDULES, FlowLevels, flow_table
from civman.diffusion.flow_solvers import FIRST_SHARE, FLOW_SOLVERS, RATIO_SOLVERS
from civman.diffusion.noise_levels import NoiseLevels, Schedule
from civman.diffusion.samplers import Plan, Sampler, Start
from civman.diffusion.solvers import Solver
from civman.domain.recipes.recipe import RULES
from civman.errors import Cause, UsageError


def plan(
    sampler: Sampler, schedule: Schedule, steps: int, levels: NoiseLevels | FlowLevels, *, is_xl: bool = False,
    start: Start | None = None, rules: int = RULES, sigmas: Sequence[float] = (),
) -> Plan:  # fmt: skip
    """Plan a run of `steps` steps; see `samplers.plan`.

    Raises: UsageError: the number of steps is out of range, or the model is a flow-matching model and the sampler or
    schedule cannot be used with these models.
    """
    if isinstance(levels, NoiseLevels):
        return samplers.plan(
            sampler, schedule, steps, levels, is_xl=is_xl, start=start, rules=rules, sigmas=sigmas
        )  # fmt: skip
    require_flow(sampler, schedule)
    # as for diffusion models, a strength below 1 reduces the number of steps
    share = min(start.strength, 0.999) if start else 1.0
    whole = int(steps / share) if start and start.keeps_steps else steps
    taken = (steps - 1 if start.keeps_steps else int(share * steps)) if start else None
    if not 1 <= steps <= whole <= levels.entries:
        raise UsageError(f"steps must be 1 to {levels.entries}, not {whole}", code=Cause.BAD_STEPS)
    table = [*sigmas] or flow_table(schedule, whole + sampler.drops_penultimate, levels)
    if sampler.drops_penultimate and not sigmas:
        table = [*table[:-2], table[-1]]
    if taken is not None and not sigmas:
        table = table[max(len(table) - 1 - taken - 1, 0) :]
    table = [s for i, s in enumerate(table) if i == 0 or s < table[i - 1]]
    first = table[0]
    span = (min(sigma for sigma in table if sigma > 0), first)
    if sampler.name in RATIO_SOLVERS and first >= 1:
        table[0] = levels.sigma(FIRST_SHARE)
    return Plan(sampler, schedule, tuple(table), first, 1.0, span, 1 - first)


def solver_of(sampler: Sampler, levels: NoiseLevels | FlowLevels) -> Solver:
    """Return the solver that a sampler uses for a model with these noise levels."""
    if isinstance(levels, NoiseLevels):
        return sampler.solver
    return FLOW_SOLVERS.get(sampler.name) or RATIO_SOLVERS[sampler.name]


def require_flow(sampler: Sampler, schedule: Schedule) -> None:
    """Check that flow-matching models support this sampler and schedule. Raises: UsageError."""
    if sampler.name not in FLOW_SOLVERS and sampler.name not in RATIO_SOLVERS:
        raise UsageError(
            f"flow-matching models such as this one do not support the sampler {sampler.name}",
            hint="samplers: " + ", ".join([*FLOW_SOLVERS, *RATIO_SOLVERS]),
            code=Cause.UNKNOWN_SAMPLER, nearest=["Euler"],
        )  # fmt: skip
    if schedule not in FLOW_SCHEDULES:
        raise UsageError(
            f"flow-matching models such as this one do not support the schedule {schedule}",
            hint="schedules: " + ", ".join(FLOW_SCHEDULES), code=Cause.UNKNOWN_SCHEDULE, nearest=["Simple"],
        )  # fmt: skip
