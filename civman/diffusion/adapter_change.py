"""One adapter's change to one weight of a model: reads the adapter's tensors and computes what to add to the weight."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from civman.diffusion import adapter_formulas, weight_change
from civman.diffusion.match_adapter import Act, Plan

Base = Callable[[str, str], Tensor]
"""Maps (component, parameter) to the tensor stored in the checkpoint's file, in the parameter's shape."""


@dataclass(frozen=True, slots=True)
class Change:
    """One adapter's change to one parameter, with its tensors as float32 on the parameter's device."""

    plan: Plan
    act: Act
    parts: Mapping[str, Tensor]
    scale: float
    device: torch.device
    layer: Callable[[Tensor], Tensor]
    """Maps the parameter's value to the float32 weight of the layer that the adapter was trained on.

    Usually this is the parameter's own layer, so the value is returned unchanged. If the adapter was trained on a layer
    that fuses several parameters (such as q, k and v), the result is the weight of the fused layer.
    """

    @property
    def factors(self) -> tuple[Tensor, Tensor, float] | None:
        """The change as (up, down, strength) if it is a low-rank product strength · up · down, else None.

        The strength includes the adapter's scale.
        """
        found = None if self.act.is_bias else weight_change.low_rank(self.act.kind, self.parts)
        return None if found is None else (self._taken(found[0]), found[1], found[2] * self.scale)

    def _taken(self, rows: Tensor) -> Tensor:
        """Select the rows of a change, or of its `up` factor, that belong to this parameter."""
        if not self.act.rows:
            return rows
        return torch.cat([rows[first : first + count] for first, count in self.act.rows])

    def add_to(self, total: Tensor, weight: Tensor) -> float:
        """Add scale · Δ(weight) to `total` in place, and return the sum of squares of the added values."""
        if (factors := self.factors) is not None:
            total.flatten(1).addmm_(factors[0], factors[1], alpha=factors[2])
            return square_of(*factors)
        if self.act.is_bias:
            delta = self._taken(adapter_formulas.bias(self.parts, self.act.rank, self.layer(weight)))
        else:
            delta = self._taken(weight_change.change(self.act.kind, self.parts, self.layer(weight)))
        total.add_(delta, alpha=self.scale)
        return float(torch.linalg.vector_norm(delta, dtype=_precise(delta))) ** 2 * self.scale**2

    def square(self, weight: Tensor) -> float:
        """Compute the squared Frobenius norm of scale · Δ(weight); `weight` is float32."""
        factors = self.factors
        return square_of(*factors) if factors is not None else self.add_to(torch.zeros_like(weight), weight)


def square_of(up: Tensor, down: Tensor, strength: float) -> float:
    """Compute the squared Frobenius norm of strength · U · D without computing U · D: |UD|² = tr(UᵀU · DDᵀ)."""
    return float(((up.T @ up) * (down @ down.T)).sum(dtype=_precise(up)).clamp(min=0)) * strength**2


def _precise(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which sums are accumulated: float64, except on Apple's GPUs (MPS), which lack it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def read_change(plan: Plan, place: tuple[str, str], device: torch.device, base: Base) -> Change:
    """Read from an adapter's file the change of one parameter; `place` is (component, parameter).

    The adapter's tensors are put on `device`.
    """
    act = plan.acts[place]
    # keep tensors with one element (alpha, IA3's flag) on the CPU, because Python code needs their values
    parts = {
        part: plan.file.get_tensor(key).to("cpu" if part in ("alpha", "on_input") else device).float()
        for part, key in act.parts.items()
    }
    if act.alpha is not None:
        parts["alpha"] = torch.tensor(act.alpha)
    return Change(plan, act, parts, plan.adapter.scale(place), device, _layer(act, place[0], parts, base))


def _layer(act: Act, component: str, parts: Mapping[str, Tensor], base: Base) -> Callable[[Tensor], Tensor]:
    """Return a function that maps a parameter to the weight of the layer that the adapter was trained on.

    See `Change.layer`.
    """
    if not act.joint:
        return lambda weight: weight

    def joint(weight: Tensor) -> Tensor:
        rows = sum(count for _, taken in act.joint for _, count in taken)
        shape = (rows, *weight.shape[1:])
        if weight_change.ignores_weight(act.kind, parts):
            return weight.new_zeros(1).expand(shape)
        whole = weight.new_empty(shape)
        for name, taken in act.joint:
            at, values = 0, base(component, name).to(weight)
            for first, count in taken:
                whole[first : first + count] = values[at : at + count]
                at += count
        return whole

    return joint
