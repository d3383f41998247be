"""Merges any number of adapters into the weights of a model, and restores the original weights.

Each affected weight becomes `round(W + Σ sᵢ · Δᵢ(W))`. Every Δ is computed in float32 from the *file's* weight W, even
if it is not linear in W (DoRA, OFT, BOFT, GLoRA, IA3), so adapters do not affect each other and their order does not
matter. The changes are added in the order of the adapters' SHA-256 (then scales), and the sum is rounded once. A scale
means the same for every kind of adapter: the fraction of the way from W to the weight that the adapter alone would
produce.

Changes are never undone by subtraction: `restore` reads the original bits from the file. Merging never writes to the
memory map from which those bits are read.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

import torch
from torch import Tensor, nn

from civman.diffusion.adapter_change import Base, Change, read_change, square_of
from civman.diffusion.component_layouts import Source
from civman.diffusion.match_adapter import Adapter, Coverage, Plan, match_file, require_coverage, weights_of
from civman.diffusion.tensor_files import open_tensors
from civman.errors import Cause, Incompatible

__all__ = ["Adapter", "Base", "Coverage", "Later", "apply", "restore"]

_PIECE = 1 << 20
"""The number of elements of a weight that are merged at a time: 4 MiB of float32."""
_SUSPECT = 1000.0
"""A merged weight is checked for overflow if a change to it has at least this norm.

The largest float16 number is 65504; ordinary changes stay below 100.
"""


def apply(
    components: Mapping[str, nn.Module],
    base: Base,
    adapters: Sequence[Adapter],
    *,
    allow_partial: bool = False,
    unused: Iterable[tuple[str, str]] = (),
    sources: Mapping[str, Mapping[str, Source]] = {},
    done_with: Callable[[str, str], None] = lambda _component, _parameter: None,
    later: "Later | None" = None,
    holds_base: bool = False,
) -> list[Coverage]:
    """Merge the adapters into the components and return one report per adapter, in the order given.

    Only weights that an adapter changes are written, each computed from `base`, so call `restore` before switching to
    another set of adapters. If an error is raised, no weight is left changed.

    Args:
        components: the model's `unet`, `text_encoder` and `text_encoder_2`, as far as it has them, or all
            components of a model with a transformer; any device and float dtype.
        base: returns the unchanged weights.
        adapters: any number; the same file may occur twice.
        allow_partial: accept adapters with modules that match nothing in the model.
        unused: layers that are in the checkpoint's file but that the model does not use, as (part, path prefix).
        sources: for each component, the tensor in the file that each parameter is read from; required for a model
            with a transformer.
        done_with: called for each tensor of `base` that will not be read again.
        later: records the changes to weights that are not loaded (meta device), replacing earlier records.
        holds_base: whether the parameters have the values of `base`, as after loading or `restore`. If so, they are
            changed in place, without copying `base` to the device, unless loading has rounded them.

    Raises:
        Incompatible: an adapter matches nothing (`code` `adapter-no-match`), matches only partly
            (`adapter-partial`), changes no bit of any weight although its scale is not 0 (`adapter-no-change`), or
            results in weights that are not finite (`adapter-not-finite`).
        InvalidModelFile, Refused: a file cannot be read.
    """
    index = weights_of(components, unused, sources)
    with ExitStack() as stack, torch.no_grad(), full_precision():
        plans = [match_file(adapter, stack.enter_context(open_tensors(adapter.path)), index) for adapter in adapters]
        for plan in plans:
            require_coverage(plan, allow_partial=allow_partial)
        places = _merge_all(components, base, plans, done_with, later, holds_base=holds_base)
        if later is not None:
            later.keep(places, stack.pop_all(), base)
    return [plan.coverage() for plan in plans]


def restore(components: Mapping[str, nn.Module], base: Base, coverages: Iterable[Coverage]) -> None:
    """Reset the parameters that the reports list as changed to the bits in the checkpoint's file."""
    with torch.no_grad():
        _restore(components, base, {place for coverage in coverages for place in coverage.parameters})


