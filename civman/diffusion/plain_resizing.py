"""Resizes latents and pixels as ComfyUI does: with torch's filters without antialiasing, with Lanczos, or with bislerp.

As in ComfyUI, pixels stay in floating point between the passes; only Lanczos rounds them down to 8 bits. An upscaler
model gets RGB tiles of 512 pixels, which overlap by 32 and are blended linearly.

Source: ComfyUI, `common_upscale`, `bislerp` and `tiled_scale`.
"""

import itertools
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from civman.diffusion.pixels import finished

TILE: Final = 512
OVERLAP: Final = 32
_PARALLEL: Final = 1 - 1e-5


def resized(values: Tensor, width: int, height: int, way: str) -> Tensor:
    """Resize latents or pixels (B, C, h, w) to this width and height.

    `way`: "nearest-exact", "bilinear", "bicubic", "area", "bislerp" or, only for pixels in 0 … 1, "lanczos".
    """
    if way == "bislerp":
        return _bislerp(values, width, height)
    if way == "lanczos":
        return torch.cat([_lanczos(one, width, height) for one in values])
    return functional.interpolate(values, size=(height, width), mode=way)


def enlarged_in_tiles(pixels: Tensor, model: Any) -> Tensor:
    """Run an upscaler model once over pixels (B, 3, H, W) in 0 … 1, and return the result in 0 … 1."""
    return torch.cat([_tiled(one[None], model) for one in pixels]).clamp(0, 1)


def _tiled(pixels: Tensor, model: Any) -> Tensor:
    scale, (height, width) = int(model.scale), pixels.shape[-2:]
    if max(height, width) <= TILE:
        made: Tensor = model(pixels)
        return made
    total = torch.zeros(1, 3, height * scale, width * scale, device=pixels.device)
    weights = torch.zeros_like(total)
    for top, left in itertools.product(_starts(height), _starts(width)):
        made = model(pixels[..., top : top + TILE, left : left + TILE])
        weight = _ramp(made.shape[-2], OVERLAP * scale)[:, None] * _ramp(made.shape[-1], OVERLAP * scale)[None]
        weight = weight.to(made.device)
        down, across = made.shape[-2:]
        rows, columns = slice(top * scale, top * scale + down), slice(left * scale, left * scale + across)
        total[..., rows, columns] += made * weight
        weights[..., rows, columns] += weight
    return total / weights


def _starts(length: int) -> list[int]:
    return list(range(0, length - OVERLAP, TILE - OVERLAP)) if length > TILE else [0]


def _ramp(length: int, feather: int) -> Tensor:
    """Compute the blending weights along one side of a tile.

    The weights increase from each end over the width of the overlap, if the tile is long enough.
    """
    weights = torch.ones(length)
    if feather < length:
        for place in range(feather):
            weights[place] *= (place + 1) / feather
            weights[length - 1 - place] *= (place + 1) / feather
    return weights


def _lanczos(pixels: Tensor, width: int, height: int) -> Tensor:
    from PIL import Image  # imported here, because importing Pillow takes 0.1 s and few recipes need it

    eight = finished(pixels, seed=0, rounding="down", decoded_in="", notes=()).pixels
    larger = np.array(Image.fromarray(eight).resize((width, height), Image.Resampling.LANCZOS))
    return (torch.from_numpy(larger).permute(2, 0, 1)[None].float() / 255).to(pixels.device)


def _bislerp(latents: Tensor, width: int, height: int) -> Tensor:
    """Resize latents with ComfyUI's bislerp.

    The direction and the length of each channel vector are interpolated, first along rows, then along columns.
    """
    across = _along(latents.movedim(1, -1), 2, width)
    return _along(across, 1, height).movedim(-1, 1)


def _along(vectors: Tensor, axis: int, length: int) -> Tensor:
    """Resize (B, h, w, C) along one axis by spherical interpolation."""
    before = vectors.shape[axis]
    places = torch.arange(before, dtype=torch.float32).view(1, 1, 1, -1)
    at = functional.interpolate(places, size=(1, length), mode="bilinear").flatten()
    after = places + 1
    after[..., -1] -= 1
    following = functional.interpolate(after, size=(1, length), mode="bilinear").flatten().long()
    share = (at - at.floor()).to(vectors.device)
    shape = [1, 1, 1, 1]
    shape[axis] = length
    here, there = (vectors.index_select(axis, index.to(vectors.device)) for index in (at.long(), following))
    return _slerp(here, there, share.view(shape))


def _slerp(here: Tensor, there: Tensor, share: Tensor) -> Tensor:
    lengths = [vectors.norm(dim=-1, keepdim=True) for vectors in (here, there)]
    units = [
        torch.where(length == 0, torch.zeros_like(vectors), vectors / length)
        for vectors, length in zip((here, there), lengths, strict=True)
    ]
    dot = (units[0] * units[1]).sum(-1, keepdim=True)
    angle = torch.acos(dot)
    mixed = (torch.sin((1 - share) * angle) * units[0] + torch.sin(share * angle) * units[1]) / torch.sin(angle)
    mixed = mixed * (lengths[0] * (1 - share) + lengths[1] * share)
    mixed = torch.where(dot > _PARALLEL, here, mixed)
    return torch.where(dot < -_PARALLEL, here * (1 - share) + there * share, mixed)
