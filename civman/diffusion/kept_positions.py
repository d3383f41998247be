"""Keeps the rotary positions that Lumina 2's transformer computes again in every call from the length of its prompt.

diffusers reads that length from a mask on the device, so the CPU waits for all work that the device has been given. The
lengths are known here, because no token is masked; positions are computed once for each size of image and text.
"""

from typing import Any

import torch
from torch import Tensor, nn

from civman.diffusion.uploads import sent

_MOST_KEPT = 8
"""The maximum number of pairs of image size and text length whose positions are kept (3 MB each at one megapixel)."""


class KeptPositions(nn.Module):
    """Stands in for `Lumina2RotaryPosEmbed` where every token of the text is used. Its results have the same bits."""

    def __init__(self, embedder: Any) -> None:
        super().__init__()
        self._embedder = embedder
        self._kept: dict[tuple[object, ...], Tensor] = {}

    def forward(self, latents: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int], list[int]]:
        """Return what diffusers' class returns for latents (B, channels, h, w) and the mask (B, tokens) of the text.

        These are the image's patches (B, patches, values), the rotary values of the text, of the image, and of both,
        and the numbers of tokens of the text and of both, for each image.
        """
        side, batch, tokens = self._embedder.patch_size, len(latents), mask.shape[1]
        patches = latents.unfold(2, side, side).unfold(3, side, side)  # (B, channels, rows, columns, side, side)
        rows, columns = patches.shape[2:4]
        key = (tokens, rows, columns, latents.device)
        if key not in self._kept:
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            values_at = self._embedder._get_freqs_cis  # noqa: SLF001  # diffusers has no public name for it
            self._kept[key] = sent(values_at(_places(tokens, rows, columns)), latents.device)
        both = self._kept[key].expand(batch, -1, -1)
        values = patches.permute(0, 2, 3, 4, 5, 1).reshape(batch, rows * columns, -1)
        count = tokens + rows * columns
        return values, both[:, :tokens], both[:, tokens:], both, [tokens] * batch, [count] * batch


def keep_positions(transformer: Any) -> None:
    """Let a `Lumina2Transformer2DModel` keep its positions, if it does not already."""
    if not isinstance(transformer.rope_embedder, KeptPositions):
        transformer.rope_embedder = KeptPositions(transformer.rope_embedder)


def _places(tokens: int, rows: int, columns: int) -> Tensor:
    """Return the positions (1, tokens + rows · columns, 3): index in the text, row, column.

    The image's tokens have the index that follows the text's last one.
    """
    text, image = torch.zeros(tokens, 3, dtype=torch.int32), torch.zeros(rows, columns, 3, dtype=torch.int32)
    text[:, 0] = torch.arange(tokens)
    image[..., 0] = tokens
    image[..., 1] = torch.arange(rows)[:, None]
    image[..., 2] = torch.arange(columns)
    return torch.cat([text, image.flatten(0, 1)])[None]