class Later:
    """Adapters' changes to streamed weights.

    The changes are applied each time a layer is called. The results are bit-identical to the weights that `apply`
    writes.
    """

    def __init__(self, device: torch.device) -> None:
        """Start without any recorded changes. Changed weights are computed on `device`."""
        self.device = device
        self._places: dict[tuple[str, str], list[Plan]] = {}
        self._files = ExitStack()
        self._base: Base | None = None
        self._buffers: SimpleQueue[_Buffer] = SimpleQueue()
        self._pool: ThreadPoolExecutor | None = None

    def __contains__(self, place: tuple[str, str]) -> bool:
        return place in self._places

    def change(self, place: tuple[str, str], plans: list[Plan]) -> None:
        """Replace the recorded changes of one weight. The caller must keep the adapters' files open."""
        self._places.pop(place, None)
        self._places |= {place: plans} if plans else {}

    def keep(self, places: dict[tuple[str, str], list[Plan]], files: ExitStack, base: Base) -> None:
        """Replace all recorded changes with `places`.

        `files` keeps the adapter files open that the changes are read from; `base` returns the unchanged weights.
        """
        self._files.close()
        self._places, self._files, self._base = places, files, base

    def write(self, place: tuple[str, str], base: Tensor, into: Tensor) -> None:
        """Write a weight with all its changes to `into`; `base` is the file's tensor, `into` has the same strides."""
        with torch.no_grad(), full_precision(), _one_thread_each() as threads:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(threads)
                self._buffers = _buffers(threads)
            assert self._base is not None
            changes = [read_change(plan, place, self.device, self._base) for plan in self._places[place]]
            product = _product(base, into, changes)
            if product is None:
                with _borrowed(self._buffers) as buffer:
                    _add_up(base, into, changes, buffer)
                return

            def one(rows: slice) -> None:
                with _borrowed(self._buffers) as buffer:
                    product.write(base, into, rows, buffer)

            pieces = product.pieces(into)
            if len(pieces) == 1:  # always on a GPU, which computes the whole product at once
                one(pieces[0])
            else:
                list(self._pool.map(one, pieces))


def _merge_all(
    components: Mapping[str, nn.Module],
    base: Base,
    plans: Sequence[Plan],
    done_with: Callable[[str, str], None],
    later: Later | None,
    *,
    holds_base: bool,
) -> dict[tuple[str, str], list[Plan]]:
    ordered = in_order(plans)
    places: dict[tuple[str, str], list[Plan]] = {}
    for plan in ordered:
        for place in plan.acts:
            if plan.adapter.scale(place) != 0:
                places.setdefault(place, []).append(plan)
            plan.add(place, 0.0)
    written: set[tuple[str, str]] = set()

    def merge(place: tuple[str, str], acting: list[Plan], buffer: _Buffer) -> list[float]:
        component, name = place
        parameter = components[component].get_parameter(name)
        device = later.device if parameter.is_meta and later is not None else parameter.device
        changes = [read_change(plan, place, device, base) for plan in acting]
        stored = base(component, name)
        values = parameter.data if holds_base and _is_unrounded(parameter, stored) else stored
        _prove(values, parameter.dtype, changes, buffer)
        if parameter.is_meta:
            squares = _examine(values, parameter, changes, buffer)
            waiting[place] = acting
        else:
            written.add(place)
            fresh = _room(parameter, stored)
            squares = _write(values, fresh, changes, buffer)
            parameter.data = fresh
        done_with(component, name)
        return squares

    waiting: dict[tuple[str, str], list[Plan]] = {}
    kinds = {parameter.device.type for module in components.values() for parameter in module.parameters()}
    on_cpu = kinds - {"meta"} == {"cpu"}
    try:
        for (place, acting), squares in zip(places.items(), _all(merge, places, on_cpu=on_cpu), strict=True):
            for plan, square in zip(acting, squares, strict=True):
                plan.add(place, square)
        for plan in ordered:
            _check_change(plan)
    except BaseException:
        _restore(components, base, written)
        raise
    return waiting


def in_order(plans: Iterable[Plan]) -> list[Plan]:
    """Sort adapters into the order in which their changes are summed."""
    return sorted(
        plans,
        key=lambda plan: (plan.adapter.sha256, plan.adapter.unet_scale, plan.adapter.te_scale, plan.adapter.blocks),
    )


