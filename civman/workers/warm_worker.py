"""A worker that renders one task after another and keeps its model loaded between them."""

from collections.abc import Sequence
from dataclasses import replace

from civman.diffusion.environment import threads
from civman.domain.recipes.machine import Machine
from civman.planning.plan_types import Planned
from civman.planning.plan_upscale import PlannedUpscale
from civman.rendering.draw import draw
from civman.rendering.upscale import UpscaledPicture, Upscaler
from civman.rendering.warm_engines import WarmEngines
from civman.workers.dispatch import Made
from civman.workers.tasks import Work


class WarmWorker:
    """Keeps the model of its last plan loaded. Use it from one thread, and close it at the end."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._warm = WarmEngines(0)
        self._upscaler: Upscaler | None = None

    def draw(self, plans: Sequence[Work]) -> tuple[Made, ...]:
        """Carry out plans and return their images in order. Several plans must be renders that share slots.

        Raises: what `civman.rendering.draw.draw` and `civman.rendering.upscale.upscale` raise.
        """
        if upscales := [each for each in plans if isinstance(each, PlannedUpscale)]:
            self._warm.clear()
            return tuple(map(self._upscaled, upscales))
        self._upscaler = None
        drawn = draw([each for each in plans if isinstance(each, Planned)], self._machine, warm=self._warm)
        return tuple(sorted(drawn, key=lambda each: each.place))

    def close(self) -> None:
        """Release the model."""
        self._warm.clear()
        self._upscaler = None

    def _upscaled(self, planned: PlannedUpscale) -> UpscaledPicture:
        with threads(self._machine.threads):
            self._upscaler = self._upscaler or Upscaler(self._machine)
            made = self._upscaler.upscale(planned, lambda _tile, _tiles: None)
        # leave out the pixels of the source image, which the head does not need
        return replace(made, source=replace(made.source, image=None))
