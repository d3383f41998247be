"""Merging any number of adapters into the weights of a model, and taking them out again.

Each touched weight becomes `round(W + Σ sᵢ · Δᵢ(W))`: every Δ is computed in float32 from the *file's* weight W, also
those that are not linear in it (DoRA, OFT, BOFT, GLoRA, IA3), so that no adapter acts on what another one did and there
is no order to choose; the sum runs in the order of the adapters' SHA-256 (then scales), and is rounded once. A scale
means the same for every kind: the share of the way from W to what the adapter alone would make of it.

Nothing is un-merged: `restore` puts the file's own bits back. Writing never goes into the memory map those bits come
from.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

import torch
from torch import Tensor, nn

from civman.diffusion import adapter_formulas, weight_change
from civman.diffusion.match_adapter import Act, Adapter, Coverage, Plan, match_file, require_coverage, weights_of
from civman.diffusion.tensor_files import open_tensors
from civman.errors import Cause, Incompatible

__all__ = ["Adapter", "Base", "Coverage", "Later", "apply", "restore"]

Base = Callable[[str, str], Tensor]
"""(component, parameter) → the parameter's tensor as the checkpoint's file has it, in the parameter's shape."""

_PIECE = 1 << 20
"""Entries of a weight merged at once: 4 MiB of float32."""
_SUSPECT = 1000.0
"""Norm of a change above which the sum is looked at; float16 ends at 65504, sound changes stay below 100."""


def apply(
    components: Mapping[str, nn.Module],
    base: Base,
    adapters: Sequence[Adapter],
    *,
    allow_partial: bool = False,
    unused: Iterable[tuple[str, str]] = (),
    done_with: Callable[[str, str], None] = lambda _component, _parameter: None,
    later: "Later | None" = None,
) -> list[Coverage]:
    """Merge the adapters into the components; one report per adapter, in the order given.

    Only weights that an adapter names are written, each from `base`: to go from one set of adapters to another,
    `restore` first. On an error no weight is left changed by this call.

    Args:
        components: `unet`, `text_encoder`, `text_encoder_2`: those the model has. On any device, in any float type.
        base: where the unchanged weights come from.
        adapters: any number; the same file may come twice.
        allow_partial: accept an adapter some of whose modules fit nothing.
        unused: layers that the checkpoint's file holds and the model leaves out: (part, beginning of the path).
        done_with: told of each of `base`'s tensors that will not be read again.
        later: what keeps the changes of weights that have no values yet (meta device); it forgets those it had.

    Raises:
        Incompatible: an adapter fits nothing (`code` `adapter-no-match`), fits only partly (`adapter-partial`),
            changes no bit of any weight though its scale is not 0 (`adapter-no-change`), or makes weights that are
            not finite (`adapter-not-finite`).
        InvalidModelFile, Refused: a file cannot be read.
    """
    index = weights_of(components, unused)
    with ExitStack() as stack, torch.no_grad(), _full_precision():
        plans = [match_file(adapter, stack.enter_context(open_tensors(adapter.path)), index) for adapter in adapters]
        for plan in plans:
            require_coverage(plan, allow_partial=allow_partial)
        places = _merge_all(components, base, plans, done_with, later)
        if later is not None:
            later.keep(places, stack.pop_all())
    return [plan.coverage() for plan in plans]


def restore(components: Mapping[str, nn.Module], base: Base, coverages: Iterable[Coverage]) -> None:
    """Give every parameter the reports say was written the bits of the checkpoint's file again."""
    with torch.no_grad():
        _restore(components, base, {place for coverage in coverages for place in coverage.parameters})


@dataclass(frozen=True, slots=True)
class _Change:
    """One adapter's change of one parameter, its tensors read: float32 on the parameter's device."""

    plan: Plan
    act: Act
    parts: Mapping[str, Tensor]
    scale: float
    device: torch.device

    @property
    def factors(self) -> tuple[Tensor, Tensor, float] | None:
        """(up, down, how strongly) where the change is their product, times the adapter's scale."""
        found = None if self.act.is_bias else weight_change.low_rank(self.act.kind, self.parts)
        return None if found is None else (found[0], found[1], found[2] * self.scale)

    def add_to(self, total: Tensor, weight: Tensor) -> float:
        """Add scale · Δ(weight) to `total` in place; the sum of its squares."""
        if (factors := self.factors) is not None:
            total.flatten(1).addmm_(factors[0], factors[1], alpha=factors[2])
            return _square(*factors)
        if self.act.is_bias:
            delta = adapter_formulas.bias(self.parts, self.act.rank)
        else:
            delta = weight_change.change(self.act.kind, self.parts, weight)
        total.add_(delta, alpha=self.scale)
        return float(torch.linalg.vector_norm(delta, dtype=_precise(delta))) ** 2 * self.scale**2


def _square(up: Tensor, down: Tensor, strength: float) -> float:
    """|UD|² = tr(UᵀU · DDᵀ): the product itself, as large as the weight, is never formed."""
    return float(((up.T @ up) * (down @ down.T)).sum(dtype=_precise(up)).clamp(min=0)) * strength**2