def rewrite(
    components: Mapping[str, nn.Module], base: Base, places: Mapping[tuple[str, str], list[Plan]], later: Later | None
) -> None:
    """Compute each weight in `places` again with its adapters at their current scales; restore weights without any.

    The changes to weights that are not loaded (meta device) are recorded in `later`. Raises: Incompatible
    (`adapter-not-finite`).
    """
    loaded: dict[tuple[str, str], list[Plan]] = {}
    for place, plans in places.items():
        if later is not None and components[place[0]].get_parameter(place[1]).is_meta:
            later.change(place, plans)
        elif plans:
            loaded[place] = plans
    _restore(components, base, [place for place, plans in places.items() if not plans])

    def merge(place: tuple[str, str], plans: list[Plan], buffer: _Buffer) -> list[float]:
        parameter, values = components[place[0]].get_parameter(place[1]), base(*place)
        fresh = _room(parameter, values)
        squares = _write(values, fresh, [read_change(plan, place, parameter.device, base) for plan in plans], buffer)
        parameter.data = fresh
        return squares

    kinds = {components[name].get_parameter(each).device.type for name, each in loaded}
    with torch.no_grad(), full_precision():
        _all(merge, loaded, on_cpu=kinds == {"cpu"})


def _all(
    merge: Callable[[tuple[str, str], list[Plan], "_Buffer"], list[float]],
    places: Mapping[tuple[str, str], list[Plan]],
    *,
    on_cpu: bool,
) -> list[list[float]]:
    """Call `merge` for each weight and return the results; on the CPU, process weights in parallel, one thread each.

    If torch used several threads for each weight, they would wait for each other 6,000 times, which takes several times
    as long on a busy machine. One thread for each weight also makes the results independent of the number of threads.
    """
    with _one_thread_each() as threads:
        workers = threads if on_cpu else 1
        buffers = _buffers(workers)

        def one(item: tuple[tuple[str, str], list[Plan]]) -> list[float]:
            with _borrowed(buffers) as buffer:
                return merge(*item, buffer)

        if workers == 1:
            return list(map(one, places.items()))
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(one, places.items()))


