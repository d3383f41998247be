"""IP-Adapters: convert reference pictures to image tokens, and make the cross-attention of a UNet attend to them.

Each cross-attention layer attends twice with the same queries: to the text, and to the image tokens with the adapter's
own keys and values. The second result, times a weight, is added to the first. For a negative prompt, the image tokens
are those of an empty picture: a zero embedding for adapters that use the embedding, an encoded all-zero input for
others.

Source: Ye et al. 2023, "IP-Adapter"; the empty pictures as in diffusers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from civman.diffusion.component_layouts import Source
from civman.diffusion.mapped_weights import Weights
from civman.diffusion.vision_encoder import ClipVision
from civman.domain.adapters.ip_adapters import read_ip_adapter
from civman.domain.recipes.reference import ReferenceUse
from civman.errors import Cause, Incompatible

_HEAD = 64
"""The width of an attention head in the projection of "plus" adapters."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class ImageAttention:
    """A loaded IP-Adapter.

    `layers`: the weights for the keys and values of each cross-attention layer, in the UNet's order. `projection`: the
    tensors of the image projection by the names that IP-Adapter's authors use.
    """

    name: str
    reads_embedding: bool
    width: int
    projection: Mapping[str, Tensor]
    layers: tuple[tuple[Tensor, Tensor], ...]

    def tokens(self, found: Tensor) -> Tensor:
        """Project the vision encoder's output, (B, width) or (B, patches, width), to image tokens (B, count, width)."""
        weights = self.projection
        if "latents" in weights:
            return _resampled(found, weights)
        if self.reads_embedding:
            return _norm(_linear(found, weights, "proj").reshape(len(found), -1, self.width), weights, "norm")
        inner = functional.gelu(_linear(found, weights, "proj.0"))
        return _norm(_linear(inner, weights, "proj.2"), weights, "proj.3")


def load_ip_adapter(path: Path, name: str, *, device: torch.device, dtype: torch.dtype) -> ImageAttention:
    """Load an IP-Adapter. Raises: CannotRender: its kind is not supported. InvalidModelFile: it cannot be read."""
    weights = Weights(path)
    found = read_ip_adapter(weights.shapes, name)

    def read(actual: str) -> Tensor:
        return weights.read(Source(actual)).to(device, dtype)

    return ImageAttention(
        name, found.reads_embedding, found.width, {plain: read(actual) for plain, actual in found.projection.items()},
        tuple((read(key), read(value)) for key, value in map(found.keys, found.layers)),
    )  # fmt: skip


