"""Name the tensors in an unpickled value, and lay them out as a safetensors file with the same contents.

The layout depends only on the value, so that the header of a pickle can be compared with any other header, and the
safetensors copy of a file always has the same bytes. `civman.store.safe_copies` writes the copy.

Source: how A1111, diffusers, the trainers' scripts and the upscalers' authors arrange what they pass to torch.save.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from civman.domain.files.header import Header, Tensor
from civman.domain.files.header_text import BITS, MAX_TENSORS, refuse, short
from civman.domain.files.pickle_values import Pairs, StoredTensor

_WEIGHTS = ("state_dict", "params_ema", "params-ema", "params", "model_state_dict", "model", "net")
"""Keys under which trainers save the weights next to other data. The first key whose value contains tensors is used."""
_TRAINING = frozenset({
    "optimizer_state_dict", "optimizer_states", "optimizer", "optimizers", "lr_schedulers", "lr_scheduler", "scheduler",
    "callbacks", "loops", "hyper_parameters", "amp_scaling_state", "native_amp_scaling_state", "hparams",
})  # fmt: skip
"""Keys of a training run's state, which is not part of the model."""
_MAX_DEPTH = 16
_MAX_VISITS = 1_000_000
_MAX_NAME = 2_000
_MAX_ENTRIES = 64
_MAX_VALUE = 4_000
SINGLE = "tensor"
"""The name for a tensor that was saved on its own."""


@dataclass(frozen=True, slots=True)
class PickledTensors:
    """The tensors of a pickle by name, in the order of the safetensors copy, and its plain values as metadata."""

    tensors: Mapping[str, StoredTensor] = field(repr=False)
    metadata: Mapping[str, str] = field(repr=False)

    def header(self) -> Header:
        """Build the header of the safetensors copy, without the metadata about its origin."""
        data = sum(tensor.count * tensor.item_bytes for tensor in self.tensors.values())
        return Header(_layout(self.tensors), self.metadata, 0, data)

    def header_bytes(self, origin: Mapping[str, str]) -> bytes:
        """Build the bytes of the safetensors copy's header. `origin` is added to the metadata."""
        entries: dict[str, Any] = {"__metadata__": {**self.metadata, **origin}}
        for name, (dtype, shape, start, end) in _layout(self.tensors).items():
            entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text


def name_tensors(value: Any) -> PickledTensors:
    """Find the model's tensors in the value of a pickle, and name each by the keys that lead to it.

    Raises: InvalidModelFile: there are no tensors, two have the same name, or the value is nested too deeply.
    """
    walk = _Walk()
    weights = _weights_in(value, walk)
    walk.take(weights, "", 0)
    if not walk.found:
        refuse("the pickle contains no tensors", cause="no-tensors")
    ordered = sorted(walk.found.items(), key=lambda entry: (-BITS[entry[1].dtype], entry[0]))
    return PickledTensors(dict(ordered), _plain_values(value))


class _Walk:
    """Collects tensors by name, within limits, because a small file with shared values can describe a huge tree."""

    def __init__(self) -> None:
        self.found: dict[str, StoredTensor] = {}
        self._visits = 0

    def take(self, value: Any, name: str, depth: int) -> None:
        self.count()
        if isinstance(value, StoredTensor):
            self._add(name or SINGLE, value)
            return
        if depth > _MAX_DEPTH:
            refuse("the values in the pickle are nested too deeply", cause="too-deep")
        if isinstance(value, Pairs):
            entries = [(_key(key), inner) for key, inner in value.items] if len(value.items) <= _MAX_VISITS else []
            # in a dictionary, a later entry replaces an earlier one with the same key
            last = {key: inner for key, inner in entries if key is not None}
            for key, inner in last.items():
                if depth or key not in _TRAINING:
                    self.take(inner, f"{name}.{key}" if name else key, depth + 1)
            self.count(len(entries))
        elif isinstance(value, list | tuple):
            for number, inner in enumerate(value):
                self.take(inner, f"{name}.{number}" if name else str(number), depth + 1)

    def count(self, visits: int = 1) -> None:
        self._visits += visits
        if self._visits > _MAX_VISITS:
            refuse("the pickle repeats its values more often than that of any real model", cause="too-deep")

    def _add(self, name: str, tensor: StoredTensor) -> None:
        if len(name) > _MAX_NAME or name == "__metadata__" or name in self.found:
            refuse(f"the tensor name `{short(name)}` in the pickle is invalid or occurs twice", cause="duplicate-name")
        if len(self.found) >= MAX_TENSORS:
            refuse(f"the pickle lists more than {MAX_TENSORS} tensors", cause="too-many-tensors")
        self.found[name] = tensor


def _key(key: Any) -> str | None:
    if isinstance(key, str):
        return key
    return str(key) if type(key) is int and abs(key) < 1 << 63 else None


def _weights_in(value: Any, walk: _Walk) -> Any:
    """Find the part of `value` that contains the model's weights; if there is none, return `value` itself."""
    for _ in range(4):
        if not isinstance(value, Pairs):
            return value
        walk.count(len(value.items))
        inner = {key: each for key, each in value.items if isinstance(key, str) and key in _WEIGHTS}
        holders = (inner[key] for key in _WEIGHTS if isinstance(inner.get(key), Pairs))
        found = next((each for each in holders if _holds_tensors(each)), None)
        if found is None:
            return value
        value = found
    return value


def _holds_tensors(value: Pairs) -> bool:
    for _, each in value.items[:_MAX_ENTRIES]:
        if isinstance(each, StoredTensor) or (
            isinstance(each, Pairs) and any(isinstance(inner, StoredTensor) for _, inner in each.items[:_MAX_ENTRIES])
        ):
            return True
    return False


def _plain_values(value: Any) -> dict[str, str]:
    """Convert the top-level texts, numbers and short lists of these (such as a hypernetwork's layers) to strings."""
    found: dict[str, str] = {}
    for key, each in value.items if isinstance(value, Pairs) else ():
        if len(found) >= _MAX_ENTRIES:
            break
        text = _as_text(each)
        if isinstance(key, str) and 0 < len(key) <= 100 and key != "__metadata__" and text is not None:
            found[key] = text
    return found


def _as_text(value: Any) -> str | None:
    if isinstance(value, str):
        return value if len(value) <= _MAX_VALUE else None
    if isinstance(value, int | float):  # this includes True and False, which JSON can represent
        return json.dumps(value) if not isinstance(value, int) or abs(value) < 1 << 63 else None
    if isinstance(value, list | tuple) and 0 < len(value) <= _MAX_ENTRIES:
        return json.dumps(list(value)) if all(type(each) in (int, float, str, bool) for each in value) else None
    return None


def _layout(tensors: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    at, found = 0, {}
    for name, tensor in tensors.items():
        end = at + tensor.count * tensor.item_bytes
        found[name] = Tensor(tensor.dtype, tensor.shape, at, end)
        at = end
    return found
