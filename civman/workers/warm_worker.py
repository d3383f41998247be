"""A worker, which renders one task after another and keeps its model loaded between them."""

from contextlib import ExitStack
from types import TracebackType
from typing import Self

from civman.diffusion.environment import threads
from civman.domain.recipes.machine import Machine
from civman.planning.plan_types import Planned
from civman.rendering.draw import Drawn, prepare, run
from civman.rendering.engine import Engine
from civman.rendering.weight_files import with_safe_copies


class WarmWorker:
    """An engine that is reused from one plan to the next. Use it as a context manager, from one thread."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._engine: Engine | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(threads(self._machine.threads))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine = None
        self._stack.close()

    def draw(self, planned: Planned) -> tuple[Drawn, ...]:
        """Render one plan. Raises: what `civman.rendering.draw.draw` raises."""
        planned = with_safe_copies(planned)
        if self._engine is None or not self._engine.serves(planned):
            self._engine = None  # release the old model's memory before the new one is loaded
            self._engine = Engine(planned, self._machine, lambda _: None)
        return tuple(run(self._engine, prepare(self._engine, planned)))
