"""A CUDA card that computes nothing: shapes, dtypes and devices of the whole engine, without a driver.

torch's FakeTensorMode follows tensors on `cuda:0` on a build without CUDA. Three things are added here. A few methods
of `Tensor` ask the driver for the current device before they reach the fake mode, so they are sent to their operators
directly. Values that Python reads become stand-ins. And every operation after which the host waits for the card, or
the card for the host, is recorded with the function of civman that caused it. Copies from pinned memory, for which
nobody waits, are recorded as "queued".

What this cannot show: numbers, memory, kernels, and code in other threads.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import civman

CARD = torch.device("cuda", 0)
"""With an index: a device without one asks the driver which is current."""
STAND_IN = 100.0
"""What Python reads instead of a number: a picture of this spread is neither black nor flat nor noise."""

aten = torch.ops.aten
_HOME = Path(civman.__file__).parent
_CARRIERS = {str(_HOME / "diffusion" / "uploads.py")}
"""Files whose functions copy what others give them; the caller is the cause."""
_READS = {"_local_scalar_dense", "equal", "nonzero"}
_DTYPES = {"float": torch.float32, "half": torch.float16, "bfloat16": torch.bfloat16, "double": torch.float64}


class _WithoutDriver(TorchFunctionMode):
    """Sends those methods to their operators that would ask the driver for the current device."""

    def __init__(self) -> None:
        super().__init__()
        self._ways: Mapping[Any, Callable[..., Any]] = {
            Tensor.to: _moved,
            Tensor.cpu: lambda tensor: _moved(tensor, "cpu"),
            Tensor.contiguous: aten.contiguous,
            Tensor.copy_: aten.copy_,
            Tensor.__getitem__: _indexed,
            Tensor.__setitem__: _assigned,
            torch.cartesian_prod: lambda *tensors: aten.cartesian_prod(list(tensors)),
            Tensor.numpy: self._array,
            Tensor.pin_memory: _pinned,
            # how many tokens go to each expert is a matter of values: to the first one none, and there are no others
            Tensor.bincount: lambda tensor: aten.new_zeros(tensor, [1]),
            Tensor.new_tensor: lambda like, values, dtype=None, device=None: _moved(
                torch.tensor(values, dtype=dtype or like.dtype), device or like.device
            ),
            **dict.fromkeys((Tensor.__float__, Tensor.__int__, Tensor.__bool__, Tensor.item), aten._local_scalar_dense),
            **{getattr(Tensor, name): _cast(dtype) for name, dtype in _DTYPES.items()},
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(each, torch.UntypedStorage) for each in args):  # safetensors makes a tensor of a file's bytes
            with _disable_current_modes():
                return func(*args, **(kwargs or {}))
        return self._ways.get(func, func)(*args, **(kwargs or {}))

    def _array(self, tensor: Tensor) -> np.ndarray[Any, Any]:
        if tensor.device.type != "cpu":
            raise TypeError("numpy cannot read a tensor on the card")
        if tensor.dtype is torch.uint8:  # pixels, which may come with numbers in single precision before them
            return np.resize(np.float32([STAND_IN]).view(np.uint8), tuple(tensor.shape))
        return np.zeros(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def _cast(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda tensor: _moved(tensor, dtype)


def _moved(
    tensor: Tensor, *where: Any, device: Any = None, dtype: Any = None, non_blocking: bool = False, **_: Any
) -> Tensor:
    """`Tensor.to`, in all the ways in which it can be called."""
    for each in where:
        if isinstance(each, Tensor):
            device, dtype = each.device, each.dtype
        elif isinstance(each, torch.dtype):
            dtype = each
        elif isinstance(each, (str, torch.device)):
            device = each
    device, dtype = torch.device(device or tensor.device), dtype or tensor.dtype
    if (device, dtype) == (tensor.device, tensor.dtype):
        return tensor
    is_queued = non_blocking and getattr(tensor, "is_in_pinned_memory", False)
    moved: Tensor = aten._to_copy(tensor, device=device, dtype=dtype, non_blocking=is_queued)
    return moved


def _pinned(tensor: Tensor) -> Tensor:
    """`Tensor.pin_memory`: a copy from such a tensor can be queued."""
    pinned: Tensor = aten.clone(tensor)
    pinned.is_in_pinned_memory = True  # type: ignore[attr-defined]
    return pinned


def _indexed(tensor: Tensor, key: Any) -> Any:
    """`tensor[key]`: slices, numbers, None, `...` and tensors."""
    parts = list(key) if isinstance(key, tuple) else [key]
    if any(part is ... for part in parts):
        at = next(i for i, part in enumerate(parts) if part is ...)
        missing = tensor.ndim - sum(part is not None and part is not ... for part in parts)
        parts[at : at + 1] = [slice(None)] * missing
    dim, picked = 0, {}
    for part in parts:
        if isinstance(part, int):
            tensor = aten.select(tensor, dim, part)
            continue
        if part is None:
            tensor = aten.unsqueeze(tensor, dim)
        elif isinstance(part, slice):
            tensor = aten.slice(tensor, dim, part.start, part.stop, part.step or 1)
        else:
            picked[dim] = part if isinstance(part, Tensor) else torch.tensor(part, device=tensor.device)
        dim += 1
    return aten.index(tensor, [picked.get(i) for i in range(tensor.ndim)]) if picked else tensor


def _assigned(tensor: Tensor, key: Any, value: Any) -> None:
    """`tensor[key] = value`, without tensors in the key."""
    target = _indexed(tensor, key)
    if isinstance(value, Tensor):
        aten.copy_(target, value)
    else:
        aten.fill_(target, value)


class _Crossings(TorchDispatchMode):
    """Records where host and card wait for each other."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name.removeprefix("aten::"), kwargs or {}
        if name in _READS:
            if args[0].device.type == "cuda":
                self._record(name)
        elif name in ("_to_copy", "copy_"):
            source, target = (args[1], args[0].device) if name == "copy_" else (args[0], kwargs.get("device"))
            kinds = (source.device.type, torch.device(target or source.device).type)
            if kinds[0] != kinds[1]:
                queued = "queued " if kwargs.get("non_blocking") else ""
                self._record(f"{queued}{kinds[0]} to {kinds[1]}")
        if name == "equal":
            return False
        if name == "_local_scalar_dense":
            return {torch.bool: True, torch.int64: int(STAND_IN)}.get(args[0].dtype, STAND_IN)
        return func(*args, **kwargs)

    def _record(self, what: str) -> None:
        frame: Any = sys._getframe()
        while frame is not None and not _is_cause(frame.f_code.co_filename):
            frame = frame.f_back
        where = "elsewhere" if frame is None else f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_qualname}"
        self.seen[what, where] += 1


