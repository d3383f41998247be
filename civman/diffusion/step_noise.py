"""The noise that steps add, drawn on the CPU while the device computes.

The noise that a sampler needs is known before its first step. For a GPU, a thread draws it on the CPU while the GPU
computes, so that it is ready when a step needs it. If the CPU itself computes the image, this would gain nothing, so
noise is drawn when it is needed. In both cases, the same noise is drawn in the same order, so the bits are the same.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from civman.diffusion.uploads import sent

Draw = Callable[[float, float], Tensor]
"""A function that draws the noise for the step between two levels on the CPU, (B, 4, h, w) float32; it must be called
in the order of the steps.
"""
_AHEAD = 16
"""The maximum number of draws that are in progress or finished but not yet used."""


@contextmanager
def step_noise(draw: Draw, wanted: Sequence[tuple[float, float]] | None, device: torch.device) -> Iterator[Draw]:
    """Yield a function that returns the noise of the next step on `device`.

    `wanted`: the pairs of levels in the order in which the sampler will request their noise; None if they are not
    known.
    """
    if device.type == "cpu" or not wanted:
        yield lambda here, after: sent(draw(here, after), device)
        return
    ahead = DrawnAhead(draw, wanted)
    try:
        yield lambda here, after: sent(ahead(here, after), device)
    finally:
        ahead.close()


class DrawnAhead:
    """Calls `draw` in a separate thread for each pair of levels in `wanted`, in order, a few pairs ahead."""

    def __init__(self, draw: Draw, wanted: Sequence[tuple[float, float]]) -> None:
        self._draw = draw
        self._wanted = deque(wanted)
        self._pool = ThreadPoolExecutor(1, "civman noise")
        self._coming: deque[tuple[tuple[float, float], Future[Tensor]]] = deque()
        for _ in range(_AHEAD):
            self._submit()

    def __call__(self, here: float, after: float) -> Tensor:
        """Return the noise for this pair of levels. Raises: RuntimeError: this is not the next pair in `wanted`."""
        if not self._coming or self._coming[0][0] != (here, after):
            raise RuntimeError(f"the sampler asked for the noise from {here} to {after} out of order")
        _, drawn = self._coming.popleft()
        self._submit()
        return drawn.result()

    def close(self) -> None:
        """Stop the thread that draws ahead."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self) -> None:
        if self._wanted:
            pair = self._wanted.popleft()
            self._coming.append((pair, self._pool.submit(self._draw, *pair)))
