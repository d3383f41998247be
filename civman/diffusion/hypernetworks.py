"""Hypernetworks: small networks that change the context from which the UNet's attention computes keys and values.

A hypernetwork has two networks for each context width, one for keys and one for values. Before the keys or the values
are computed, the context is replaced with context + strength · network(context), in self-attention and in
cross-attention.

Source: AUTOMATIC1111's hypernetworks (the rule, not its code).
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import activation

from civman.diffusion.tensor_files import open_tensors
from civman.errors import Cause, Incompatible, InvalidModelFile

_TENSOR: Final = re.compile(r"([0-9]+)\.([01])\.linear(1|2|\.[0-9]+)\.(weight|bias)")
_NAMES: Final = {"swish": nn.Hardswish, "linear": nn.Identity, "null": nn.Identity, "": nn.Identity}
"""Maps some activation names in hypernetwork files to classes; other names are `torch.nn` classes in lower case."""


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """One layer of a network: a linear layer or, with `is_norm`, a layer norm."""

    weight: Tensor
    bias: Tensor | None
    is_norm: bool


@dataclass(frozen=True, slots=True, eq=False)
class Hypernetwork:
    """A hypernetwork: two networks (for keys and for values) for each context width, and its activation function."""

    name: str
    networks: Mapping[int, tuple[tuple[_Layer, ...], tuple[_Layer, ...]]]
    activate: Callable[[Tensor], Tensor]
    activates_output: bool

    def change(self, context: Tensor, side: int) -> Tensor | None:
        """Compute what to add to a context (B, tokens, width) for keys (`side` 0) or values (`side` 1).

        Returns None if the hypernetwork has no networks for this width.
        """
        pair = self.networks.get(context.shape[-1])
        if pair is None:
            return None
        layers, x = pair[side], context
        last = max(place for place, layer in enumerate(layers) if not layer.is_norm)
        for place, layer in enumerate(layers):
            weight, bias = (None if each is None else each.to(x) for each in (layer.weight, layer.bias))
            if layer.is_norm:
                x = functional.layer_norm(x, (x.shape[-1],), weight, bias)
                continue
            assert weight is not None
            x = functional.linear(x, weight, bias)
            if place != last or self.activates_output:
                x = self.activate(x)
        return x


def load_hypernetwork(path: Path, name: str) -> Hypernetwork:
    """Load a hypernetwork from a safetensors file, or from the safetensors copy of a pickle.

    Raises: InvalidModelFile: the file is not a hypernetwork, or uses an activation that torch does not have. Refused.
    """
    with open_tensors(path) as file:
        facts = file.metadata() or {}
        found: dict[tuple[int, int], dict[int, dict[str, Tensor]]] = {}
        for key in file.keys():  # noqa: SIM118  # the file is not a mapping
            match = _TENSOR.fullmatch(key)
            if match is None:
                continue
            place = int(match[3]) - 1 if match[3] in "12" else int(match[3][1:])
            layers = found.setdefault((int(match[1]), int(match[2])), {})
            layers.setdefault(place, {})[match[4]] = file.get_tensor(key).to(torch.float32, copy=True)
    widths = {width for width, _ in found}
    if not found or any((width, side) not in found for width in widths for side in (0, 1)):
        raise InvalidModelFile(f"`{path.name}` is not a hypernetwork", name=name)
    networks = {width: (_layers(found[width, 0], name), _layers(found[width, 1], name)) for width in widths}
    return Hypernetwork(
        name, networks, _activation(facts.get("activation_func", ""), name), _fact(facts, "activate_output", usual=True)
    )


@contextmanager
def acting(unet: nn.Module, uses: Sequence[tuple[Hypernetwork, float]]) -> Iterator[None]:
    """Apply hypernetworks with their strengths, one after the other, inside this block.

    Raises: Incompatible (`adapter-no-match`): a hypernetwork has no network for any width of the UNet's attention.
    """
    with ExitStack() as stack:
        widths: set[int] = set()
        attention: Any
        for attention in unet.modules() if uses else ():
            if hasattr(attention, "to_k") and hasattr(attention, "to_v"):
                for side, layer in enumerate((attention.to_k, attention.to_v)):
                    widths.add(int(layer.in_features))
                    stack.callback(layer.register_forward_pre_hook(_hook(uses, side)).remove)
        for each, _ in uses:
            if not widths & each.networks.keys():
                made, has = (", ".join(map(str, sorted(given))) for given in (each.networks, widths))
                raise Incompatible(
                    f"the hypernetwork `{each.name}` was made for attention of width {made}, but the model's attention "
                    f"has width {has}",
                    hint="use the hypernetwork with a model of the family that it was trained on",
                    code=Cause.ADAPTER_NO_MATCH, adapter=each.name,
                )  # fmt: skip
        yield


def _hook(uses: Sequence[tuple[Hypernetwork, float]], side: int) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
    def change(_layer: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        context = arguments[0]
        for each, strength in uses:
            made = each.change(context, side)
            context = context if made is None else context + made * strength
        return (context, *arguments[1:])

    return change


def _layers(found: Mapping[int, Mapping[str, Tensor]], name: str) -> tuple[_Layer, ...]:
    layers = []
    for _, parts in sorted(found.items()):
        weight = parts.get("weight")
        if weight is None or weight.ndim not in (1, 2):
            raise InvalidModelFile(f"a layer of the hypernetwork `{name}` is incomplete", name=name)
        layers.append(_Layer(weight, parts.get("bias"), weight.ndim == 1))
    return tuple(layers)


def _fact(facts: Mapping[str, str], name: str, *, usual: bool) -> bool:
    try:
        return bool(json.loads(facts.get(name, json.dumps(usual))))
    except ValueError:
        return usual


def _activation(wanted: str, name: str) -> Callable[[Tensor], Tensor]:
    plain = wanted.casefold()
    known = {each.casefold(): each for each in activation.__all__}
    try:
        made: Callable[[Tensor], Tensor] = (_NAMES[plain] if plain in _NAMES else getattr(nn, known[plain]))()
    except (KeyError, TypeError) as error:
        raise InvalidModelFile(f"the hypernetwork `{name}` uses an unknown activation: {wanted}", name=name) from error
    return made
