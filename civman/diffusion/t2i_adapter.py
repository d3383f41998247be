"""T2I-Adapters for Stable Diffusion 1 and XL: small networks that convert a picture to features for a UNet.

The features act in the UNet's first half. They depend only on the picture, so they are computed once for each pass.

Source: Mou et al. 2023, "T2I-Adapter"; the weights of the control modes: A1111's ControlNet extension (the rule).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from civman.diffusion.component_layouts import Source
from civman.diffusion.control_additions import Additions, control_tensor, marked
from civman.diffusion.loader import build_empty
from civman.diffusion.mapped_weights import Weights
from civman.diffusion.pixels import Pixels
from civman.diffusion.t2i_shapes import adapter_config, adapter_names
from civman.domain.recipes.control import ControlUse
from civman.errors import CannotRender, Cause


@dataclass(frozen=True, slots=True, eq=False)
class T2IAdapter:
    """A loaded T2I-Adapter; `module` is diffusers' T2IAdapter."""

    name: str
    module: Any

    def active(self, use: ControlUse, pixels: Pixels, size: tuple[int, int], device: torch.device) -> "ActiveAdapter":
        """Compute the features of a control image (H, W, 3) uint8 for a pass of this size in pixels.

        The adapter folds each square of pixels into one, so the image is resized to the next larger multiple of the
        square's side. An adapter with one input channel gets the image's first channel, as in A1111.
        """
        config = self.module.config
        whole, high = (-(-side // config.downscale_factor) * config.downscale_factor for side in size)
        image = control_tensor(pixels, (whole, high), use.resize_mode, device)[:, : config.in_channels]
        features = self.module(image.to(next(self.module.parameters()).dtype))
        weights = use.feature_weights(len(features))
        return ActiveAdapter(use, tuple(each * weight for each, weight in zip(features, weights, strict=True)))


@dataclass(frozen=True, slots=True, eq=False)
class ActiveAdapter:
    """A T2I-Adapter during one pass: its settings from the recipe and its weighted features (1, channels, h, w)."""

    use: ControlUse
    features: tuple[Tensor, ...]

    def at(self, step: int, steps: int) -> "ActiveAdapter | None":
        """Return this T2I-Adapter if it acts in step `step` (counted from 0), else None."""
        return self if self.use.acts_at(step, steps) else None

    def additions(
        self, latents: Tensor, time: Tensor, contexts: Tensor, added: Mapping[str, Any], positive: Sequence[bool]
    ) -> Additions:
        """Compute what the T2I-Adapter adds to the UNet in one call; see `ActiveControl.additions` for the shapes."""
        del time, contexts, added
        whole = [each.expand(len(latents), -1, -1, -1) for each in self.features]
        return Additions(features=marked(whole, self.use, positive))


def load_adapter(path: Path, *, device: torch.device, dtype: torch.dtype | None) -> T2IAdapter:
    """Load a T2I-Adapter in TencentARC's or diffusers' layout.

    Raises: CannotRender: a tensor is missing (`missing-tensor`), or the structure is unknown (`unknown-family`).
        InvalidModelFile: the file cannot be read.
    """
    weights = Weights(path)
    names = adapter_names(weights.shapes)
    module = build_empty({"t2i-adapter": adapter_config(weights.shapes)})["t2i-adapter"]
    state = {}
    for parameter, empty in module.named_parameters():
        if parameter not in names:
            raise CannotRender(
                f"the T2I-Adapter `{path.name}` lacks the tensor `{parameter}`",
                hint="the file is incomplete or of an unknown kind", code=Cause.MISSING_TENSOR, missing=[parameter],
            )  # fmt: skip
        tensor = weights.read(Source(names[parameter]))
        wanted = dtype or (torch.float16 if tensor.dtype.itemsize == 1 else tensor.dtype)
        state[parameter] = tensor.reshape(empty.shape).to(device, wanted)
    module.load_state_dict(state, assign=True)
    return T2IAdapter(path.name, module)
