"""FreeU: scales the features of a UNet's decoder, and the low frequencies of its skip connections.

Each residual block of the decoder takes the decoder's features and a skip connection's features, concatenated along the
channels. A hook separates the two, changes both and concatenates them again.

Sources: Si et al. 2023, "FreeU"; ComfyUI, for the choice of blocks and version 2's scaling by the mean.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from civman.domain.recipes.freeu_settings import FreeU

_LOW = 1
"""Frequencies from -_LOW up to, but not including, _LOW count as low."""


@contextmanager
def freed(unet: Any, found: FreeU | None) -> Iterator[None]:
    """Apply FreeU to the UNet (diffusers' UNet2DConditionModel) inside this block; None applies nothing."""
    with ExitStack() as stack:
        if found is not None:
            first = int(unet.config.block_out_channels[0])
            factors = {4 * first: (found.b1, found.s1), 2 * first: (found.b2, found.s2)}
            for block, channels in _blocks(unet):
                if channels in factors:
                    hook = _Hook(channels, *factors[channels], by_mean=found.version == "v2")
                    stack.callback(block.register_forward_pre_hook(hook).remove)
        yield


def _blocks(unet: Any) -> Iterator[tuple[nn.Module, int]]:
    """Yield each residual block of the decoder with the number of channels that come from the preceding block."""
    channels = int(unet.mid_block.resnets[-1].out_channels)
    for level in unet.up_blocks:
        for block in level.resnets:
            yield block, channels
            channels = int(block.out_channels)


class _Hook:
    """A hook that changes the input (B, channels + skipped, h, w) of one residual block."""

    def __init__(self, channels: int, features: float, skipped: float, *, by_mean: bool) -> None:
        self._channels, self._features, self._skipped, self._by_mean = channels, features, skipped, by_mean

    def __call__(self, _block: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        joined = arguments[0]
        own, skip = joined[:, : self._channels], joined[:, self._channels :]
        half = self._channels // 2
        factor: Tensor | float = self._features
        if self._by_mean:
            mean = own.mean(1, keepdim=True)
            flat = mean.flatten(1)
            low, high = (each.view(-1, 1, 1, 1) for each in (flat.min(1).values, flat.max(1).values))
            # replace NaN: for a single pixel, low = high, so that ComfyUI's formula divides by 0
            factor = (self._features - 1) * ((mean - low) / (high - low)).nan_to_num(0.0) + 1
        own = torch.cat([own[:, :half] * factor, own[:, half:]], dim=1)
        return (torch.cat([own, low_scaled(skip, self._skipped)], dim=1), *arguments[1:])


def low_scaled(features: Tensor, scale: float) -> Tensor:
    """Multiply the lowest spatial frequencies of features (B, C, h, w) by `scale`."""
    spectrum = torch.fft.fftshift(torch.fft.fftn(features.float(), dim=(-2, -1)), dim=(-2, -1))
    middle, centre = spectrum.shape[-2] // 2, spectrum.shape[-1] // 2
    spectrum[..., middle - _LOW : middle + _LOW, centre - _LOW : centre + _LOW] *= scale
    changed: Tensor = torch.fft.ifftn(torch.fft.ifftshift(spectrum, dim=(-2, -1)), dim=(-2, -1)).real
    return changed.to(features.dtype)
