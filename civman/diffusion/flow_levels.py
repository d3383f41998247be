"""The noise levels of flow-matching models, and the schedules over them: x = (1 − σ)·clean + σ·noise, σ from 1 to 0.

A model's shift s changes evenly spaced t to σ = s·t / (1 + (s − 1)·t). A shift given as μ means s = e^μ. All numbers
are plain Python floats, as in `noise_levels`.

Sources: Esser et al. 2024, section 5.3.2 (shift); names and tables as in ComfyUI's `comfy/samplers.py` and
`comfy/model_sampling.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from civman.diffusion.noise_levels import Schedule, beta_quantile

_RHO: Final = 7.0
_BETA: Final = 0.6


@dataclass(frozen=True, slots=True)
class FlowLevels:
    """The noise levels of a flow-matching model.

    `shift`: the factor s; 1 leaves the levels evenly spaced. `entries`: the size of the table from which some schedules
    take their levels: in ComfyUI 10000 for Flux models, otherwise 1000.
    """

    shift: float = 1.0
    entries: int = 1000

    def sigma(self, share: float) -> float:
        """Return the noise level σ at t = `share`, from 0 to 1."""
        return self.shift * share / (1 + (self.shift - 1) * share)

    @property
    def least(self) -> float:
        """The lowest noise level of the table."""
        return self.sigma(1 / self.entries)

    @property
    def greatest(self) -> float:
        """The highest noise level: 1, pure noise."""
        return 1.0

    def entry(self, index: int) -> float:
        """Return an entry of the table; entry 0 is the lowest level."""
        return self.sigma((index + 1) / self.entries)


def flow_table(schedule: Schedule, steps: int, levels: FlowLevels) -> list[float]:
    """Compute a schedule's n+1 noise levels for n steps, from 1 down to 0 (KL Optimal: to the lowest level).

    Raises: ValueError: fewer than one step, or a schedule that is defined only for diffusion models.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    return list(_made(schedule, steps, levels))


@lru_cache(maxsize=64)
def _made(schedule: Schedule, steps: int, levels: FlowLevels) -> tuple[float, ...]:
    if schedule not in _TABLES:
        raise ValueError(f"the schedule {schedule} is not defined for flow-matching models")
    return tuple(_TABLES[schedule](steps, levels))


def _line(start: float, end: float, count: int) -> list[float]:
    return [start] if count == 1 else [start + (end - start) * i / (count - 1) for i in range(count)]


def _normal(n: int, levels: FlowLevels) -> list[float]:
    # shift the lowest level a second time, as ComfyUI and diffusers' `set_timesteps(n)` do
    return [*(levels.sigma(t) for t in _line(1.0, levels.least, n)), 0.0]


def _sgm_uniform(n: int, levels: FlowLevels) -> list[float]:
    return [*(levels.sigma(t) for t in _line(1.0, levels.least, n + 1)[:-1]), 0.0]


def _simple(n: int, levels: FlowLevels) -> list[float]:
    return [*(levels.entry(levels.entries - 1 - int(i * levels.entries / n)) for i in range(n)), 0.0]


def _beta(n: int, levels: FlowLevels) -> list[float]:
    places = [round(beta_quantile(1 - i / n, _BETA) * (levels.entries - 1)) for i in range(n)]
    return [*(levels.entry(place) for place in dict.fromkeys(places)), 0.0]


def _karras(n: int, levels: FlowLevels) -> list[float]:
    root = 1 / _RHO
    return [*(r**_RHO for r in _line(1.0, levels.least**root, n)), 0.0]


def _exponential(n: int, levels: FlowLevels) -> list[float]:
    return [*(math.exp(r) for r in _line(0.0, math.log(levels.least), n)), 0.0]


def _ddim(n: int, levels: FlowLevels) -> list[float]:
    gap = max(levels.entries // n, 1)
    return [*(levels.entry(i) for i in reversed(range(1, levels.entries, gap))), 0.0]


def _kl_optimal(n: int, levels: FlowLevels) -> list[float]:
    high, low = math.atan(1.0), math.atan(levels.least)
    return [math.tan(high + (low - high) * i / n) for i in range(n + 1)]


_TABLES: Final[dict[Schedule, Callable[[int, FlowLevels], list[float]]]] = {
    Schedule.NORMAL: _normal,
    Schedule.SGM_UNIFORM: _sgm_uniform,
    Schedule.SIMPLE: _simple,
    Schedule.BETA: _beta,
    Schedule.KARRAS: _karras,
    Schedule.EXPONENTIAL: _exponential,
    Schedule.DDIM: _ddim,
    Schedule.KL_OPTIMAL: _kl_optimal,
}
FLOW_SCHEDULES: Final = tuple(_TABLES)
"""The schedules that flow-matching models can use."""


def dynamic_shift(tokens: int, *, least: float = 0.5, most: float = 1.15, low: int = 256, high: int = 4096) -> float:
    """Return Flux.1's shift for an image's size: s = e^μ, where μ grows linearly with the number of image tokens.

    `least` and `most` are μ at `low` and `high` tokens. Source: Black Forest Labs' `flux/sampling.py`.
    """
    return math.exp(least + (tokens - low) * (most - least) / (high - low))
