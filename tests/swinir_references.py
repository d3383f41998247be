"""Tensors of small SwinIR models by formula, and what spandrel 0.4.2 makes of a small image with them.

`EXPECTED` has the mean and four values of spandrel's output, made once with torch 2.13 on a CPU.
"""

import math

import torch
from torch import Tensor

LAYOUTS: dict[str, tuple[int, int, bool]] = {
    "photo-4-large": (4, 8, True), "photo-4": (4, 8, False), "photo-2": (2, 4, False), "classic-4": (4, 8, False),
    "classic-3": (3, 8, False), "light-2": (2, 8, False), "same-size": (1, 8, False), "jpeg": (1, 7, False),
}  # fmt: skip
"""Name → scale, window, whether groups end in three convolutions."""
_WIDTH, _DEPTHS, _HEADS, _INNER = 8, (2, 3), (2, 1), 64
EXPECTED: dict[str, tuple[float, ...]] = {
    "photo-4-large": (1.89674, 7.99541, 110.873, -12.6101, -3.67527),
    "photo-4": (2.35672, 7.71158, 2.92545, -2.76414, -3.84281),
    "photo-2": (2.21484, 16.0246, -85.7325, 60.3627, -2.03532),
    "classic-4": (1.50122, 2.01944, 0.493261, 2.55461, 0.716039),
    "classic-3": (1.54386, 17.7727, 13.5616, -11.4958, -14.7214),
    "light-2": (0.220017, 8.88847, -11.1235, -9.82129, -7.87892),
    "same-size": (1.71184, 1.42938, 7.47262, 3.63743, 2.56794),
    "jpeg": (0.464301, -0.00259155, 0.525752, 2.00707, 2.06839),
}


def small_image() -> Tensor:
    """An image of (1, 3, 19, 26) in 0 … 1, neither side of which is a multiple of a window."""
    return (torch.sin(torch.arange(3 * 19 * 26) * 0.37) * 0.5 + 0.5).view(1, 3, 19, 26)


def samples(pixels: Tensor) -> tuple[float, ...]:
    """The mean of an image's values, and four of them."""
    flat = pixels.flatten()
    return (flat.mean().item(), *(flat[int(len(flat) * part)].item() for part in (0.1, 0.35, 0.6, 0.85)))


def swinir_tensors(layout: str) -> dict[str, Tensor]:
    """The tensors of one layout with the published models' names."""
    scale, window, is_large = LAYOUTS[layout]
    kind = layout.partition("-")[0]
    shapes: dict[str, tuple[int, ...]] = {"conv_first": (_WIDTH, 3, 3, 3), "patch_embed.norm": (_WIDTH,),
                                          "norm": (_WIDTH,)}  # fmt: skip
    for group, (depth, heads) in enumerate(zip(_DEPTHS, _HEADS, strict=True)):
        for block in range(depth):
            name = f"layers.{group}.residual_group.blocks.{block}"
            shapes |= {f"{name}.norm1": (_WIDTH,), f"{name}.norm2": (_WIDTH,),
                       f"{name}.attn.qkv": (3 * _WIDTH, _WIDTH), f"{name}.attn.proj": (_WIDTH, _WIDTH),
                       f"{name}.mlp.fc1": (2 * _WIDTH, _WIDTH), f"{name}.mlp.fc2": (_WIDTH, 2 * _WIDTH),
                       f"{name}.attn.relative_position_bias_table": ((2 * window - 1) ** 2, heads),
                       f"{name}.attn.relative_position_index": (window**2, window**2)}  # fmt: skip
        shapes |= _ending(f"layers.{group}.conv", is_large=is_large)
    shapes |= _ending("conv_after_body", is_large=is_large)
    if kind in ("photo", "classic"):
        shapes["conv_before_upsample.0"] = (_INNER, _WIDTH, 3, 3)
    if kind == "photo":
        shapes |= {f"conv_up{number}": (_INNER, _INNER, 3, 3) for number in range(1, int(math.log2(scale)) + 1)}
        shapes["conv_hr"] = (_INNER, _INNER, 3, 3)
    elif kind == "classic":
        factor = 3 if scale == 3 else 2
        stages = 1 if scale == 3 else int(math.log2(scale))
        shapes |= {f"upsample.{2 * stage}": (factor**2 * _INNER, _INNER, 3, 3) for stage in range(stages)}
    elif kind == "light":
        shapes["upsample.0"] = (3 * scale**2, _WIDTH, 3, 3)
    if kind != "light":
        shapes["conv_last"] = (3, _INNER if kind in ("photo", "classic") else _WIDTH, 3, 3)
    return {full: _wave(full, shape) for name, each in shapes.items() for full, shape in _both(name, each)}


def _ending(name: str, *, is_large: bool) -> dict[str, tuple[int, ...]]:
    if not is_large:
        return {name: (_WIDTH, _WIDTH, 3, 3)}
    inner = _WIDTH // 4
    return {f"{name}.0": (inner, _WIDTH, 3, 3), f"{name}.2": (inner, inner, 1, 1), f"{name}.4": (_WIDTH, inner, 3, 3)}


def _both(name: str, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    if "relative_position" in name:
        return [(name, shape)]
    return [(f"{name}.weight", shape), (f"{name}.bias", shape[:1])]


def _wave(name: str, shape: tuple[int, ...]) -> Tensor:
    count, wide = math.prod(shape), max(math.prod(shape[1:]), 1)
    return (torch.sin(torch.arange(count) * 0.7 + len(name)) * 1.5 / math.sqrt(wide)).view(shape)
