"""AuraFlow's transformer for images of any size.

The model adds a learned vector to each patch of an image, from the middle of a square table of positions. diffusers'
class can only read images that are no larger than this table. For larger images, the table is enlarged as in ComfyUI:
by bilinear interpolation, to the number of patches of the image's longer side.
"""

import math
from typing import Any

from diffusers.models.transformers import auraflow_transformer_2d
from torch import Tensor
from torch.nn.functional import interpolate, pixel_unshuffle


class AuraFlowTransformer2DModel(auraflow_transformer_2d.AuraFlowTransformer2DModel):
    """diffusers' class of the same name, without its limit on the size of images."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        own: Any = self.config
        build: Any = AnySizePatchEmbed
        self.pos_embed = build(
            height=own.sample_size, width=own.sample_size, patch_size=own.patch_size, in_channels=own.in_channels,
            embed_dim=self.inner_dim, pos_embed_max_size=own.pos_embed_max_size,
        )  # fmt: skip


class AnySizePatchEmbed(auraflow_transformer_2d.AuraFlowPatchEmbed):
    """Converts latents (B, channels, h, w) to patches (B, tokens, width) with their positions."""

    def forward(self, latent: Tensor) -> Tensor:
        """Convert latents to patches, after enlarging the table of positions if it is too small for the image."""
        side = math.isqrt(self.pos_embed_max_size)
        rows, columns = (size // self.patch_size for size in latent.shape[-2:])
        longest = max(rows, columns)
        if longest <= side:
            patches: Tensor = super().forward(latent)
            return patches
        table = self.pos_embed.reshape(1, side, side, -1).movedim(-1, 1)
        table = interpolate(table, size=(longest, longest), mode="bilinear")
        top, left = (longest - rows) // 2, (longest - columns) // 2
        positions = table[:, :, top : top + rows, left : left + columns].flatten(2).transpose(1, 2)
        projected: Tensor = self.proj(pixel_unshuffle(latent, self.patch_size).flatten(2).transpose(1, 2))
        return projected + positions
