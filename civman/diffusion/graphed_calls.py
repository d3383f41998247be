"""Records the work that a network starts on a GPU, and replays it as a whole in later calls (CUDA graphs).

With a small network, the GPU waits for the CPU, which launches hundreds of operations one by one. A graph launches the
same kernels on the same numbers, so no bit should change. This is verified: the first result of each graph is compared
with that of an ordinary call, and if a single bit differs, no graphs are used from then on.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as trees

Run = Callable[[], Any]
_WARM_UPS = 2
"""The number of calls before a graph is recorded, during which libraries choose kernels and allocate memory."""


class Recorder(Protocol):
    """Records the operations that a function starts on a device, so that they can be repeated."""

    def record(self, run: Run) -> tuple[Any, Callable[[], None]]:
        """Call `run`. Returns its results, and a function that computes them again in the same memory."""
        ...


class CudaRecorder:
    """Records CUDA graphs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def record(self, run: Run) -> tuple[Any, Callable[[], None]]:
        """Call `run` while recording a CUDA graph. Returns its results, and a function that replays the graph."""
        aside: Any = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                run()
        torch.cuda.current_stream(self._device).wait_stream(aside)
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = run()
        return results, graph.replay


class _Graph:
    """One recorded call of the network: the tensors that it reads, and its results."""

    def __init__(self, recorder: Recorder, forward: Callable[..., Any], flat: list[Any], shape: Any) -> None:
        self._inputs = [each.clone() if isinstance(each, Tensor) else each for each in flat]
        given, named = trees.tree_unflatten(self._inputs, shape)
        self._results, self._replay = recorder.record(lambda: forward(*given, **named))

    def run(self, flat: list[Any]) -> Any:
        """Compute the results for other inputs of the same shapes."""
        for kept, new in zip(self._inputs, flat, strict=True):
            if isinstance(kept, Tensor):
                kept.copy_(new)
        self._replay()
        return trees.tree_map(lambda each: each.clone() if isinstance(each, Tensor) else each, self._results)


class GraphedCalls:
    """Replaces a network's calls with recorded ones, with one graph for each combination of input shapes."""

    def __init__(self, network: nn.Module, recorder: Recorder, on_refusal: Callable[[str], None]) -> None:
        """Replace the network's `forward`; `on_refusal` is called once, with the reason, if graphs cannot be used."""
        self._network, self._recorder, self._on_refusal = network, recorder, on_refusal
        self._forward = network.forward
        self._graphs: dict[Any, _Graph] = {}
        self._places: tuple[int, ...] = ()
        self._changed = {module for module in network.modules() if "forward" in vars(module)}
        self.is_on = True
        self.recorded = 0
        vars(network)["forward"] = self

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Call the network; if there is a graph for these shapes, replay it instead."""
        if not self.is_on or self._is_changed():
            return self._forward(*given, **named)
        flat, shape = trees.tree_flatten((given, named))
        key = (shape, *(_kind(each) for each in flat))
        places = tuple(parameter.data_ptr() for parameter in self._network.parameters())
        # drop all graphs if weights have moved in memory since they were recorded, for example when adapters were
        # merged
        if places != self._places:
            self._graphs.clear()
            self._places = places
        if (graph := self._graphs.get(key)) is not None:
            return graph.run(flat)
        expected = self._forward(*given, **named)
        try:
            graph = _Graph(self._recorder, self._forward, flat, shape)
            is_same = _equal(graph.run(flat), expected)
        except RuntimeError as error:
            self._refuse(str(error).splitlines()[0])
            return expected
        if is_same:
            self._graphs[key] = graph
            self.recorded += 1
        else:
            self._refuse("the result of a replayed graph differs from that of an ordinary call")
        return expected

    def _is_changed(self) -> bool:
        """Whether hooks or replaced methods change the network temporarily, so that this call must not be recorded."""
        return any(
            module._forward_pre_hooks or module._forward_hooks  # noqa: SLF001  # torch's
            or ("forward" in vars(module) and module not in self._changed)
            for module in self._network.modules() if module is not self._network
        )  # fmt: skip

    def _refuse(self, why: str) -> None:
        self.is_on = False
        self._graphs.clear()
        self._on_refusal(why)


def _kind(value: Any) -> Any:
    return (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else value


def _equal(one: Any, other: Any) -> bool:
    """Whether two results consist of the same tensors, bit for bit."""
    pairs = zip(trees.tree_leaves(one), trees.tree_leaves(other), strict=True)
    return all(torch.equal(first, second) for first, second in pairs if isinstance(first, Tensor))