def _precise(tensor: Tensor) -> torch.dtype:
    """What to sum in: Apple's GPUs have no double precision."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


class Later:
    """Changes of weights that wait in their file, made each time a layer is called: the same bits as `apply` writes."""

    def __init__(self, device: torch.device) -> None:
        """`device`: where the weights will be."""
        self.device = device
        self._places: dict[tuple[str, str], list[Plan]] = {}
        self._files = ExitStack()
        self._buffers: SimpleQueue[_Buffer] = SimpleQueue()
        self._pool: ThreadPoolExecutor | None = None

    def __contains__(self, place: tuple[str, str]) -> bool:
        return place in self._places

    def keep(self, places: dict[tuple[str, str], list[Plan]], files: ExitStack) -> None:
        """These changes from now on; `files` are what they are read from."""
        self._files.close()
        self._places, self._files = places, files

    def write(self, place: tuple[str, str], base: Tensor, into: Tensor) -> None:
        """`into` becomes `base`, the file's tensor, with all changes; its strides are those of `base`."""
        with torch.no_grad(), _full_precision(), _one_thread_each() as threads:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(threads)
                self._buffers = _buffers(threads)
            changes = [_read(plan, place, self.device) for plan in self._places[place]]
            product = _product(base, into, changes)
            if product is None:
                with _borrowed(self._buffers) as buffer:
                    _add_up(base, into, changes, buffer)
                return

            def one(rows: slice) -> None:
                with _borrowed(self._buffers) as buffer:
                    product.write(base, into, rows, buffer)

            list(self._pool.map(one, product.pieces(into)))


def _merge_all(
    components: Mapping[str, nn.Module],
    base: Base,
    plans: Sequence[Plan],
    done_with: Callable[[str, str], None],
    later: Later | None,
) -> dict[tuple[str, str], list[Plan]]:
    ordered = sorted(plans, key=lambda plan: (plan.adapter.sha256, plan.adapter.unet_scale, plan.adapter.te_scale))
    places: dict[tuple[str, str], list[Plan]] = {}
    for plan in ordered:
        for place in plan.acts:
            if plan.adapter.scale(place[0]) != 0:
                places.setdefault(place, []).append(plan)
            plan.squares.setdefault(place[0], 0.0)
    written: set[tuple[str, str]] = set()

    def merge(place: tuple[str, str], acting: list[Plan], buffer: _Buffer) -> list[float]:
        component, name = place
        parameter = components[component].get_parameter(name)
        device = later.device if parameter.is_meta and later is not None else parameter.device
        changes = [_read(plan, place, device) for plan in acting]
        values = base(component, name)
        _prove(values, parameter.dtype, changes, buffer)
        if parameter.is_meta:
            squares = _examine(values, parameter, changes, buffer)
            waiting[place] = acting
        else:
            written.add(place)
            fresh = _room(parameter, values)
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
                plan.squares[place[0]] += square
        for plan in ordered:
            _check_change(plan)
    except BaseException:
        _restore(components, base, written)
        raise
    return waiting


def _all(
    merge: Callable[[tuple[str, str], list[Plan], "_Buffer"], list[float]],
    places: Mapping[tuple[str, str], list[Plan]],
    *,
    on_cpu: bool,
) -> list[list[float]]:
    """What `merge` gives for all places. On the CPU several at a time, each by one thread.

    So no thread waits for the others 6,000 times, which takes several times as long where other programs are at work,
    and the weights do not depend on how many threads there are.
    """
    with _one_thread_each() as threads:
        workers = threads if on_cpu else 1
        buffers = _buffers(workers)

        def one(item: tuple[tuple[str, str], list[Plan]]) -> list[float]:
            with _borrowed(buffers) as buffer:
                return merge(*item, buffer)

        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(one, places.items()))


