"""What happens to a rendered image before it is saved: it is enlarged, if the recipe says so."""

from dataclasses import dataclass, field
from typing import Any

from civman.diffusion.environment import deterministic
from civman.diffusion.guard import memory_errors
from civman.diffusion.upscaler_models import AnyUpscaler, load_upscaler
from civman.diffusion.upscaler_tiles import upscaled
from civman.domain.events import OnEvent, Step
from civman.planning.plan_types import Planned


@dataclass(frozen=True, slots=True)
class Finisher:
    """The loaded models for the last steps of one plan."""

    planned: Planned = field(repr=False)
    upscaler: AnyUpscaler | None = field(default=None, repr=False)

    @classmethod
    def of(cls, planned: Planned, device: Any) -> "Finisher | None":
        """Load the models of a plan whose pickles are replaced by their copies; None if its images are not changed.

        Raises: CannotRender (`no-upscaler`).
        """
        made = planned.recipe.upscale
        if made is None:
            return None
        return cls(planned, load_upscaler(planned.path(made.model)).to(device) if made.model else None)

    def finish(self, pixels: Any, number: int, on_event: OnEvent) -> Any:
        """Apply the last steps to (H, W, 3) uint8 pixels of image `number` of the plan, and return such pixels.

        Raises: CannotRender (`out-of-memory`).
        """
        import numpy as np
        from PIL import Image

        recipe = self.planned.recipe

        def tell(done: int, tiles: int) -> None:
            on_event(Step("render", done, tiles, number, 1, recipe.count, "upscale"))

        if recipe.upscale is None:
            return pixels
        with deterministic(), memory_errors("upscaling"):
            return np.ascontiguousarray(upscaled(Image.fromarray(pixels), recipe.upscale, self.upscaler, tell))
