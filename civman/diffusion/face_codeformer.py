"""CodeFormer, a network that restores a blurred face from a codebook of learned features.

Source: Zhou et al. 2022. Tensor names are those of `codeformer.pth`. The licence of CodeFormer's weights forbids
commercial use.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from civman.diffusion.face_layers import Tensors, conv, doubled, layer_norm, linear, numbered, swish

_HEADS: Final = 8
_GROUPS: Final = 32
_GROUP_NORM: Final = 1e-6
_VARIANCE: Final = 1e-5
_SLOPE: Final = 0.2
_ENCODER_BLOCK: Final = {512: 2, 256: 5, 128: 8, 64: 11, 32: 14, 16: 18}
_GENERATOR_BLOCK: Final = {16: 6, 32: 9, 64: 12, 128: 15, 256: 18, 512: 21}
"""Maps the side of a feature map in pixels to the generator block after which the encoder's features are added."""


class CodeFormer:
    """A loaded CodeFormer, consisting of its tensors with the names in the file."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        fused = [side for side in _ENCODER_BLOCK if f"fuse_convs_dict.{side}.scale.0.weight" in tensors]
        self._taken = {_ENCODER_BLOCK[side] for side in fused}
        self._given = {_GENERATOR_BLOCK[side]: side for side in fused}

    @torch.no_grad()
    def __call__(self, face: Tensor, weight: float = 0.5) -> Tensor:
        """Restore a face, given and returned as (1, 3, 512, 512) in -1 … 1.

        `weight`: how much of the input's details is preserved, from 0 (only the codebook's features) to 1.
        """
        x, features = face, {}
        for number in range(numbered(self._tensors, "encoder.blocks")):
            x = self._block(x, f"encoder.blocks.{number}", is_down=True)
            if number in self._taken:
                features[int(x.shape[-1])] = x
        x = _coloured_like(self._codes(x), x)
        for number in range(numbered(self._tensors, "generator.blocks")):
            x = self._block(x, f"generator.blocks.{number}", is_down=False)
            side = self._given.get(number)
            if side is not None and weight > 0:
                x = self._fused(features[side], x, f"fuse_convs_dict.{side}", weight)
        return x

    def _block(self, x: Tensor, name: str, *, is_down: bool) -> Tensor:
        """Apply one block of the encoder or generator; the block's tensors determine its kind."""
        tensors = self._tensors
        if f"{name}.conv1.weight" in tensors:
            return self._residual(x, name)
        if f"{name}.q.weight" in tensors:
            return self._attention(x, name)
        if f"{name}.conv.weight" in tensors and is_down:
            return conv(functional.pad(x, (0, 1, 0, 1)), tensors, f"{name}.conv", stride=2, padding=0)
        if f"{name}.conv.weight" in tensors:
            return conv(doubled(x, "nearest"), tensors, f"{name}.conv")
        return conv(x, tensors, name) if tensors[f"{name}.weight"].ndim == 4 else self._norm(x, name)

    def _residual(self, x: Tensor, name: str) -> Tensor:
        tensors = self._tensors
        inner = conv(swish(self._norm(x, f"{name}.norm1")), tensors, f"{name}.conv1")
        inner = conv(swish(self._norm(inner, f"{name}.norm2")), tensors, f"{name}.conv2")
        return inner + (conv(x, tensors, f"{name}.conv_out") if f"{name}.conv_out.weight" in tensors else x)

    def _attention(self, x: Tensor, name: str) -> Tensor:
        """Apply single-head self-attention over all positions of a feature map."""
        normed = self._norm(x, f"{name}.norm")
        query, key, value = (conv(normed, self._tensors, f"{name}.{part}").flatten(2) for part in "qkv")
        shares = torch.softmax(query.transpose(1, 2) @ key * x.shape[1] ** -0.5, 2)
        return x + conv((value @ shares.transpose(1, 2)).view(x.shape), self._tensors, f"{name}.proj_out")

    def _codes(self, x: Tensor) -> Tensor:
        """Choose the most likely codebook entry for each position of (1, width, side, side) features."""
        tensors, (_, width, high, wide) = self._tensors, x.shape
        tokens = linear(x.flatten(2).permute(2, 0, 1), tensors, "feat_emb")
        places = tensors["position_emb"][:, None]
        for layer in range(numbered(tensors, "ft_layers")):
            tokens = self._layer(tokens, places, f"ft_layers.{layer}")
        likely = linear(layer_norm(tokens, tensors, "idx_pred_layer.0"), tensors, "idx_pred_layer.1")
        chosen = tensors["quantize.embedding.weight"][likely.argmax(-1)[:, 0]]
        return chosen.view(1, high, wide, width).permute(0, 3, 1, 2).contiguous()

    def _layer(self, tokens: Tensor, places: Tensor, name: str) -> Tensor:
        """Apply a transformer layer to (tokens, 1, width). Position embeddings are added only to queries and keys."""
        tensors = self._tensors
        normed = layer_norm(tokens, tensors, f"{name}.norm1")
        weights, biases = tensors[f"{name}.self_attn.in_proj_weight"], tensors[f"{name}.self_attn.in_proj_bias"]
        placed = normed + places
        query, key, value = (
            functional.linear(given, weight, bias).view(len(tokens), _HEADS, -1).transpose(0, 1)
            for given, weight, bias in zip((placed, placed, normed), weights.chunk(3), biases.chunk(3), strict=True)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(0, 1).reshape(tokens.shape)
        tokens = tokens + linear(mixed, tensors, f"{name}.self_attn.out_proj")
        inner = linear(layer_norm(tokens, tensors, f"{name}.norm2"), tensors, f"{name}.linear1")
        return tokens + linear(functional.gelu(inner), tensors, f"{name}.linear2")

    def _fused(self, encoded: Tensor, x: Tensor, name: str, weight: float) -> Tensor:
        """Scale and shift the generator's features by values that are computed from the encoder's features."""
        seen = self._residual(torch.cat([encoded, x], 1), f"{name}.encode_enc")
        scale, shift = (
            conv(functional.leaky_relu(conv(seen, self._tensors, f"{name}.{part}.0"), _SLOPE), self._tensors,
                 f"{name}.{part}.2")
            for part in ("scale", "shift")
        )  # fmt: skip
        return x + weight * (x * scale + shift)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]
        return functional.group_norm(x, _GROUPS, weight, bias, _GROUP_NORM)


def _coloured_like(x: Tensor, other: Tensor) -> Tensor:
    """Give each channel of (1, C, H, W) the mean and standard deviation of that channel in `other`."""
    means, wanted = x.mean((2, 3), keepdim=True), other.mean((2, 3), keepdim=True)
    spreads = [(each.var((2, 3), keepdim=True) + _VARIANCE).sqrt() for each in (x, other)]
    return (x - means) / spreads[0] * spreads[1] + wanted
