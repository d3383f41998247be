"""SwinIR: an upscaler that consists of residual groups with attention inside windows of the image.

Supports the variants for photographs (`nearest+conv`), for classical and for lightweight enlargement (`pixelshuffle`,
`pixelshuffledirect`) and for restoration at the same size. The model's structure is derived from its tensors.

Source: Liang et al. 2021 (SwinIR); tensor names are those of the published weights.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isqrt
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

_SLOPE: Final = 0.2
_PLAIN_SLOPE: Final = 0.01
"""The slope of the LeakyReLU before the upsampling: PyTorch's default."""
_MEAN: Final = (0.4488, 0.4371, 0.4040)
_BLOCKED: Final = -100.0
"""The value added to attention scores between pixels that are neighbours only because of the cyclic shift."""
_JPEG_WINDOW: Final = 7
"""The window size that identifies models for removing JPEG artifacts; only these take pixels in 0 … 255."""
_GROUP: Final = re.compile(r"layers\.(\d+)\.residual_group\.blocks\.(\d+)\.norm1\.weight")


@dataclass(frozen=True, slots=True, eq=False)
class SwinIr:
    """A loaded SwinIR: its scale factor, tensors, number of blocks in each residual group, and window in pixels."""

    scale: int
    tensors: Mapping[str, Tensor]
    depths: tuple[int, ...]
    window: int
    kind: str = "swinir"

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Enlarge (B, 3, H, W) in 0 … 1. The result may contain values outside this range."""
        height, width = pixels.shape[-2:]
        padding = (0, -width % self.window, 0, -height % self.window)
        x = functional.pad(pixels, padding, mode="reflect") if any(padding) else pixels
        mean = torch.tensor(_MEAN, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
        span = 255.0 if self.window == _JPEG_WINDOW else 1.0
        x = (x - mean) * span
        first = self._conv(x, "conv_first")
        inner = self._body(first)
        inner = self._residual(inner, "conv_after_body") + first
        large = self._enlarged(inner)
        if "upsample.0.weight" not in self.tensors and "conv_up1.weight" not in self.tensors:
            large = x + large
        return (large / span + mean)[..., : height * self.scale, : width * self.scale]

    def to(self, device: torch.device) -> "SwinIr":
        """Return the model on a device."""
        return replace(self, tensors={name: tensor.to(device) for name, tensor in self.tensors.items()})

    def _conv(self, x: Tensor, name: str) -> Tensor:
        weight = self.tensors[f"{name}.weight"]
        return functional.conv2d(x, weight, self.tensors[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight = self.tensors[f"{name}.weight"]
        return functional.layer_norm(x, weight.shape, weight, self.tensors[f"{name}.bias"])

    def _residual(self, x: Tensor, name: str) -> Tensor:
        """Apply the last layer of a group: one convolution, or three with fewer channels in between (large models)."""
        if f"{name}.weight" in self.tensors:
            return self._conv(x, name)
        for number in (0, 2):
            x = functional.leaky_relu(self._conv(x, f"{name}.{number}"), _SLOPE)
        return self._conv(x, f"{name}.4")

    def _body(self, x: Tensor) -> Tensor:
        """Apply all groups to (B, C, H, W)."""
        mask = _mask(x.shape[-2], x.shape[-1], self.window).to(x)
        x = x.permute(0, 2, 3, 1)
        if "patch_embed.norm.weight" in self.tensors:
            x = self._norm(x, "patch_embed.norm")
        for group, depth in enumerate(self.depths):
            entered = x
            for block in range(depth):
                name = f"layers.{group}.residual_group.blocks.{block}"
                x = self._block(x, name, mask if block % 2 else None)
            convolved = self._residual(x.permute(0, 3, 1, 2), f"layers.{group}.conv")
            x = convolved.permute(0, 2, 3, 1) + entered
        return self._norm(x, "norm").permute(0, 3, 1, 2)

    def _block(self, x: Tensor, name: str, mask: Tensor | None) -> Tensor:
        """Apply one transformer block to (B, H, W, C). With a mask, the windows are shifted by half their size."""
        shift = self.window // 2 if mask is not None else 0
        inner = torch.roll(self._norm(x, f"{name}.norm1"), (-shift, -shift), (1, 2))
        inner = self._attention(_windows(inner, self.window), f"{name}.attn", mask)
        x = x + torch.roll(_image(inner, self.window, x.shape), (shift, shift), (1, 2))
        inner = functional.gelu(self._linear(self._norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
        return x + self._linear(inner, f"{name}.mlp.fc2")

    def _attention(self, x: Tensor, name: str, mask: Tensor | None) -> Tensor:
        """Apply attention within windows of (N, window², C)."""
        table = self.tensors[f"{name}.relative_position_bias_table"]
        count, length, channels = x.shape
        heads = table.shape[1]
        qkv = self._linear(x, f"{name}.qkv").reshape(count, length, 3, heads, channels // heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        scores = (query * (channels // heads) ** -0.5) @ key.transpose(-2, -1)
        bias = table[_positions(self.window).to(table.device).view(-1)].view(length, length, heads)
        scores = scores + bias.permute(2, 0, 1)
        if mask is not None:
            shaped = scores.view(-1, len(mask), heads, length, length) + mask[None, :, None]
            scores = shaped.view(-1, heads, length, length)
        found = (scores.softmax(-1) @ value).transpose(1, 2).reshape(count, length, channels)
        return self._linear(found, f"{name}.proj")

    def _enlarged(self, x: Tensor) -> Tensor:
        if "conv_before_upsample.0.weight" in self.tensors:
            x = functional.leaky_relu(self._conv(x, "conv_before_upsample.0"), _PLAIN_SLOPE)
        for number in (1, 2, 3):
            if f"conv_up{number}.weight" in self.tensors:
                x = functional.interpolate(x, scale_factor=2, mode="nearest")
                x = functional.leaky_relu(self._conv(x, f"conv_up{number}"), _SLOPE)
        if "conv_hr.weight" in self.tensors:
            x = functional.leaky_relu(self._conv(x, "conv_hr"), _SLOPE)
        for number in range(0, 10, 2):
            if f"upsample.{number}.weight" in self.tensors:
                x = functional.pixel_shuffle(self._conv(x, f"upsample.{number}"), _factor(self.tensors, number))
        return self._conv(x, "conv_last") if "conv_last.weight" in self.tensors else x


def swinir(tensors: Mapping[str, Tensor]) -> SwinIr | None:
    """Build a SwinIR from its tensors; None if they belong to another architecture. Raises: KeyError, ValueError."""
    blocks = [(int(found[1]), int(found[2])) for name in tensors if (found := _GROUP.fullmatch(name))]
    table = "layers.0.residual_group.blocks.0.attn.relative_position_bias_table"
    if not blocks or table not in tensors or tensors["conv_first.weight"].shape[1] != 3:
        return None
    groups = 1 + max(group for group, _ in blocks)
    depths = tuple(sum(each == group for each, _ in blocks) for group in range(groups))
    scale = 2 ** sum(f"conv_up{number}.weight" in tensors for number in (1, 2, 3))
    for number in range(0, 10, 2):
        if f"upsample.{number}.weight" in tensors:
            scale *= _factor(tensors, number)
    return SwinIr(scale, tensors, depths, (isqrt(tensors[table].shape[0]) + 1) // 2)


def _factor(tensors: Mapping[str, Tensor], number: int) -> int:
    """Return the factor by which one upsampling layer enlarges the width and height."""
    after, before = tensors[f"upsample.{number}.weight"].shape[:2]
    return isqrt(after // (before if "conv_before_upsample.0.weight" in tensors else 3))


def _windows(x: Tensor, window: int) -> Tensor:
    """Cut (B, H, W, C) into windows: (N, window², C)."""
    batch, height, width, channels = x.shape
    cut = x.reshape(batch, height // window, window, width // window, window, channels)
    return cut.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, channels)


def _image(windows: Tensor, window: int, shape: torch.Size) -> Tensor:
    """Put windows (N, window², C) back together into an image of `shape`, (B, H, W, C)."""
    batch, height, width, channels = shape
    cut = windows.reshape(batch, height // window, width // window, window, window, channels)
    return cut.permute(0, 1, 3, 2, 4, 5).reshape(shape)


def _positions(window: int) -> Tensor:
    """Return the index of the relative position bias for each pair of pixels in a window: (window², window²)."""
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    down = rows[:, None] - rows[None, :] + window - 1
    across = columns[:, None] - columns[None, :] + window - 1
    return down * (2 * window - 1) + across


def _mask(height: int, width: int, window: int) -> Tensor:
    """Return the mask that is added to the attention in shifted windows: (windows, window², window²)."""
    shift = window // 2

    def parts(length: int) -> Tensor:
        at = torch.arange(length)
        return (at >= length - window).long() + (at >= length - shift).long()

    area = (parts(height)[:, None] * 3 + parts(width)[None, :]).float()
    cut = _windows(area[None, :, :, None], window)[..., 0]
    return torch.where(cut[:, None, :] == cut[:, :, None], 0.0, _BLOCKED)
