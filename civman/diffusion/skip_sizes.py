"""Sizes that do not halve evenly: what the UNet does where a level no longer fits its skip connection.

diffusers, Forge and ComfyUI enlarge the level to the size it has to fit, then convolve. A1111's UNet doubles it,
convolves, and takes the nearest pixels of the result.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def doubled_then_resized(unet: Any) -> Iterator[None]:
    """While it is open, the UNet's levels are doubled and the result resized, as in A1111."""
    from diffusers.models.upsampling import Upsample2D  # loaded with the UNet

    found = [module for module in unet.modules() if isinstance(module, Upsample2D)]
    for module in found:
        module.__dict__["forward"] = _resizing(module)
    try:
        yield
    finally:
        for module in found:
            del module.__dict__["forward"]


def _resizing(module: Any) -> Any:
    def forward(hidden: Tensor, output_size: Any = None, *_: Any, **__: Any) -> Tensor:
        larger: Tensor = type(module).forward(module, hidden)
        if output_size is None or tuple(larger.shape[-2:]) == tuple(output_size):
            return larger
        return torch.nn.functional.interpolate(larger, size=tuple(output_size), mode="nearest")

    return forward
