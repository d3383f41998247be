"""Restores faces in finished images and enlarges the images, if the recipe requests it."""

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
    """The loaded models that restore faces in one plan's finished images and upscale these images."""

    planned: Planned = field(repr=False)
    upscaler: AnyUpscaler | None = field(default=None, repr=False)
    faces: FaceModels | None = field(default=None, repr=False)

    @classmethod
    def of(cls, planned: Planned, device: Any) -> "Finisher | None":
        """Load the models that a plan needs to finish its images; None if it needs none.

        In the plan, pickles must have been replaced by their safetensors copies. Raises: CannotRender (`no-upscaler`,
        `no-face-model`).
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
        """A function that restores faces, returning new pixels and a note; None if the recipe restores none."""
        faces, models = self.planned.recipe.faces, self.faces
        if faces is None or models is None:
            return None

        def restore(pixels: Any) -> tuple[Any, str]:
            better, count = restored(pixels, models, faces.weight)
            return better, f"{counted(count, 'face')} restored" if count else "no face was found to restore"

        return restore

    def finish(self, pixels: Any, number: int, on_event: OnEvent) -> Any:
        """Enlarge (H, W, 3) uint8 pixels as the recipe specifies, and return the new pixels.

        `number`: the position of the image in its plan, for progress events. Raises: CannotRender (`out-of-memory`).
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
