"""Token merging: self-attention over fewer image tokens, by averaging the most similar tokens.

The top left token of each 2 x 2 square is kept. Of the other tokens, those most similar to a kept token are averaged
into that token before the self-attention, and copy its result afterwards. A ratio determines how many tokens are
averaged. Only blocks at the latents' full resolution are changed.

Source: Bolya & Hoffman 2023, "Token Merging for Fast Stable Diffusion", as A1111 uses it (without randomness).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_SQUARE = 2


@contextmanager
def merging(unet: nn.Module, ratio: float, size: tuple[int, int]) -> Iterator[None]:
    """Inside this block, merge the fraction `ratio` of a UNet's tokens; `size` is the latents' height and width."""
    with ExitStack() as stack:
        block: Any
        for block in unet.modules() if ratio else ():
            if hasattr(block, "attn1") and hasattr(block, "norm1"):
                merged = _Merged(size, ratio)
                stack.callback(block.register_forward_pre_hook(merged.look, with_kwargs=True).remove)
                stack.callback(block.attn1.register_forward_pre_hook(merged.join, with_kwargs=True).remove)
                stack.callback(block.attn1.register_forward_hook(merged.part).remove)
        yield


class _Merged:
    """The tokens that are merged in one call of one transformer block."""

    def __init__(self, size: tuple[int, int], ratio: float) -> None:
        self._size, self._ratio = size, ratio
        self._pairs: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None = None

    def look(self, _block: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Choose which tokens to merge, based on the block's input (B, tokens, width)."""
        tokens = arguments[0] if arguments else named["hidden_states"]
        height, width = self._size
        shrunk = math.ceil(math.sqrt(height * width // tokens.shape[1]))
        self._pairs = match(tokens, height, width, int(tokens.shape[1] * self._ratio)) if shrunk <= 1 else None

    def join(
        self, _attention: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Replace the self-attention's input tokens with the merged tokens."""
        if self._pairs is None:
            return arguments, named
        return (self._pairs[0](arguments[0]), *arguments[1:]), named

    def part(self, _attention: nn.Module, _arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        """Copy the attention result of each merged token to all original tokens that were merged into it."""
        return output if self._pairs is None else self._pairs[1](output)


def match(
    tokens: Tensor, height: int, width: int, count: int
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None:
    """Return a function that merges `count` tokens, and one that undoes the merge; None if no token is to be merged.

    `tokens` is (B, height · width, channels).
    """
    place = torch.arange(height * width, device=tokens.device).view(height, width)
    even = place[: height // _SQUARE * _SQUARE : _SQUARE, : width // _SQUARE * _SQUARE : _SQUARE].flatten()
    is_kept = torch.zeros(height * width, dtype=torch.bool, device=tokens.device)
    is_kept[even] = True
    kept, others = place.flatten()[is_kept], place.flatten()[~is_kept]
    count = min(len(others), count)
    if count <= 0:
        return None
    with torch.no_grad():
        unit = tokens / tokens.norm(dim=-1, keepdim=True)
        likeness = unit[:, others] @ unit[:, kept].transpose(-1, -2)
        best, nearest = likeness.max(dim=-1)
        order = best.argsort(dim=-1, descending=True)
        joined, single = order[:, :count], order[:, count:]
        into = nearest.gather(-1, joined)

    def merge(x: Tensor) -> Tensor:
        channels = x.shape[-1]
        rest, target = x[:, others], x[:, kept]
        moved = rest.gather(1, joined[..., None].expand(-1, -1, channels))
        target = target.scatter_reduce(1, into[..., None].expand(-1, -1, channels), moved, reduce="mean")
        return torch.cat([rest.gather(1, single[..., None].expand(-1, -1, channels)), target], dim=1)

    def undo(x: Tensor) -> Tensor:
        batch, channels = len(x), x.shape[-1]
        alone, target = x[:, : single.shape[1]], x[:, single.shape[1] :]
        rest = torch.empty(batch, len(others), channels, dtype=x.dtype, device=x.device)
        rest.scatter_(1, single[..., None].expand(-1, -1, channels), alone)
        taken = target.gather(1, into[..., None].expand(-1, -1, channels))
        rest.scatter_(1, joined[..., None].expand(-1, -1, channels), taken)
        whole = torch.empty(batch, height * width, channels, dtype=x.dtype, device=x.device)
        whole[:, kept], whole[:, others] = target, rest
        return whole

    return merge, undo
