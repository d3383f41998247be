"""Merging any number of adapters into the weights of a model, and taking them out again.

Each touched weight becomes `round(W + Σ sᵢ · Δᵢ(W))`: every Δ is computed in float32 from the *file's* weight W, also
those that are not linear in it (DoRA, OFT, BOFT, GLoRA, IA3), so that no adapter acts on what another one did and there
is no order to choose; the sum runs in the order of the adapters' SHA-256 (then scales), and is rounded once. A scale
means the same for every kind: the share of the way from W to what the adapter alone would make of it.

Nothing is un-merged: `restore` puts the file's own bits back. Writing never goes into the old storage, which may be
the memory map those bits come from.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from civman.errors import Incompatible
from civman.render import deltas, names
from civman.render.kinds import Kind
from civman.render.matching import Adapter, Coverage, Plan, match, require_coverage
from civman.render.tensors import open_tensors

__all__ = ["Adapter", "Base", "Coverage", "apply", "restore"]

Base = Callable[[str, str], Tensor]
"""(component, parameter) → the parameter's tensor as the checkpoint's file has it, in the parameter's shape."""

_SUSPECT = 1000.0
"""Norm of a change above which the sum is looked at; float16 ends at 65504, sound changes stay below 100."""


def apply(
    components: Mapping[str, nn.Module],
    base: Base,
    adapters: Sequence[Adapter],
    *,
    allow_partial: bool = False,
) -> list[Coverage]:
    """Merge the adapters into the components; one report per adapter, in the order given.

    Only weights that an adapter names are written, each from `base`: to go from one set of adapters to another,
    `restore` first. On an error no weight is left changed by this call.

    Args:
        components: `unet`, `text_encoder`, `text_encoder_2`: those the model has. On any device, in any float type.
        base: where the unchanged weights come from.
        adapters: any number; the same file may come twice.
        allow_partial: accept an adapter some of whose modules fit nothing.

    Raises:
        Incompatible: an adapter fits nothing (`code` `adapter-no-match`), fits only partly (`adapter-partial`),
            changes no bit of any weight though its scale is not 0 (`adapter-no-change`), or makes weights that are
            not finite (`adapter-not-finite`).
        InvalidModelFile, Refused: a file cannot be read.
    """
    parameters = {name: dict(module.named_parameters()) for name, module in components.items()}
    index = names.spellings(parameters)
    with ExitStack() as stack, torch.no_grad(), _full_precision():
        plans = [
            match(adapter, stack.enter_context(open_tensors(adapter.path)), index, parameters) for adapter in adapters
        ]
        for plan in plans:
            require_coverage(plan, allow_partial=allow_partial)
        _merge_all(components, base, plans)
    return [plan.coverage() for plan in plans]


def restore(components: Mapping[str, nn.Module], base: Base, coverages: Iterable[Coverage]) -> None:
    """Give every parameter the reports say was written the bits of the checkpoint's file again."""
    with torch.no_grad():
        _restore(components, base, {place for coverage in coverages for place in coverage.parameters})


@dataclass(frozen=True, slots=True)
class _Change:
    """One adapter's change of one parameter, its tensors read: float32 on the parameter's device."""

    plan: Plan
    kind: Kind
    parts: Mapping[str, Tensor]
    scale: float

    @property
    def reads_weight(self) -> bool:
        return deltas.low_rank(self.kind, self.parts) is None

    def add_to(self, total: Tensor, weight: Tensor) -> float:
        """Add scale · Δ(weight) to `total` in place; the sum of its squares."""
        if (factors := deltas.low_rank(self.kind, self.parts)) is not None:
            up, down, strength = factors
            total.flatten(1).addmm_(up, down, alpha=self.scale * strength)
            # |UD|² = tr(UᵀU · DDᵀ): the product itself, as large as the weight, is never formed
            square = float(((up.T @ up) * (down @ down.T)).sum(dtype=torch.float64).clamp(min=0)) * strength**2
        else:
            delta = deltas.change(self.kind, self.parts, weight)
            total.add_(delta, alpha=self.scale)
            square = float(torch.linalg.vector_norm(delta, dtype=torch.float64)) ** 2
        return square * self.scale**2


