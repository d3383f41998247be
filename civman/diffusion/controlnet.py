"""ControlNets of Stable Diffusion 1, 2 and XL: load one from a single file, and compute what it adds to the UNet.

A file has the original layout (`control_model.`, with or without this prefix) or diffusers' layout. As for checkpoints,
all dimensions follow from the tensors' shapes, except for attention heads and norm groups, which are the family's.

Source: Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from civman.diffusion.checkpoint_names import Config
from civman.diffusion.component_layouts import Source, unet_modules
from civman.diffusion.control_shapes import control_config, original_name, original_names
from civman.diffusion.loader import build_empty
from civman.diffusion.mapped_weights import Weights
from civman.diffusion.pixels import Pixels
from civman.diffusion.uploads import sent
from civman.domain.recipes.control import ControlUse
from civman.errors import CannotRender, Cause


@dataclass(frozen=True, slots=True, eq=False)
class ControlNet:
    """A loaded ControlNet; `module` is diffusers' ControlNetModel."""

    name: str
    module: Any

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which it computes."""
        found: torch.dtype = next(self.module.parameters()).dtype
        return found


def load_controlnet(path: Path, unet: Config, *, device: torch.device, dtype: torch.dtype | None) -> ControlNet:
    """Load a ControlNet for a UNet that was built with the arguments `unet`.

    Raises: CannotRender (`missing-tensor`): a tensor is missing. InvalidModelFile: the file cannot be read.
    """
    weights = Weights(path)
    names = original_names(weights.shapes)
    config = control_config(unet, {plain: weights.shapes[name] for plain, name in names.items()})
    module = build_empty({"controlnet": config})["controlnet"]
    modules = unet_modules({**config, "up_block_types": ["CrossAttn"] * len(config["block_out_channels"])})
    last_hint = 2 * len(config["conditioning_embedding_out_channels"]) - 3
    state = {}
    for parameter, _ in module.named_parameters():
        plain = original_name(parameter, modules, last_hint)
        if plain not in names:
            raise CannotRender(
                f"the ControlNet `{path.name}` lacks the tensor `{plain}`",
                hint="the file is incomplete or of an unknown kind", code=Cause.MISSING_TENSOR, missing=[plain],
            )  # fmt: skip
        tensor = weights.read(Source(names[plain]))
        wanted = dtype or (torch.float16 if tensor.dtype.itemsize == 1 else tensor.dtype)
        state[parameter] = tensor.reshape(module.get_parameter(parameter).shape).to(device, wanted)
    module.load_state_dict(state, strict=False, assign=True)
    for owner in module.modules():
        for name, buffer in list(owner.named_buffers(recurse=False)):
            owner.register_buffer(name, buffer.to(device), persistent=False)
    return ControlNet(path.name, module)


@dataclass(frozen=True, slots=True, eq=False)
class ActiveControl:
    """A ControlNet during one pass: its use in the recipe, and the control image (1, 3, H, W) in 0 … 1."""

    net: ControlNet
    use: ControlUse
    image: Tensor

    def outputs(
        self, latents: Tensor, time: Tensor, contexts: Tensor, added: Mapping[str, Any], positive: Sequence[bool]
    ) -> list[Tensor]:
        """Compute what the ControlNet adds to the UNet's skip connections, and last to its middle block.

        `latents` (B, 4, h, w) and `contexts` (B, tokens, width) are the UNet's inputs; they consist of one batch of
        equal size for each entry of `positive`, which says whether it is for a positive prompt.
        """
        dtype = self.net.dtype
        more = {"added_cond_kwargs": {key: value.to(dtype) for key, value in added.items()}} if added else {}
        skips, middle = self.net.module(
            latents.to(dtype), time, encoder_hidden_states=contexts.to(dtype),
            controlnet_cond=self.image.to(latents.device, dtype).expand(len(latents), -1, -1, -1),
            return_dict=False, **more,
        )  # fmt: skip
        found = [*skips, middle]
        scaled = [output * weight for output, weight in zip(found, self.use.weights(len(found)), strict=True)]
        if self.use.mode == "control":  # only the positive prompts are controlled
            each = len(latents) // len(positive)
            marks = sent(torch.tensor([float(one) for one in positive for _ in range(each)]), latents.device)
            scaled = [output * marks.to(output.dtype).reshape(-1, 1, 1, 1) for output in scaled]
        return scaled


def control_tensor(pixels: Pixels, size: tuple[int, int], mode: str, device: torch.device) -> Tensor:
    """Resize a control image (H, W, 3) uint8 to `size` (width, height), and convert it to (1, 3, H, W) in 0 … 1."""
    from PIL import Image

    from civman.diffusion.start_picture import fitted

    image = Image.fromarray(pixels)
    image = image if image.size == size else fitted(image, size, mode)
    values = torch.from_numpy(np.array(image)).to(torch.float32) / 255
    return sent(values.permute(2, 0, 1)[None], device)


def control_sum(outputs: Sequence[Sequence[Tensor]], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Sum the outputs of several ControlNets; empty if there are none."""
    return tuple(sum(same[1:], start=same[0]).to(dtype) for same in zip(*outputs, strict=True))
