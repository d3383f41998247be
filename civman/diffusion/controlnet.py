"""ControlNets of Stable Diffusion 1, 2 and XL: load one from a single file, and compute what it adds to the UNet.

A file may have the original layout, with or without the prefix `control_model.`, or diffusers' layout. As for
checkpoints, the config is derived from the tensors' shapes, except for the numbers of attention heads and norm groups,
which are those of the model family.

Source: Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from civman.diffusion.component_layouts import Source, unet_modules
from civman.diffusion.control_additions import Additions, control_tensor, marked
from civman.diffusion.control_lora_shapes import factors, is_control_lora, is_difference, whole_shapes
from civman.diffusion.control_shapes import control_config, original_name, original_names, union_size
from civman.diffusion.controlnet_union import ControlNetUnion
from civman.diffusion.loader import LoadedModel, build_empty
from civman.diffusion.mapped_weights import Weights
from civman.diffusion.pixels import Pixels
from civman.domain.recipes.control import ControlUse
from civman.errors import CannotRender, Cause


@dataclass(frozen=True, slots=True, eq=False)
class ControlNet:
    """A loaded ControlNet; `module` is diffusers' ControlNetModel."""

    name: str
    module: Any

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the ControlNet computes."""
        found: torch.dtype = next(self.module.parameters()).dtype
        return found

    def active(
        self, use: ControlUse, pixels: Pixels, size: tuple[int, int], device: torch.device
    ) -> "ActiveControlNet":
        """Prepare a control image (H, W, 3) uint8 for a pass of this size in pixels."""
        return ActiveControlNet(self, use, control_tensor(pixels, size, use.resize_mode, device))


def load_controlnet(
    path: Path, model: LoadedModel, *, device: torch.device, dtype: torch.dtype | None
) -> ControlNet | ControlNetUnion:
    """Load a ControlNet, which may be a union, for the UNet of a loaded model.

    If the ControlNet is stored as changes, they are added to the UNet's original weights, read from the checkpoint's
    file.

    Raises: CannotRender (`missing-tensor`): a tensor is missing. InvalidModelFile: the file cannot be read.
    """
    weights = Weights(path)
    names = original_names(weights.shapes)
    shapes = {plain: weights.shapes[name] for plain, name in names.items()}
    if is_control_lora(weights.shapes):
        shapes = whole_shapes(model.files["unet"].shapes, weights.shapes)
    if is_control_lora(weights.shapes) or is_difference(weights.shapes):
        dtype = dtype or next(model.unet.parameters()).dtype
    config = control_config(model.configs["unet"], shapes)
    component = "controlnet-union" if union_size(shapes) else "controlnet"
    module = build_empty({component: config})[component]
    modules = unet_modules({**config, "up_block_types": ["CrossAttn"] * len(config["block_out_channels"])})
    last_hint = 2 * len(config["conditioning_embedding_out_channels"]) - 3
    state = {}
    for parameter, empty in module.named_parameters():
        plain = original_name(parameter, modules, last_hint)
        if plain not in shapes:
            raise CannotRender(
                f"the ControlNet `{path.name}` lacks the tensor `{plain}`",
                hint="the file is incomplete or of an unknown kind", code=Cause.MISSING_TENSOR, missing=[plain],
            )  # fmt: skip
        tensor = _tensor(weights, names, plain, parameter, model)
        wanted = dtype or (torch.float16 if tensor.dtype.itemsize == 1 else tensor.dtype)
        state[parameter] = tensor.reshape(empty.shape).to(device, wanted)
    module.load_state_dict(state, strict=False, assign=True)
    for owner in module.modules():
        for name, buffer in list(owner.named_buffers(recurse=False)):
            owner.register_buffer(name, buffer.to(device), persistent=False)
    return ControlNetUnion(path.name, module) if union_size(shapes) else ControlNet(path.name, module)


def _tensor(weights: Weights, names: Mapping[str, str], plain: str, parameter: str, model: LoadedModel) -> Tensor:
    """Read a parameter of a ControlNet.

    If the file stores a change instead, return the UNet's parameter plus the change.

    `plain` is the parameter's original name without prefix.
    """
    if plain not in names:
        base = model.base_tensor("unet", parameter)
        if (pair := factors(plain, names)) is None:
            return base
        up, down = (weights.read(Source(names[each])).to(torch.float32).flatten(1) for each in pair)
        return base.to(torch.float32) + (up @ down).reshape(base.shape)
    tensor = weights.read(Source(names[plain]))
    if is_difference(weights.shapes) and parameter in model.sources["unet"]:
        base = model.base_tensor("unet", parameter)
        return base.to(torch.float32) + tensor.reshape(base.shape).to(torch.float32)
    return tensor


@dataclass(frozen=True, slots=True, eq=False)
class ActiveControlNet:
    """A ControlNet during one pass: its settings from the recipe, and its control image (1, 3, H, W) in 0 … 1."""

    net: ControlNet
    use: ControlUse
    image: Tensor

    def at(self, step: int, steps: int) -> "ActiveControlNet | None":
        """Return this ControlNet if it acts in step `step` (counted from 0), else None."""
        return self if self.use.acts_at(step, steps) else None

    def additions(
        self, latents: Tensor, time: Tensor, contexts: Tensor, added: Mapping[str, Any], positive: Sequence[bool]
    ) -> Additions:
        """Compute what the ControlNet adds to the UNet in one call; see `ActiveControl.additions` for the shapes."""
        dtype = self.net.dtype
        more = {"added_cond_kwargs": {key: value.to(dtype) for key, value in added.items()}} if added else {}
        skips, middle = self.net.module(
            latents.to(dtype), time, encoder_hidden_states=contexts.to(dtype),
            controlnet_cond=self.image.to(latents.device, dtype).expand(len(latents), -1, -1, -1),
            return_dict=False, **more,
        )  # fmt: skip
        found = [*skips, middle]
        if self.use.pools:
            found = [output.mean(dim=(2, 3), keepdim=True).expand_as(output) for output in found]
        scaled = [output * weight for output, weight in zip(found, self.use.weights(len(found)), strict=True)]
        return Additions(residuals=marked(scaled, self.use, positive))
