"""Load any control model: a ControlNet or a T2I-Adapter, recognised by its tensors."""

from pathlib import Path

import torch

from civman.diffusion.checkpoint_names import Config
from civman.diffusion.controlnet import ControlNet, load_controlnet
from civman.diffusion.mapped_weights import Weights
from civman.diffusion.t2i_adapter import T2IAdapter, load_adapter
from civman.diffusion.t2i_shapes import is_adapter

ControlModel = ControlNet | T2IAdapter


def load_control(path: Path, unet: Config, *, device: torch.device, dtype: torch.dtype | None) -> ControlModel:
    """Load a control model for a UNet that was built with the arguments `unet`.

    Raises: CannotRender: a tensor is missing (`missing-tensor`), or the file is of a kind that civman cannot use
        (`unknown-family`). InvalidModelFile: the file cannot be read.
    """
    if is_adapter(Weights(path).shapes):
        return load_adapter(path, device=device, dtype=dtype)
    return load_controlnet(path, unet, device=device, dtype=dtype)
