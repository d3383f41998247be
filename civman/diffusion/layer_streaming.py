"""Streams weights from their file: a layer's weights are loaded when the layer is called and dropped when it returns.

A model thus needs memory only for its largest layer instead of all layers, on any device. A layer computes with exactly
the same bits as in a fully loaded model: the file's values converted, and adapters merged by the same arithmetic. Each
call reads, converts and merges the weights again; the page cache keeps the file in memory if there is room.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from civman.diffusion.loader import LoadedModel
from civman.diffusion.merge_adapters import Later

__all__ = ["SMALL", "stream"]

SMALL = 1 << 14
"""Parameters with up to this many elements stay in memory; even in the largest models, these are biases and norms."""


def stream(model: LoadedModel) -> Later:
    """Make a model that was loaded without its large weights (`load(…, leaves=SMALL)`) usable.

    Returns the object in which `merge_adapters.apply(…, later=…)` records the adapters' changes.
    """
    later = Later(model.device)
    room = _Room(model.device)
    for component, whole in model.components.items():
        for name, module in whole.named_modules():
            waiting = [key for key, weight in module.named_parameters(recurse=False) if weight.is_meta]
            if waiting:
                _attend(model, component, name, module, waiting, later, room)
        # tell diffusers' pipelines on which device to create their own tensors
        setattr(whole, "_hf_hook", SimpleNamespace(execution_device=model.device))  # noqa: B010  # accelerate's name
    return later


def _attend(
    model: LoadedModel, component: str, name: str, module: nn.Module, waiting: list[str], later: Later, room: "_Room"
) -> None:
    def fetch(module: nn.Module, _inputs: Any) -> None:
        with torch.no_grad():
            for number, key in enumerate(waiting):
                empty[key] = module.get_parameter(key)
                values = _values(model, (component, start + key), empty[key].dtype, later, room.at(number))
                setattr(module, key, nn.Parameter(values, requires_grad=False))

    def drop(module: nn.Module, _inputs: Any, _output: Any) -> None:
        while empty:
            key, weight = empty.popitem()
            setattr(module, key, weight)
            model.forget(component, start + key)

    # a model may have weights outside its layers, such as AuraFlow's register tokens
    start = f"{name}." if name else ""
    empty: dict[str, nn.Parameter] = {}
    module.register_forward_pre_hook(fetch)
    module.register_forward_hook(drop, always_call=True)


def _values(
    model: LoadedModel, place: tuple[str, str], dtype: torch.dtype, later: Later,
    room: "Callable[[Tensor, torch.dtype], Tensor]",
) -> Tensor:  # fmt: skip
    """Return a parameter's values on the model's device; without changes or conversion, they are a view of the file."""
    base = model.base_tensor(*place)
    if place in later:
        into = room(base, dtype)
        later.write(place, base, into)
        return into
    if base.dtype is dtype and model.device.type == "cpu":
        return base
    return room(base, dtype).copy_(base)


class _Room:
    """Reusable memory for streamed weights, since page faults on fresh memory cost more than copying the values.

    There is one allocation for each weight of a layer in each dtype.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._flat: dict[tuple[int, torch.dtype], Tensor] = {}

    def at(self, place: int) -> Callable[[Tensor, torch.dtype], Tensor]:
        def room(like: Tensor, dtype: torch.dtype) -> Tensor:
            flat = self._flat.get((place, dtype))
            if flat is None or flat.numel() < like.numel():
                flat = self._flat[place, dtype] = torch.empty(like.numel(), dtype=dtype, device=self._device)
            # use the memory layout of the file's tensor, as a conversion would, because another layout may change the
            # last bits
            strides = torch.empty_like(like, device="meta").stride()
            return flat[: like.numel()].as_strided(like.shape, strides)

        return room
