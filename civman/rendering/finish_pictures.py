"""The last steps of a render, if the recipe has them: faces are restored, and the image is enlarged."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from civman.diffusion.environment import deterministic
from civman.diffusion.face_restoration import FaceModels, load_face_model, restored
from civman.diffusion.guard import memory_errors
from civman.diffusion.upscaler_models import AnyUpscaler, load_upscaler
from civman.diffusion.upscaler_tiles import upscaled
from civman.domain.events import OnEvent, Step
from civman.domain.plurals import counted
from civman.planning.plan_types import Planned


@dataclass(frozen=True, slots=True)
class Finisher:
    """The loaded models for the last steps of one plan."""

    planned: Planned = field(repr=False)
    upscaler: AnyUpscaler | None = field(default=None, repr=False)
    faces: FaceModels | None = field(default=None, repr=False)

    @classmethod
    def of(cls, planned: Planned, device: Any) -> "Finisher | None":
        """Load the models of a plan whose pickles are replaced by their copies; None if its images are not changed.

        Raises: CannotRender (`no-upscaler`, `no-face-model`).
        """
        made, faces = planned.recipe.upscale, planned.recipe.faces
        if made is None and faces is None:
            return None
        models = None
        if faces is not None:
            kinds = ((faces.model, faces.method), (faces.detector, "retinaface"), (faces.parser, "parsenet"))
            models = FaceModels(*(load_face_model(planned.path(sha256), kind, device) for sha256, kind in kinds))
        upscaler = load_upscaler(planned.path(made.model)).to(device) if made and made.model else None
        return cls(planned, upscaler, models)

    @property
    def restorer(self) -> Callable[[Any], tuple[Any, str]] | None:
        """The function that restores faces and reports their number; None if the recipe restores none."""
        faces, models = self.planned.recipe.faces, self.faces
        if faces is None or models is None:
            return None

        def restore(pixels: Any) -> tuple[Any, str]:
            better, count = restored(pixels, models, faces.weight)
            return better, f"{counted(count, 'face')} restored" if count else "no face was found to restore"

        return restore

    def finish(self, pixels: Any, number: int, on_event: OnEvent) -> Any:
        """Enlarge (H, W, 3) uint8 pixels of image `number` of the plan, and return the new pixels.

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