@contextmanager
def _one_thread_each() -> Iterator[int]:
    """Torch computes with one thread, wherever it is called; gives how many it had."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _read(plan: Plan, place: tuple[str, str], device: torch.device) -> _Change:
    act = plan.acts[place]
    # alpha and IA3's flag are one number each, needed on the host
    parts = {
        part: plan.file.get_tensor(key).to("cpu" if part in ("alpha", "on_input") else device).float()
        for part, key in act.parts.items()
    }
    if act.alpha is not None:
        parts["alpha"] = torch.tensor(act.alpha)
    return _Change(plan, act, parts, plan.adapter.scale(place[0]), device)


def _prove(base: Tensor, dtype: torch.dtype, changes: Sequence[_Change], buffer: "_Buffer") -> None:
    """Note of each adapter whether it alone changes a bit of this weight, until it has changed one."""
    for change in changes:
        if not change.plan.changes_bits:
            weight = buffer.holding(base, change.device)
            alone = weight.clone()
            change.add_to(alone, weight)
            change.plan.changes_bits = not torch.equal(alone.to(dtype), weight.to(dtype))


def _write(base: Tensor, into: Tensor, changes: Sequence[_Change], buffer: "_Buffer") -> list[float]:
    """`into` becomes W + Σ s · Δ(W), rounded once; the sum of squares of each s · Δ(W)."""
    product = _product(base, into, changes)
    if product is None:
        return _add_up(base, into, changes, buffer)
    for rows in product.pieces(into):
        product.write(base, into, rows, buffer)
    return product.squares


def _examine(base: Tensor, parameter: nn.Parameter, changes: Sequence[_Change], buffer: "_Buffer") -> list[float]:
    """As `_write`, without keeping the values; made at all only where they may not be finite."""
    product = _product(base, parameter, changes)
    if product is not None:
        return product.squares
    return _add_up(base, torch.empty_like(parameter, device=changes[0].device), changes, buffer)


@dataclass(frozen=True, slots=True)
class _Product:
    """The changes of one weight as one product `up` · `down`, in pieces that the CPU's cache holds."""

    up: Tensor
    down: Tensor
    squares: list[float]

    def pieces(self, into: Tensor) -> list[slice]:
        """Rows of the weight that are computed at once."""
        count, width = len(self.up), self.down.shape[1]
        rows = max(1, _PIECE // width) if into.device.type == "cpu" else count
        return [slice(row, row + rows) for row in range(0, count, rows)]

    def write(self, base: Tensor, into: Tensor, rows: slice, buffer: "_Buffer") -> None:
        """These rows of `into` become W + up · down."""
        piece = buffer.holding(base.flatten(1)[rows], into.device)
        into.flatten(1)[rows].copy_(piece.addmm_(self.up[rows], self.down))


def _product(base: Tensor, into: Tensor, changes: Sequence[_Change]) -> _Product | None:
    """None where a change is no product, or so large that each entry has to be looked at."""
    factors = [change.factors for change in changes]
    known = [each for each in factors if each is not None]
    if len(known) < len(factors) or not base.is_contiguous() or not into.is_contiguous():
        return None
    squares = [_square(*each) for each in known]
    if not all(square < _SUSPECT**2 for square in squares):
        return None
    up = torch.cat([up * strength for up, _, strength in known], dim=1)
    return _Product(up, torch.cat([down for _, down, _ in known]), squares)


def _add_up(base: Tensor, into: Tensor, changes: Sequence[_Change], buffer: "_Buffer") -> list[float]:
    """`into` becomes W + Σ s · Δ(W), one change after the other."""
    weight = buffer.holding(base, into.device)
    apart = len(changes) > 1 and any(change.factors is None for change in changes)
    total = weight.clone() if apart else weight
    squares = []
    for change in changes:
        squares.append(change.add_to(total, weight))
        # a bound on the largest entry spares reading every weight once more
        if not squares[-1] < _SUSPECT**2 and not torch.isfinite(total.to(into.dtype)).all():
            label = change.plan.adapter.label
            raise Incompatible(
                f"adapter `{label}` makes weights that are not finite numbers in {into.dtype}",
                code=Cause.ADAPTER_NOT_FINITE,
                hint="the file is damaged, or the scale far too large",
                adapter=label,
            )
    into.copy_(total)
    return squares


def _check_change(plan: Plan) -> None:
    if not plan.changes_bits and not plan.is_asked_for_nothing:
        label = plan.adapter.label
        idle = f" ({len(plan.idle)} more: {plan.idle[0].reason})" if plan.idle else ""
        raise Incompatible(
            f"adapter `{label}` changes nothing: {len(plan.matched)} modules match, no weight differs by a bit{idle}",
            code=Cause.ADAPTER_NO_CHANGE,
            hint="its values are zero or too small at this scale",
            adapter=label,
            matched=len(plan.matched),
        )


def _room(parameter: nn.Parameter, base: Tensor) -> Tensor:
    """Where the parameter's new values may go: its own memory, unless that is the mapped file's."""
    return torch.empty_like(parameter) if parameter.data_ptr() == base.data_ptr() else parameter.data


def _restore(components: Mapping[str, nn.Module], base: Base, places: Iterable[tuple[str, str]]) -> None:
    for component, name in places:
        parameter = components[component].get_parameter(name)
        if parameter.is_meta:  # its values are made when they are needed
            continue
        bits = base(component, name)
        same = (bits.dtype, bits.device, bits.stride()) == (parameter.dtype, parameter.device, parameter.stride())
        if same:
            parameter.data = bits
        else:
            parameter.data = _room(parameter, bits).copy_(bits)


class _Buffer:
    """One reused float32 allocation: fresh pages cost more than the arithmetic on them."""

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
    """A buffer that nobody else has, in a thread that computes no gradients (each thread says so for itself)."""
    buffer = buffers.get()
    try:
        with torch.no_grad():
            yield buffer
    finally:
        buffers.put(buffer)


@contextmanager
def _full_precision() -> Iterator[None]:
    """float32 products in float32, whatever the caller allows for rendering (TF32 would lose 13 bits)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
