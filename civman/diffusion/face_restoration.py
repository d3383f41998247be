"""Restores the faces in an image as A1111 does: finds each face, aligns it, restores it, and blends it back.

Source: A1111 1.8 to 1.10 with facexlib. The detector gets the image with its shorter side resized to 640 pixels; faces
whose eyes are less than 5 pixels apart are skipped. Only the pixels that ParseNet labels as part of the face are
blended into the image.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from civman.diffusion.face_codeformer import CodeFormer
from civman.diffusion.face_detector import FaceDetector
from civman.diffusion.face_geometry import SIDE, alignment, blurred, inverted, resized, warped
from civman.diffusion.face_gfpgan import Gfpgan
from civman.diffusion.face_layers import unwrapped
from civman.diffusion.face_parser import OUTSIDE, FaceParser
from civman.diffusion.tensor_files import open_tensors
from civman.errors import CannotRender, Cause

_SHORTER_SIDE: Final = 640
_LEAST_EYES: Final = 5
_BORDER: Final = (135.0, 133.0, 132.0)
"""The colour (blue, green, red) of an aligned face where it extends beyond the image."""
_RIM: Final = 10
"""The width in pixels of an aligned face's border that is never blended into the image."""

Restorer = Callable[[Tensor, float], Tensor]
"""A network that restores a face (1, 3, 512, 512) in -1 … 1; its second argument is CodeFormer's weight."""
_MODELS: Final[Mapping[str, Callable[[Mapping[str, Tensor]], Any]]] = {
    "codeformer": CodeFormer, "gfpgan": Gfpgan, "retinaface": FaceDetector, "parsenet": FaceParser,
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class FaceModels:
    """The three loaded networks that face restoration needs."""

    restorer: Restorer = field(repr=False)
    detector: FaceDetector = field(repr=False)
    parser: FaceParser = field(repr=False)


def load_face_model(path: Path, kind: str, device: torch.device) -> Any:
    """Load a face model of this kind ("codeformer", "gfpgan", "retinaface", "parsenet") from a safetensors file.

    Raises: CannotRender (`no-face-model`): tensors are missing or do not fit. InvalidModelFile, Refused: the file
    cannot be read.
    """
    with open_tensors(path) as file:
        found = unwrapped({name: file.get_tensor(name).clone() for name in file.keys()})  # noqa: SIM118
    try:
        return _MODELS[kind]({name: tensor.to(device) for name, tensor in found.items()})
    except KeyError as error:
        raise CannotRender(
            f"`{path.name}` is not a complete {kind} model: the tensor {error} is missing",
            hint="download the complete file again", code=Cause.NO_FACE_MODEL,
        ) from error  # fmt: skip


def restored(pixels: Any, models: FaceModels, weight: float) -> tuple[Any, int]:
    """Restore all faces in (H, W, 3) uint8 pixels; return the new pixels and the number of faces restored.

    Raises: CannotRender (`no-face-model`): a model's tensors are missing or do not fit together.
    """
    try:
        return _restored(pixels, models, weight)
    except (KeyError, RuntimeError, ValueError) as error:
        if "memory" in str(error):  # re-raise: the caller reports out-of-memory errors
            raise
        raise CannotRender(
            f"the face models cannot be run: {error}",
            hint="use the published files of the face models, such as `codeformer.pth`",
            code=Cause.NO_FACE_MODEL,
        ) from error


def face_boxes(pixels: Any, detector: FaceDetector) -> list[tuple[float, float, float, float]]:
    """Find the faces in (H, W, 3) uint8 pixels, most confident first; return (left, top, right, bottom) of each.

    Raises: CannotRender (`no-face-model`): the detector's tensors are missing or do not fit together.
    """
    image = np.ascontiguousarray(pixels[..., ::-1])
    height, width = image.shape[:2]
    scale = min(height, width) / _SHORTER_SIDE
    try:
        found = detector(resized(image, (int(width / scale), int(height / scale))))
    except (KeyError, RuntimeError, ValueError) as error:
        if "memory" in str(error):  # re-raise: the caller reports out-of-memory errors
            raise
        raise CannotRender(
            f"the face detector cannot be run: {error}",
            hint="use the published file of the face detector",
            code=Cause.NO_FACE_MODEL,
        ) from error
    return [(float(left), float(top), float(right), float(bottom)) for left, top, right, bottom in found.boxes * scale]


def _restored(pixels: Any, models: FaceModels, weight: float) -> tuple[Any, int]:
    image = np.ascontiguousarray(pixels[..., ::-1])
    height, width = image.shape[:2]
    device = models.detector.device
    scale = min(height, width) / _SHORTER_SIDE
    found = models.detector(resized(image, (int(width / scale), int(height / scale))))
    landmarks = [marks for marks in found.landmarks * scale if np.linalg.norm(marks[0] - marks[1]) >= _LEAST_EYES]
    result = image.astype(np.float64)
    for marks in landmarks:
        matrix = alignment(marks)
        face = warped(image, matrix, (SIDE, SIDE), _BORDER).round().clip(0, 255)
        better = _face_of(models.restorer(_tensor_of(face).to(device), weight))
        back = inverted(matrix)
        mask = warped(_mask(models.parser(_tensor_of(better).to(device))), back, (width, height))[..., None]
        laid = warped(better, back, (width, height)).round()
        result = mask * laid + (1 - mask) * result
    if not landmarks:
        return pixels, 0
    return np.ascontiguousarray(result.clip(0, 255).astype(np.uint8)[..., ::-1]), len(landmarks)


def _tensor_of(face: Any) -> Tensor:
    """Convert (H, W, 3) pixels of 0 to 255, blue first, to (1, 3, H, W) in -1 … 1, red first."""
    array = np.ascontiguousarray(face[..., ::-1].transpose(2, 0, 1), dtype=np.float32)
    return (torch.from_numpy(array)[None] / 255 - 0.5) / 0.5


def _face_of(output: Tensor) -> Any:
    """Convert (1, 3, H, W) in -1 … 1, red first, to (H, W, 3) integers of 0 to 255, blue first, rounded down."""
    values = ((output[0].float().cpu().clamp(-1, 1) + 1) / 2).numpy()
    return np.floor(values.transpose(1, 2, 0)[..., ::-1] * 255.0)


def _mask(classes: Any) -> Any:
    """Build the blending weights of an aligned face: 1 where it replaces the image, 0 where the image stays."""
    mask = blurred(blurred(np.where(np.isin(classes, OUTSIDE), 0.0, 255.0)))
    mask[:_RIM], mask[-_RIM:], mask[:, :_RIM], mask[:, -_RIM:] = 0, 0, 0, 0
    return mask / 255