def _is_cause(file: str) -> bool:
    return file.startswith(str(_HOME)) and file not in _CARRIERS


@contextmanager
def fake_card() -> Iterator["FakeCard"]:
    """Inside the block, tensors have no values, and `cuda:0` is a device like any other."""
    crossings = _Crossings()
    with (
        # noise is drawn in a thread, where no mode acts, and arrives here as a real tensor
        FakeTensorMode(allow_non_fake_inputs=True), _WithoutDriver(), crossings, torch.no_grad(),
        mock.patch.object(nn.Module, "_apply", _applied),
    ):  # fmt: skip
        yield FakeCard(crossings.seen)


def _applied(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`Module._apply`, which `Module.to` uses. It replaces parameters: torch cannot exchange values of fake ones."""
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                each._parameters[name] = nn.Parameter(change(parameter), requires_grad=False)
        for name, buffer in each._buffers.items():
            if buffer is not None:
                each._buffers[name] = change(buffer)
    return module


class FakeCard:
    """The card that `fake_card` yields. `crossings`: (what, function of civman) → how often."""

    def __init__(self, crossings: Counter[tuple[str, str]]) -> None:
        self.crossings = crossings

    def put(self, module: nn.Module, device: torch.device = CARD) -> None:
        """Replace the parameters and buffers of a loaded module by fake ones of the same shape and dtype."""
        for each in module.modules():
            for name, parameter in each._parameters.items():
                if parameter is not None and not parameter.is_meta:
                    each._parameters[name] = nn.Parameter(empty_like(parameter, device), requires_grad=False)
            for name, buffer in each._buffers.items():
                if buffer is not None:
                    each._buffers[name] = empty_like(buffer, device)


def empty_like(tensor: Tensor, device: torch.device = CARD) -> Tensor:
    """A tensor of this shape and dtype on the card."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
