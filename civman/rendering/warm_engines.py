"""Keeps models loaded from one render to the next, within a memory budget."""

from contextvars import ContextVar
from dataclasses import dataclass

from civman.domain.events import Event, OnEvent, ignore
from civman.domain.recipes.machine import Machine
from civman.planning.plan_types import Planned
from civman.rendering.engine import Engine


@dataclass(slots=True)
class _Kept:
    engine: Engine
    machine: tuple[str | None, bool, bool]
    needed_bytes: int


class WarmEngines:
    """The loaded engines, the most recently used one last. To be used from one thread only."""

    def __init__(self, budget_bytes: int, on_event: OnEvent = ignore) -> None:
        """`budget_bytes`: the memory for all loaded models together; 0 keeps only the model in use.

        `on_event` is called with every event of every render, in addition to the render's own `on_event`. It may raise
        KeyboardInterrupt to stop the render; the model stays loaded.
        """
        self.budget_bytes = budget_bytes
        self._on_event = on_event
        self._kept: list[_Kept] = []

    @property
    def needed_bytes(self) -> int:
        """The estimated memory in bytes that the loaded models need."""
        return sum(each.needed_bytes for each in self._kept)

    @property
    def count(self) -> int:
        """The number of models that are loaded."""
        return len(self._kept)

    def engine(self, planned: Planned, machine: Machine, on_event: OnEvent) -> Engine:
        """Return an engine that can render the plan, loading the plan's model if no loaded engine can.

        Before a model is loaded, the least recently used engines are released until the model fits the budget. Raises:
        the errors of `Engine`.
        """
        wanted = (machine.device, machine.low_vram, bool(machine.compiled))
        for each in self._kept:
            if each.machine == wanted and each.engine.serves(planned):
                self._kept.remove(each)
                self._kept.append(each)
                return each.engine
        while self._kept and self.needed_bytes + planned.needed_bytes > self.budget_bytes:
            self._kept.pop(0)
        made = Engine(planned, machine, on_event)
        self._kept.append(_Kept(made, wanted, planned.needed_bytes))
        return made

    def drop(self, engine: Engine) -> None:
        """Release an engine whose weights may be damaged."""
        self._kept = [each for each in self._kept if each.engine is not engine]

    def clear(self) -> None:
        """Release all engines."""
        self._kept.clear()

    def telling(self, on_event: OnEvent) -> OnEvent:
        """Return a function that passes each event to `on_event` and also to the `on_event` of this object."""

        def tell(event: Event) -> None:
            on_event(event)
            self._on_event(event)

        return tell


WARM: ContextVar[WarmEngines | None] = ContextVar("warm_engines", default=None)
"""The engines that the renders in this context share; if None, each render loads its own models and releases them."""
