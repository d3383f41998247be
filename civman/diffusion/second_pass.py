"""The first pass's latents at the size of the second, as A1111's web UI enlarges them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from civman.diffusion.pixels import finished, resized, to_tensor
from civman.domain.recipes.recipe import Hires

_CELL = 8
"""Pixels a side that one latent stands for."""


def enlarged(
    latents: Tensor, hires: Hires, first_size: tuple[int, int], *, rules: int,
    encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """Latents (B, 4, h, w) for the second pass.

    Another shape than the first pass's is cut out of the middle of an enlargement that covers it; by rules 1 the first
    picture is stretched to it. `decode` gives pixels in 0 … 1, `encode` takes them in -1 … 1.
    """
    width, height = covering(first_size, (hires.width, hires.height)) if rules > 1 else (hires.width, hires.height)
    if hires.upscaler.startswith("latent"):
        mode = hires.upscaler.removeprefix("latent").removeprefix("-")
        smooth = mode.endswith("antialiased")
        mode = mode.removesuffix("antialiased").removesuffix("-") or "bilinear"
        size = (height // _CELL, width // _CELL)
        larger = torch.nn.functional.interpolate(latents, size=size, mode=mode, antialias=smooth)
    elif rules > 1:
        pictures = [to_tensor(_enlarged(pixels, width, height, hires.upscaler)) for pixels in decode(latents)]
        larger = encode(torch.cat(pictures))
    else:
        larger = encode(torch.cat([_enlarged_1(pixels, hires) for pixels in decode(latents)]))
    across, down = (width - hires.width) // _CELL, (height - hires.height) // _CELL
    rows, columns = larger.shape[-2:]
    return larger[..., down // 2 : rows - (down + 1) // 2, across // 2 : columns - (across + 1) // 2]


def covering(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
    """The least size in the shape of `size` that covers `wanted`, as A1111 counts it."""
    (width, height), (across, down) = size, wanted
    if width * down < across * height:
        return across, across * height // width
    return down * width // height, down


def _enlarged(pixels: Tensor, width: int, height: int, upscaler: str) -> Any:
    """(H, W, 3) uint8: the picture rounded down to 8 bits, enlarged, then by Lanczos to the very size.

    An upscaler works on sizes that are multiples of 8, so some sizes are resampled more than once.
    """
    import numpy as np
    from PIL import Image

    shrunk = finished(pixels, seed=0, rounding="down", decoded_in="", notes=()).pixels
    image = Image.fromarray(shrunk)
    scale = max(width / image.width, height / image.height)
    if scale > 1:
        way = Image.Resampling.NEAREST if upscaler == "nearest" else Image.Resampling.LANCZOS
        even = (int(image.width * scale) // _CELL * _CELL, int(image.height * scale) // _CELL * _CELL)
        image = image.resize((int(image.width * scale), int(image.height * scale)), way)
        if image.size != even:
            image = image.resize(even, Image.Resampling.LANCZOS)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _enlarged_1(pixels: Tensor, hires: Hires) -> Tensor:
    """By rules 1."""
    if hires.upscaler == "nearest":
        return torch.nn.functional.interpolate(pixels[None] * 2 - 1, size=(hires.height, hires.width))
    eight = finished(pixels, seed=0, rounding="nearest", decoded_in="", notes=())
    return to_tensor(resized(eight.pixels, hires.width, hires.height))