def _resampled(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """Compute the image projection of "plus" adapters: in several blocks, learned queries attend to the features."""
    x = _linear(x, weights, "proj_in")
    latents = weights["latents"].expand(len(x), -1, -1)
    block = 0
    while f"layers.{block}.0.to_q.weight" in weights:
        layer = f"layers.{block}"
        asking = _norm(latents, weights, f"{layer}.0.norm2")
        context = torch.cat([_norm(x, weights, f"{layer}.0.norm1"), asking], dim=1)
        query = functional.linear(asking, weights[f"{layer}.0.to_q.weight"])
        if f"{layer}.0.to_kv.weight" in weights:
            keys, values = functional.linear(context, weights[f"{layer}.0.to_kv.weight"]).chunk(2, dim=-1)
        else:
            keys, values = (functional.linear(context, weights[f"{layer}.0.to_{side}.weight"]) for side in "kv")
        attended = attention(query, keys, values, query.shape[-1] // _HEAD)
        latents = functional.linear(attended, weights[f"{layer}.0.to_out.weight"]) + latents
        inner = functional.linear(_norm(latents, weights, f"{layer}.1.0"), weights[f"{layer}.1.1.weight"])
        latents = functional.linear(functional.gelu(inner), weights[f"{layer}.1.3.weight"]) + latents
        block += 1
    return _norm(_linear(latents, weights, "proj_out"), weights, "norm_out")


def attention(query: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Compute multi-head attention over tensors (B, tokens, width)."""
    q, k, v = (each.reshape(*each.shape[:2], heads, -1).transpose(1, 2) for each in (query, keys, values))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(query.shape)


def _linear(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _norm(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    return functional.layer_norm(x, (x.shape[-1],), weights[f"{name}.weight"], weights[f"{name}.bias"])


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """A reference picture, encoded for an IP-Adapter.

    `positive`: the picture's image tokens (1, count, width); `negative`: the image tokens of an empty picture, for
    negative prompts.
    """

    adapter: ImageAttention
    positive: Tensor
    negative: Tensor


@torch.no_grad()
def encode_reference(adapter: ImageAttention, encoder: ClipVision, inputs: Tensor) -> Reference:
    """Encode a picture for an IP-Adapter. `inputs`: the vision encoder's input (1, 3, side, side)."""
    if adapter.reads_embedding:
        found = encoder.embedding(inputs)
        empty = torch.zeros_like(found)
    else:
        found, empty = (encoder.patches(each) for each in (inputs, torch.zeros_like(inputs)))
    return Reference(adapter, adapter.tokens(found), adapter.tokens(empty))


@dataclass(frozen=True, slots=True, eq=False)
class ActiveReference:
    """A reference picture that is used in a pass, with its settings from the recipe."""

    reference: Reference
    use: ReferenceUse

    def at(self, step: int, steps: int) -> "ActiveReference | None":
        """Return this reference if it acts in step `step` (counted from 0), else None."""
        return self if self.use.acts_at(step, steps) else None

    def asked(self, positive: Sequence[bool], batch: int) -> "Asked":
        """Return the image tokens for one call of the UNet.

        The call computes `batch` images for each prompt; `positive` contains True for each positive prompt and False
        for each negative one.
        """
        own = [self.reference.positive if each else self.reference.negative for each in positive]
        return Asked(
            self.reference.adapter, torch.cat([tokens.expand(batch, -1, -1) for tokens in own]), self.use.weight
        )


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What one IP-Adapter adds to a call of the UNet: image tokens (B, count, width) and their weight."""

    adapter: ImageAttention
    tokens: Tensor
    weight: float

    @property
    def key(self) -> tuple[object, ...]:
        """A key that is equal for tokens that can be joined into one call of the UNet for several images."""
        return id(self.adapter), self.tokens.shape, self.weight


@contextmanager
def attending(unet: nn.Module, asked: Sequence[Asked]) -> Iterator[None]:
    """Inside this context, make the cross-attention of a UNet attend to image tokens.

    Raises: Incompatible (`adapter-no-match`): an IP-Adapter was made for another number of layers.
    """
    with ExitStack() as stack:
        layers = cross_attention(unet) if asked else []
        for each in asked:
            if len(each.adapter.layers) != len(layers):
                raise Incompatible(
                    f"the IP-Adapter `{each.adapter.name}` was made for {len(each.adapter.layers)} attention layers, "
                    f"but the model has {len(layers)}",
                    hint="use the IP-Adapter with a checkpoint of the base model that it was made for",
                    code=Cause.ADAPTER_NO_MATCH,
                    adapter=each.adapter.name,
                )  # fmt: skip
        for number, layer in enumerate(layers):
            queries: list[Tensor] = []
            weights = [(each, *each.adapter.layers[number]) for each in asked]
            stack.callback(layer.to_q.register_forward_hook(_keep(queries)).remove)
            stack.callback(layer.to_out[0].register_forward_pre_hook(_add(queries, weights, int(layer.heads))).remove)
        yield


def cross_attention(unet: nn.Module) -> list[Any]:
    """List the cross-attention layers of diffusers' UNet2DConditionModel in the order of IP-Adapter files."""
    return [module for name, module in unet.named_modules() if name.endswith(".attn2")]


def _keep(queries: list[Tensor]) -> Callable[[nn.Module, Any, Tensor], None]:
    def keep(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        queries[:] = [output]

    return keep


def _add(
    queries: list[Tensor], weights: Sequence[tuple[Asked, Tensor, Tensor]], heads: int
) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def add(_layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        result, query = inputs[0], queries.pop()
        for asked, keys, values in weights:
            found = attention(
                query, functional.linear(asked.tokens, keys), functional.linear(asked.tokens, values), heads
            )
            result = result + asked.weight * found
        return (result, *inputs[1:])

    return add
