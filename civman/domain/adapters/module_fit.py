"""An adapter's modules against a checkpoint's weights: looked up by name, compared by shape.

Refuses to do: judging what the numbers mean (`civman.domain.compatibility`).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from civman.domain.adapters.adapter_tensors import Delta
from civman.domain.adapters.module_names import ModuleIndex


@dataclass(frozen=True, slots=True)
class ModuleFit:
    """An adapter's modules against the checkpoint's weights."""

    total: int
    fitting: int
    elsewhere: tuple[str, ...] = ()
    """Modules of a part (a text encoder) that the checkpoint's file does not hold at all."""
    missing: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    """Module, its shape and the weight's: "…attn2_to_k: 320x768 against 640x2048"."""

    @property
    def words(self) -> str:
        """One line: "264 of 264 modules fit"."""
        notes = (
            (self.missing, "not in the checkpoint"), (self.mismatched, "of another shape"),
            (self.elsewhere, "for text encoders that the file does not hold"),
        )  # fmt: skip
        rest = ", ".join(f"{len(names)} {what}" for names, what in notes if names)
        return f"{self.fitting} of {self.total} modules fit" + (f" ({rest})" if rest else "")


def fit_modules(deltas: Iterable[Delta], index: ModuleIndex) -> ModuleFit:
    """Each module looked up by name and compared by shape."""
    total = fitting = 0
    elsewhere: list[str] = []
    missing: list[str] = []
    mismatched: list[str] = []
    for delta in deltas:
        total += 1
        weight = index.find(delta.part, delta.path)
        if weight is None:
            absent = delta.part != "unet" and not index.parts & {"te1", "te2", "te3"}
            (elsewhere if absent else missing).append(delta.module)
        elif _fits(delta, weight):
            fitting += 1
        else:
            shown = delta.shape or delta.sides
            mismatched.append(f"{delta.module}: {'x'.join(map(str, shown))} against {'x'.join(map(str, weight))}")
    return ModuleFit(total, fitting, tuple(elsewhere), tuple(missing), tuple(mismatched))


def _fits(delta: Delta, weight: tuple[int, ...]) -> bool:
    """Same width out, same width in; a 1x1 convolution is as good as a linear layer."""
    if not delta.is_whole or not weight:
        return False
    if not delta.shape:
        flat = math.prod(weight[1:]) if len(weight) > 1 else weight[0]
        return any(side in (weight[0], weight[1] if len(weight) > 1 else flat, flat) for side in delta.sides)
    ours, theirs = _trimmed(delta.shape), _trimmed(weight)
    if len(ours) > 2 and len(theirs) > 2:
        return ours == theirs
    return ours[0] == theirs[0] and math.prod(ours[1:]) == math.prod(theirs[1:])


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
