"""Prepares an input image and its mask as ComfyUI does.

The image stays in floating point: it is centre-cropped to the render size, or resized to it with one of torch's
filters. The mask stays grey-scale and is resized to the latents' size bilinearly. In each evaluation, latents where the
mask is black are replaced with the input image's latents plus the noise of this render. With `grow_mask`, the masked
area is painted grey before the image is encoded, and the mask is dilated.

Source: ComfyUI, the nodes LoadImage, ImageScale, VAEEncode, SetLatentNoiseMask and VAEEncodeForInpaint.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from civman.diffusion.pixels import Pixels
from civman.diffusion.plain_resizing import resized
from civman.diffusion.start_picture import StartPicture
from civman.domain.recipes.recipe import StartImage
from civman.domain.recipes.recipe_limits import COMFYUI_CROP

_CELL = 8
"""The width and height in pixels of the square that one latent pixel covers."""


def prepare(start: StartImage, size: tuple[int, int], picture: Pixels, mask: Pixels | None) -> StartPicture:
    """Prepare an input image with the ComfyUI resize mode of `start`. `size`: width and height of the render."""
    image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
    if start.resize_mode != COMFYUI_CROP:
        image = resized(image, *size, start.resize_mode.partition(" ")[2])
    whole = image.shape[-2:]
    image = _cropped(image, size)
    if mask is None:
        return StartPicture(image * 2 - 1)
    shades = torch.from_numpy(mask.copy())[None, None].float() / 255
    if start.grow_mask is not None:
        shades = _cropped(functional.interpolate(shades, size=whole, mode="bilinear"), size)
        image = (image - 0.5) * (1 - shades.round()) + 0.5
        shades = _grown(shades, start.grow_mask).round()
    cells = (size[1] // _CELL, size[0] // _CELL)
    return StartPicture(image * 2 - 1, functional.interpolate(shades, size=cells, mode="bilinear"))


def _cropped(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Centre-crop pixels (…, H, W) to `size`; if an odd number is cut, one more pixel is cut at the right or bottom."""
    top, left = (values.shape[-2] - size[1]) // 2, (values.shape[-1] - size[0]) // 2
    return values[..., top : top + size[1], left : left + size[0]]


def _grown(mask: Tensor, pixels: int) -> Tensor:
    """Dilate a mask (1, 1, H, W) with a square of `pixels` × `pixels`, without changing the mask's size."""
    if pixels == 0:
        return mask
    kernel = torch.ones(1, 1, pixels, pixels)
    wider = functional.conv2d(mask.round(), kernel, padding=math.ceil((pixels - 1) / 2)).clamp(0, 1)
    return wider[..., : mask.shape[-2], : mask.shape[-1]]
