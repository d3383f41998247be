"""How a UNet's upsampling matches the size of a skip connection when an image size does not halve evenly.

diffusers, Forge and ComfyUI upsample to the size of the skip connection, then convolve. A1111's UNet doubles the size,
convolves, and resizes the result with nearest neighbour.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def doubled_then_resized(unet: Any) -> Iterator[None]:
    """Inside this block, make the UNet upsample as in A1111: double the size, convolve, then resize."""
    found = [module for module in unet.modules() if type(module).__name__ == "Upsample2D"]
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