@contextmanager
def _one_thread_each() -> Iterator[int]:
    """Limit torch to one thread per operation, and yield the previous number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _prove(base: Tensor, dtype: torch.dtype, changes: Sequence[Change], buffer: "_Buffer") -> None:
    """Record which adapters change at least one bit of this weight; skip adapters known to change another weight."""
    for change in changes:
        if not change.plan.changes_bits:
            weight = buffer.holding(base, change.device)
            alone = weight.clone()
            change.add_to(alone, weight)
            change.plan.changes_bits = not torch.equal(alone.to(dtype), weight.to(dtype))


def _write(base: Tensor, into: Tensor, changes: Sequence[Change], buffer: "_Buffer") -> list[float]:
    """Write W + Σ s · Δ(W), rounded once, to `into`; return the sum of squares of each s · Δ(W)."""
    product = _product(base, into, changes)
    if product is None:
        return _add_up(base, into, changes, buffer)
    for rows in product.pieces(into):
        product.write(base, into, rows, buffer)
    return product.squares


def _examine(base: Tensor, parameter: nn.Parameter, changes: Sequence[Change], buffer: "_Buffer") -> list[float]:
    """Return the sums of squares that `_write` would return, without changing the parameter.

    The merged weights are computed only if the changes cannot be combined into one product (`_product`).
    """
    product = _product(base, parameter, changes)
    if product is not None:
        return product.squares
    return _add_up(base, torch.empty_like(parameter, device=changes[0].device), changes, buffer)


@dataclass(frozen=True, slots=True)
class _Product:
    """All changes to one weight, combined into one product `up` · `down`, computed in slices that fit the CPU cache."""

    up: Tensor
    down: Tensor
    squares: list[float]

    def pieces(self, into: Tensor) -> list[slice]:
        """Split the rows into slices that are computed one at a time."""
        count, width = len(self.up), self.down.shape[1]
        rows = max(1, _PIECE // width) if into.device.type == "cpu" else count
        return [slice(row, row + rows) for row in range(0, count, rows)]

    def write(self, base: Tensor, into: Tensor, rows: slice, buffer: "_Buffer") -> None:
        """Write W + up · down to these rows of `into`."""
        piece = buffer.holding(base.flatten(1)[rows], into.device)
        into.flatten(1)[rows].copy_(piece.addmm_(self.up[rows], self.down))


def _product(base: Tensor, into: Tensor, changes: Sequence[Change]) -> _Product | None:
    """Combine the changes into one low-rank product; None if a change is not low-rank or may overflow."""
    factors = [change.factors for change in changes]
    known = [each for each in factors if each is not None]
    if len(known) < len(factors) or not base.is_contiguous() or not into.is_contiguous():
        return None
    squares = [square_of(*each) for each in known]
    if not all(square < _SUSPECT**2 for square in squares):
        return None
    up = torch.cat([up * strength for up, _, strength in known], dim=1)
    return _Product(up, torch.cat([down for _, down, _ in known]), squares)


def _add_up(base: Tensor, into: Tensor, changes: Sequence[Change], buffer: "_Buffer") -> list[float]:
    """Write W + Σ s · Δ(W) to `into`, adding one change after the other."""
    weight = buffer.holding(base, into.device)
    apart = len(changes) > 1 and any(change.factors is None for change in changes)
    total = weight.clone() if apart else weight
    squares = []
    for change in changes:
        squares.append(change.add_to(total, weight))
        # skip the check if the change has a small norm, because the sum cannot overflow then
        if not squares[-1] < _SUSPECT**2 and not torch.isfinite(total.to(into.dtype)).all():
            label = change.plan.adapter.label
            raise Incompatible(
                f"adapter `{label}` results in weights that are not finite in {into.dtype}",
                code=Cause.ADAPTER_NOT_FINITE,
                hint="use a smaller scale, or another copy of the file if it is damaged",
                adapter=label,
            )
    into.copy_(total)
    return squares


def _check_change(plan: Plan) -> None:
    if not plan.changes_bits and not plan.is_asked_for_nothing:
        label = plan.adapter.label
        idle = f"; {len(plan.idle)} more modules have no effect ({plan.idle[0].reason})" if plan.idle else ""
        raise Incompatible(
            f"adapter `{label}` changes nothing: {len(plan.matched)} modules match, but no weight differs by a "
            f"single bit{idle}",
            code=Cause.ADAPTER_NO_CHANGE,
            hint="the adapter's values are zero, or too small at this scale",
            adapter=label,
            matched=len(plan.matched),
        )


def _is_unrounded(parameter: nn.Parameter, stored: Tensor) -> bool:
    """Whether a loaded parameter equals the tensor in the file, with nothing rounded and the same memory layout."""
    is_exact = parameter.dtype in (stored.dtype, torch.float32)
    return is_exact and not parameter.is_meta and parameter.is_contiguous() == stored.is_contiguous()


def _room(parameter: nn.Parameter, base: Tensor) -> Tensor:
    """Return memory for the parameter's new values: its own memory, unless that is part of the memory-mapped file."""
    is_file = parameter.device == base.device and parameter.data_ptr() == base.data_ptr()
    return torch.empty_like(parameter) if is_file else parameter.data


def _restore(components: Mapping[str, nn.Module], base: Base, places: Iterable[tuple[str, str]]) -> None:
    for component, name in places:
        parameter = components[component].get_parameter(name)
        if parameter.is_meta:  # nothing to restore: the values of streamed weights are computed on each call
            continue
        bits = base(component, name)
        same = (bits.dtype, bits.device, bits.stride()) == (parameter.dtype, parameter.device, parameter.stride())
        if same:
            parameter.data = bits
        else:
            parameter.data = _room(parameter, bits).copy_(bits)


class _Buffer:
    """A reusable float32 buffer, since page faults on fresh memory cost more than the arithmetic."""

    def __init__(self) -> None:
        self._flat = torch.empty(0)

    def holding(self, tensor: Tensor, device: torch.device) -> Tensor:
        if self._flat.device != device or self._flat.numel() < tensor.numel():
            self._flat = torch.empty(tensor.numel(), device=device)
        copy = self._flat[: tensor.numel()].view(tensor.shape)
        return copy.copy_(tensor)


def _buffers(count: int) -> "SimpleQueue[_Buffer]":
    buffers: SimpleQueue[_Buffer] = SimpleQueue()
    for _ in range(count):
        buffers.put(_Buffer())
    return buffers


@contextmanager
def _borrowed(buffers: "SimpleQueue[_Buffer]") -> Iterator[_Buffer]:
    """Borrow a buffer for this thread, and disable gradients (a setting that torch keeps per thread)."""
    buffer = buffers.get()
    try:
        with torch.no_grad():
            yield buffer
    finally:
        buffers.put(buffer)


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 matrix products in full precision, even if the caller allows TF32 (which drops 13 bits)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
