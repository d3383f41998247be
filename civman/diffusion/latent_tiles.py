"""Averages the UNet's predictions on overlapping tiles of the latents (Tiled Diffusion).

"MultiDiffusion" averages overlapping tiles with equal weights; "Mixture of Diffusers" weights each tile with a Gaussian
around its centre. For MultiDiffusion, the original extension averages denoised predictions. Averaging the UNet's
outputs gives the same result, because the denoised predictions are linear in them.

Source: pkuliyi2015/multidiffusion-upscaler-for-automatic1111.
"""

import math
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from civman.diffusion.unet_calls import Calls, UnetCall
from civman.diffusion.uploads import sent
from civman.domain.recipes.tiled_diffusion import METHODS, TiledDiffusion

_VARIANCE: Final = 0.01
"""The variance of the Gaussian weights, in units in which a tile's width is 1."""


class LatentTiles:
    """Tiles over latents of one size, and the weights with which overlapping tiles are averaged."""

    def __init__(self, made: TiledDiffusion, size: tuple[int, int], device: torch.device) -> None:
        """Divide latents of this `size` (width, height) into overlapping tiles."""
        tile, lefts, tops = made.grid(*size)
        self.size = size
        self._places = [
            (..., slice(top, top + tile[1]), slice(left, left + tile[0])) for top in tops for left in lefts
        ]  # fmt: skip
        weight = torch.ones(tile[1], tile[0]) if made.method == METHODS[0] else gaussian(*tile)
        total = torch.zeros(size[1], size[0])
        for place in self._places:
            total[place] += weight
        self._is_mean = made.method == METHODS[0]
        self._total, self._weight = sent(total, device), sent(weight, device)

    def answer(self, call: UnetCall) -> Calls[Tensor]:
        """Compute a UNet call for the whole latents by calling the UNet for each tile and averaging the results."""
        whole: Tensor | None = None
        for place in self._places:
            answer = yield replace(call, inputs=call.inputs[place].contiguous())
            if whole is None:
                whole = answer.new_zeros(*answer.shape[:-2], *self._total.shape)
            whole[place] += answer if self._is_mean else answer * (self._weight * (1 / self._total)[place])
        assert whole is not None, "`_places` contains at least one tile"
        return whole / self._total if self._is_mean else whole


def gaussian(width: int, height: int) -> Tensor:
    """Return the Gaussian weights of a tile, (height, width); the maximum is half a latent pixel below the centre.

    As in the Tiled Diffusion extension, distances along both sides are divided by the tile's width.
    """

    def line(length: int, middle: float) -> Tensor:
        away = torch.arange(length, dtype=torch.float64) - middle
        return torch.exp(-(away**2) / width**2 / (2 * _VARIANCE)) / math.sqrt(2 * math.pi * _VARIANCE)

    return torch.outer(line(height, height / 2), line(width, (width - 1) / 2)).float()
