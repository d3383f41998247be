"""GFPGAN 1.3 and 1.4: restores a blurred face with a pretrained StyleGAN2 as generator.

A1111 adds random noise within the network. This module adds the noise that the file contains, so that results are
repeatable.

Sources: Wang et al. 2021 (GFP-GAN), Karras et al. 2020 (StyleGAN2). Tensor names are those of the "clean" layout of
`GFPGANv1.3.pth` and `GFPGANv1.4.pth`.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from civman.diffusion.face_layers import Tensors, conv, doubled, linear, numbered

_SLOPE: Final = 0.2
_TINY: Final = 1e-8


class Gfpgan:
    """A loaded GFPGAN, consisting of its tensors with the names in the file."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self._levels = numbered(tensors, "conv_body_down")

    @torch.no_grad()
    def __call__(self, face: Tensor, weight: float = 0.5) -> Tensor:  # noqa: ARG002  # CodeFormer has a weight
        """Restore a face, given and returned as (1, 3, H, H) in -1 … 1, where H is the model's size."""
        tensors, skips = self._tensors, []
        x = self._act(conv(face, tensors, "conv_body_first"))
        for level in range(self._levels):
            x = self._resized(x, f"conv_body_down.{level}", 0.5)
            skips.append(x)
        x = self._act(conv(x, tensors, "final_conv"))
        width = int(tensors["stylegan_decoder.style_conv1.modulated_conv.modulation.weight"].shape[1])
        styles = linear(x.flatten(1), tensors, "final_linear").view(1, -1, width)
        conditions = []
        for level in range(self._levels):
            x = self._resized(x + skips.pop(), f"conv_body_up.{level}", 2)
            conditions.append((self._pair(x, f"condition_scale.{level}"), self._pair(x, f"condition_shift.{level}")))
        return self._drawn(styles, conditions)

    def _drawn(self, styles: Tensor, conditions: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Generate the face. Each level doubles the size; the input's features scale and shift half of the channels."""
        decoder = "stylegan_decoder"
        x = self._tensors[f"{decoder}.constant_input.weight"]
        x = self._styled(x, f"{decoder}.style_conv1", styles[:, 0], 0)
        image = self._rgb(x, f"{decoder}.to_rgb1", styles[:, 1])
        for level, (scale, shift) in enumerate(conditions):
            first = 2 * level
            x = self._styled(doubled(x), f"{decoder}.style_convs.{first}", styles[:, first + 1], first + 1)
            same, changed = x.chunk(2, 1) if scale.shape[1] < x.shape[1] else (x[:, :0], x)
            x = torch.cat([same, changed * scale + shift], 1)
            x = self._styled(x, f"{decoder}.style_convs.{first + 1}", styles[:, first + 2], first + 2)
            image = doubled(image) + self._rgb(x, f"{decoder}.to_rgbs.{level}", styles[:, first + 3])
        return image

    def _styled(self, x: Tensor, name: str, style: Tensor, noise: int) -> Tensor:
        tensors = self._tensors
        x = self._modulated(x, f"{name}.modulated_conv", style, normalises=True) * 2**0.5
        x = x + tensors[f"{name}.weight"] * tensors[f"stylegan_decoder.noises.noise{noise}"] + tensors[f"{name}.bias"]
        return self._act(x)

    def _rgb(self, x: Tensor, name: str, style: Tensor) -> Tensor:
        return self._modulated(x, f"{name}.modulated_conv", style, normalises=False) + self._tensors[f"{name}.bias"]

    def _modulated(self, x: Tensor, name: str, style: Tensor, *, normalises: bool) -> Tensor:
        """Apply a modulated convolution: the style scales the weights of each input channel."""
        weight = self._tensors[f"{name}.weight"] * linear(style, self._tensors, f"{name}.modulation").view(
            1, 1, -1, 1, 1
        )
        if normalises:
            weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4], keepdim=True) + _TINY)
        return functional.conv2d(x, weight[0], padding=weight.shape[-1] // 2)

    def _resized(self, x: Tensor, name: str, factor: float) -> Tensor:
        """Apply a residual block that resizes: two convolutions with a resize in between, plus a resized shortcut."""
        tensors = self._tensors
        inner = self._act(conv(x, tensors, f"{name}.conv1"))
        inner, x = (functional.interpolate(each, scale_factor=factor, mode="bilinear") for each in (inner, x))
        return self._act(conv(inner, tensors, f"{name}.conv2")) + conv(x, tensors, f"{name}.skip")

    def _pair(self, x: Tensor, name: str) -> Tensor:
        return conv(self._act(conv(x, self._tensors, f"{name}.0")), self._tensors, f"{name}.2")

    @staticmethod
    def _act(x: Tensor) -> Tensor:
        return functional.leaky_relu(x, _SLOPE)
