"""Creates a small preview of latents during sampling: a matrix converts each latent pixel to a colour.

This takes about a millisecond. If no matrix is known, for example because the VAE's channels are unusual, the latents
are shrunk and decoded instead.
"""

import io
from collections.abc import Callable

import torch
from torch import Tensor

from civman.diffusion import vae_codec
from civman.diffusion.loader import LoadedModel

_KNOWN_WIDTHS = (128, 256, 512, 512)
_SMALLEST_SIDE, _LARGEST_SIDE = 256, 512
_LARGEST_DECODED = 32


def preview_of(model: LoadedModel, latents: Tensor) -> Callable[[], bytes]:
    """Return a function that makes a JPEG preview of the first image in a batch of denoised latents (B, 4, h, w).

    That function must be called before the next step is computed. It draws no random numbers and changes no weight, so
    the final image is the same with and without previews.
    """
    return lambda: _jpeg(_colours(model, latents[:1].float()))


@torch.no_grad()
def _colours(model: LoadedModel, latents: Tensor) -> Tensor:
    """Compute approximate colours (3, h', w') in 0 … 1 from latents (1, 4, h, w)."""
    widths = getattr(model.vae.config, "block_out_channels", ())
    if model.family.latent_rgb and tuple(widths) == _KNOWN_WIDTHS:
        matrix = torch.tensor(model.family.latent_rgb)
        return torch.einsum("chw,cr->rhw", latents[0].cpu(), matrix) / 2 + 0.5
    height, width = latents.shape[-2:]
    factor = max(height, width) / _LARGEST_DECODED
    if factor > 1:
        size = (max(1, round(height / factor)), max(1, round(width / factor)))
        latents = torch.nn.functional.adaptive_avg_pool2d(latents, size)
    return vae_codec.decode(model, latents).pixels[0].cpu()


def _jpeg(colours: Tensor) -> bytes:
    from PIL import Image

    pixels = (colours.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(pixels)
    side = max(image.size)
    factor = min(_LARGEST_SIDE / side, max(1.0, _SMALLEST_SIDE / side))
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    out = io.BytesIO()
    image.resize(size, Image.Resampling.BILINEAR).save(out, "JPEG", quality=80)
    return out.getvalue()
