"""Loads control models, recognising their kind by their tensors, and prepares them for a pass."""

from collections.abc import Iterable
from pathlib import Path

import torch

from civman.diffusion.control_additions import ActiveControl
from civman.diffusion.controlnet import ControlNet, load_controlnet
from civman.diffusion.controlnet_union import ActiveUnion, ControlNetUnion
from civman.diffusion.loader import LoadedModel
from civman.diffusion.mapped_weights import Weights
from civman.diffusion.pixels import Pixels
from civman.diffusion.t2i_adapter import T2IAdapter, load_adapter
from civman.diffusion.t2i_shapes import is_adapter
from civman.domain.recipes.control import ControlUse

ControlModel = ControlNet | ControlNetUnion | T2IAdapter


def active_controls(
    controls: Iterable[tuple[ControlModel, ControlUse, Pixels]], size: tuple[int, int], device: torch.device
) -> list[ActiveControl]:
    """Prepare control models and their images (H, W, 3) uint8 for a pass of this size in pixels.

    Several uses of the same union ControlNet are joined into one.
    """
    found: list[ActiveControl] = []
    for model, use, pixels in controls:
        made = model.active(use, pixels, size, device)
        for number, other in enumerate(found):
            if isinstance(made, ActiveUnion) and isinstance(other, ActiveUnion) and (both := other.joined(made)):
                found[number] = both
                break
        else:
            found.append(made)
    return found


def load_control(path: Path, model: LoadedModel, *, device: torch.device, dtype: torch.dtype | None) -> ControlModel:
    """Load a control model for the UNet of a loaded model.

    Raises: CannotRender: a tensor is missing (`missing-tensor`), or civman does not support this kind of control model
        (`unknown-family`). InvalidModelFile: the file cannot be read.
    """
    if is_adapter(Weights(path).shapes):
        return load_adapter(path, device=device, dtype=dtype)
    return load_controlnet(path, model, device=device, dtype=dtype)
