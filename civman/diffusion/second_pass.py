"""Resizes the first pass's latents for the second pass, as A1111's web UI does."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from civman.diffusion import plain_resizing
from civman.diffusion.pixels import finished, resized, to_tensor
from civman.diffusion.upscaler_tiles import scaled
from civman.domain.recipes.recipe import Hires

Upscale = Callable[..., Any]
"""A function that enlarges with an upscaler model.

It takes a Pillow image and the minimum width and height of the result. For a second pass with `Hires.resize`, it takes
pixels (B, 3, H, W) in 0 … 1 instead.
"""
_PLAIN = ("nearest-exact", "bilinear", "bicubic", "area")
"""Upscalers that resize floating-point pixels in one step."""
_CELL = 8
"""The width and height in pixels of the square that one latent pixel covers."""


def enlarged(
    latents: Tensor, hires: Hires, first_size: tuple[int, int], *, rules: int,
    encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor], upscale: Upscale | None = None,
) -> Tensor:  # fmt: skip
    """Resize latents to (B, 4, h, w) for the second pass.

    If the second pass has another aspect ratio, the image is enlarged until it covers the new size, and its centre is
    cropped; with `stretches` or in version 1 of the recipe rules, it is stretched instead. `decode` returns pixels in 0
    … 1, `encode` takes pixels in -1 … 1. `upscale` runs the upscaler model of `hires`.
    """
    if hires.trim_width or hires.trim_height:
        right, below = hires.trim_width // 2 // _CELL, hires.trim_height // 2 // _CELL
        latents = latents[..., below : latents.shape[-2] - below, right : latents.shape[-1] - right]
    covers = rules > 1 and not hires.stretches
    width, height = covering(first_size, (hires.width, hires.height)) if covers else (hires.width, hires.height)
    if hires.upscaler.startswith("latent"):
        mode = hires.upscaler.removeprefix("latent").removeprefix("-")
        smooth = mode.endswith("antialiased")
        mode = mode.removesuffix("antialiased").removesuffix("-") or "bilinear"
        size = (height // _CELL, width // _CELL)
        if mode == "bislerp":
            larger = plain_resizing.resized(latents, size[1], size[0], mode)
        else:
            larger = torch.nn.functional.interpolate(latents, size=size, mode=mode, antialias=smooth)
    elif hires.resize or hires.upscaler in _PLAIN:
        pixels = decode(latents)
        pixels = upscale(pixels) if hires.resize and upscale is not None else pixels
        larger = encode(plain_resizing.resized(pixels, width, height, hires.resize or hires.upscaler) * 2 - 1)
    elif rules > 1:
        pictures = [to_tensor(_enlarged(pixels, width, height, hires, upscale)) for pixels in decode(latents)]
        larger = encode(torch.cat(pictures))
    else:
        larger = encode(torch.cat([_enlarged_1(pixels, hires) for pixels in decode(latents)]))
    across, down = (width - hires.width) // _CELL, (height - hires.height) // _CELL
    rows, columns = larger.shape[-2:]
    return larger[..., down // 2 : rows - (down + 1) // 2, across // 2 : columns - (across + 1) // 2]


def covering(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
    """Compute the smallest size with the aspect ratio of `size` that covers `wanted`, rounded as in A1111."""
    (width, height), (across, down) = size, wanted
    if width * down < across * height:
        return across, across * height // width
    return down * width // height, down


def _enlarged(pixels: Tensor, width: int, height: int, hires: Hires, upscale: Upscale | None) -> Any:
    """Convert one image to uint8 (rounding down), upscale it, resize it with Lanczos, and return it as (H, W, 3).

    The width and height after upscaling are multiples of 8 pixels, so for some sizes the image is resampled more than
    once.
    """
    import numpy as np
    from PIL import Image

    shrunk = finished(pixels, seed=0, rounding="down", decoded_in="", notes=()).pixels
    image = Image.fromarray(shrunk)
    scale = max(width / image.width, height / image.height)
    if scale > 1 and not (hires.stretches and hires.upscaler == "lanczos"):
        image = scaled(image, scale, hires.upscaler, upscale)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _enlarged_1(pixels: Tensor, hires: Hires) -> Tensor:
    """Upscale one image as in version 1 of the recipe rules."""
    if hires.upscaler == "nearest":
        return torch.nn.functional.interpolate(pixels[None] * 2 - 1, size=(hires.height, hires.width))
    eight = finished(pixels, seed=0, rounding="nearest", decoded_in="", notes=())
    return to_tensor(resized(eight.pixels, hires.width, hires.height))