def _merge_all(components: Mapping[str, nn.Module], base: Base, plans: Sequence[Plan]) -> None:
    ordered = sorted(plans, key=lambda plan: (plan.adapter.sha256, plan.adapter.unet_scale, plan.adapter.te_scale))
    places: dict[tuple[str, str], list[Plan]] = {}
    for plan in ordered:
        for place in plan.acts:
            if plan.adapter.scale(place[0]) != 0:
                places.setdefault(place, []).append(plan)
            plan.squares.setdefault(place[0], 0.0)
    written: set[tuple[str, str]] = set()
    buffer = _Buffer()
    try:
        for place, acting in places.items():
            component, name = place
            parameter = components[component].get_parameter(name)
            changes = [_read(plan, place, parameter.device) for plan in acting]
            total = _merged(base(component, name), parameter, component, changes, buffer)
            written.add(place)
            _put(parameter, total)
        for plan in ordered:
            _check_change(plan)
    except BaseException:
        _restore(components, base, written)
        raise


def _read(plan: Plan, place: tuple[str, str], device: torch.device) -> _Change:
    act = plan.acts[place]
    parts = {part: plan.file.get_tensor(key).to(device).float() for part, key in act.parts.items() if part != "alpha"}
    if "alpha" in act.parts:  # one number, needed on the host
        parts["alpha"] = plan.file.get_tensor(act.parts["alpha"]).float()
    if act.alpha is not None:
        parts["alpha"] = torch.tensor(act.alpha)
    return _Change(plan, act.kind, parts, plan.adapter.scale(place[0]))


def _merged(
    base: Tensor, parameter: nn.Parameter, component: str, changes: Sequence[_Change], buffer: "_Buffer"
) -> Tensor:
    """W + Σ s · Δ(W) in float32; it lives in the buffer until the next call."""
    weight = buffer.holding(base, parameter.device)
    for change in changes:
        if not change.plan.changes_bits:
            alone = weight.clone()
            change.add_to(alone, weight)
            change.plan.changes_bits = not torch.equal(alone.to(parameter.dtype), weight.to(parameter.dtype))
    apart = len(changes) > 1 and any(change.reads_weight for change in changes)
    total = weight.clone() if apart else weight
    for change in changes:
        square = change.add_to(total, weight)
        # a bound on the largest entry spares reading every weight once more
        if not square < _SUSPECT**2 and not torch.isfinite(total.to(parameter.dtype)).all():
            label = change.plan.adapter.label
            raise Incompatible(
                f"adapter `{label}` makes weights that are not finite numbers in {parameter.dtype}",
                code="adapter-not-finite",
                hint="the file is damaged, or the scale far too large",
                adapter=label,
            )
        change.plan.squares[component] += square
    return total


def _check_change(plan: Plan) -> None:
    if not plan.changes_bits and not plan.is_asked_for_nothing:
        label = plan.adapter.label
        raise Incompatible(
            f"adapter `{label}` changes nothing: {len(plan.matched)} modules match, no weight differs by a bit",
            code="adapter-no-change",
            hint="its values are zero or too small at this scale",
            adapter=label,
            matched=len(plan.matched),
        )


def _put(parameter: nn.Parameter, values: Tensor) -> None:
    fresh = torch.empty_like(parameter)  # keeps the memory format
    fresh.copy_(values)
    parameter.data = fresh


def _restore(components: Mapping[str, nn.Module], base: Base, places: Iterable[tuple[str, str]]) -> None:
    for component, name in places:
        parameter = components[component].get_parameter(name)
        bits = base(component, name)
        same = (bits.dtype, bits.device, bits.stride()) == (parameter.dtype, parameter.device, parameter.stride())
        if same:
            parameter.data = bits
        else:
            _put(parameter, bits)


class _Buffer:
    """One reused float32 allocation: fresh pages cost more than the arithmetic on them."""

    def __init__(self) -> None:
        self._flat = torch.empty(0)

    def holding(self, tensor: Tensor, device: torch.device) -> Tensor:
        if self._flat.device != device or self._flat.numel() < tensor.numel():
            self._flat = torch.empty(tensor.numel(), device=device)
        copy = self._flat[: tensor.numel()].view(tensor.shape)
        return copy.copy_(tensor)


@contextmanager
def _full_precision() -> Iterator[None]:
    """float32 products in float32, whatever the caller allows for rendering (TF32 would lose 13 bits)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
