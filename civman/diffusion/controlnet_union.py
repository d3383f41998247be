"""Union ControlNets for SDXL: one network for several kinds of control image, which is told each image's kind.

If several control images of one union act in the same step, they are computed together in one call, as in diffusers,
and the network itself weighs them against each other. In this case, the weights of the images apply to the network's
inputs; with a single image, its weight applies to the outputs.

Source: xinsir's ControlNet++ and diffusers' ControlNetUnionModel (the structure and the order of the kinds).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from civman.diffusion.control_additions import Additions, control_tensor, marked
from civman.diffusion.pixels import Pixels
from civman.diffusion.uploads import sent
from civman.domain.recipes.control import CONTROL_TYPES, ControlUse


@dataclass(frozen=True, slots=True, eq=False)
class ControlNetUnion:
    """A loaded union ControlNet; `module` is diffusers' ControlNetUnionModel."""

    name: str
    module: Any

    def active(self, use: ControlUse, pixels: Pixels, size: tuple[int, int], device: torch.device) -> "ActiveUnion":
        """Prepare a control image (H, W, 3) uint8 for a pass of this size in pixels."""
        return ActiveUnion(self, ((use, control_tensor(pixels, size, use.resize_mode, device)),))


@dataclass(frozen=True, slots=True, eq=False)
class ActiveUnion:
    """A union ControlNet during one pass, with one or more uses and the control image (1, 3, H, W) of each.

    All uses have the same control mode.
    """

    net: ControlNetUnion
    parts: tuple[tuple[ControlUse, Tensor], ...]

    def joined(self, other: "ActiveUnion") -> "ActiveUnion | None":
        """Join two uses of the same union ControlNet; None if they cannot be computed in one call."""
        if other.net is not self.net or other.parts[0][0].mode != self.parts[0][0].mode:
            return None
        return replace(self, parts=(*self.parts, *other.parts))

    def at(self, step: int, steps: int) -> "ActiveUnion | None":
        """Return the union with only the control images that act in step `step` (counted from 0); None if none acts."""
        acting = tuple(part for part in self.parts if part[0].acts_at(step, steps))
        return replace(self, parts=acting) if acting else None

    def additions(
        self, latents: Tensor, time: Tensor, contexts: Tensor, added: Mapping[str, Any], positive: Sequence[bool]
    ) -> Additions:
        """Compute what the ControlNet adds to the UNet in one call; see `ActiveControl.additions` for the shapes."""
        dtype = next(self.net.module.parameters()).dtype
        uses, kinds = [use for use, _ in self.parts], [CONTROL_TYPES.index(use.type) for use, _ in self.parts]
        told = torch.zeros(self.net.module.config.num_control_type)
        told[kinds] = 1
        is_single = len(uses) == 1
        skips, middle = self.net.module(
            latents.to(dtype), time, encoder_hidden_states=contexts.to(dtype),
            controlnet_cond=[image.to(dtype).expand(len(latents), -1, -1, -1) for _, image in self.parts],
            control_type=sent(told, latents.device).to(dtype).repeat(len(latents), 1), control_type_idx=kinds,
            conditioning_scale=[1.0] if is_single else [use.weight for use in uses], return_dict=False,
            added_cond_kwargs={key: value.to(dtype) for key, value in added.items()},
        )  # fmt: skip
        found = [*skips, middle]
        weights = (uses[0] if is_single else replace(uses[0], weight=1.0)).weights(len(found))
        scaled = [output * weight for output, weight in zip(found, weights, strict=True)]
        return Additions(residuals=marked(scaled, uses[0], positive))
