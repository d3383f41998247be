"""A worker, which renders one task after another and keeps its model loaded between them."""

from collections.abc import Sequence

from civman.domain.recipes.machine import Machine
from civman.planning.plan_types import Planned
from civman.rendering.draw import Drawn, draw
from civman.rendering.warm_engines import WarmEngines


class WarmWorker:
    """A model that stays loaded from one task to the next. Use it from one thread."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._warm = WarmEngines(0)

    def draw(self, plans: Sequence[Planned]) -> tuple[Drawn, ...]:
        """Render plans and return their images in order. Raises: what `civman.rendering.draw.draw` raises."""
        drawn = draw(plans, self._machine, warm=self._warm)
        return tuple(sorted(drawn, key=lambda each: each.place))

    def close(self) -> None:
        """Release the model."""
        self._warm.clear()
