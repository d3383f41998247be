"""The noise that a seed stands for, on any device: every number is drawn on the CPU, one generator per image.

`Rng.CPU` is torch's CPU generator; `Rng.NV` is what torch draws on an NVIDIA card, computed in integers and double
precision (Philox4x32-10, Salmon et al. 2011, with the Box-Muller transform; one counter per draw, one lane per element,
as torch's CUDA generator numbers them for tensors of up to a few hundred thousand elements).
"""

import math
from enum import StrEnum
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Rng(StrEnum):
    """Whose random number generator a seed is for."""

    CPU = "cpu"
    NV = "nv"


class Draws(Protocol):
    """A stream of Gaussian noise with unit variance."""

    def randn(self, shape: tuple[int, ...]) -> Tensor:
        """Draw the next numbers of the stream: a float32 tensor of this shape on the CPU."""
        ...


class TorchDraws:
    """Torch's CPU generator (Mersenne Twister). Numbers agree between machines to about 2e-6."""

    __slots__ = ("_generator",)

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def randn(self, shape: tuple[int, ...]) -> Tensor:
        """Draw from torch's CPU generator, see `Draws.randn`."""
        return torch.randn(shape, generator=self._generator, dtype=torch.float32)


class PhiloxDraws:
    """Torch's CUDA generator, emulated without a GPU."""

    __slots__ = ("_count", "_seed")

    def __init__(self, seed: int) -> None:
        self._seed = seed & (2**64 - 1)
        self._count = 0

    def randn(self, shape: tuple[int, ...]) -> Tensor:
        """Draw from the emulated CUDA generator, see `Draws.randn`."""
        length = math.prod(shape)
        zeros = np.zeros(length, np.uint32)
        counter = [zeros + np.uint32(self._count), zeros, np.arange(length, dtype=np.uint32), zeros]
        self._count += 1
        first, second = _philox(counter, self._seed)
        radius = np.sqrt(-2.0 * np.log(first * 2.0**-32 + 2.0**-33))
        angle = (second * 2.0**-32 + 2.0**-33) * (2.0 * np.pi)
        return torch.from_numpy((radius * np.sin(angle)).astype(np.float32).reshape(shape))


def draws(rng: Rng, seed: int) -> Draws:
    """Start a new stream of noise for this seed."""
    return TorchDraws(seed) if rng is Rng.CPU else PhiloxDraws(seed)


class PictureNoise:
    """All noise of one image, from one stream: first the initial latents, then the noise that steps add.

    `eta_seed_delta` (often 31337) moves the steps' noise to a stream of its own, with that number added to the seed.
    """

    __slots__ = ("_rng", "_seed", "_steps", "_stream")

    def __init__(self, seed: int, *, rng: Rng = Rng.CPU, eta_seed_delta: int = 0) -> None:
        self._seed = seed
        self._rng = rng
        self._stream = draws(rng, seed)
        self._steps = draws(rng, seed + eta_seed_delta) if eta_seed_delta else self._stream

    def start(self, shape: tuple[int, ...]) -> Tensor:
        """Draw the noise of the initial latents."""
        return self._stream.randn(shape)

    def next(self, shape: tuple[int, ...]) -> Tensor:
        """Draw the noise that the next step adds."""
        return self._steps.randn(shape)

    def brownian(
        self, shape: tuple[int, ...], low: float, high: float, *, falls_upwards: bool = False
    ) -> "BrownianPath":
        """A Brownian path over the noise levels low … high, determined by the seed alone."""
        return BrownianPath(self._seed, shape, low, high, rng=self._rng, falls_upwards=falls_upwards)


class BrownianPath:
    """Brownian motion over [low, high]; its values do not depend on which levels are queried, nor in which order.

    The noise of a step from a higher to a lower level is the path's increment in that direction, as in k-diffusion;
    `falls_upwards` negates it, as recipe rules 1 require.

    The path upwards equals torchsde's `BrownianTree(t0, w0, t1, entropy=seed)` (0.2.6), which SDE samplers elsewhere
    use: a dyadic tree whose nodes are split in the middle by a Brownian bridge, each with a seed spawned from `seed` by
    numpy's SeedSequence; times are rounded to six digits. torchsde itself is not needed.
    """

    __slots__ = ("_cache", "_falls_upwards", "_high", "_low", "_rng", "_seed", "_shape", "_whole")

    def __init__(
        self, seed: int, shape: tuple[int, ...], low: float, high: float, *, rng: Rng, falls_upwards: bool = False
    ) -> None:
        self._falls_upwards = falls_upwards
        self._seed, self._shape, self._rng = seed, shape, rng
        low, high = float(np.float32(low)), float(np.float32(high))
        self._low, self._high = round(low, _DIGITS), round(high, _DIGITS)
        # the length of the whole interval is computed before rounding
        self._whole = self._draw(np.random.SeedSequence(seed, pool_size=_POOL)) * math.sqrt(high - low)
        self._cache: dict[tuple[int, int], Tensor] = {}

    def noise(self, here: float, after: float) -> Tensor:
        """The path's increment from one noise level to the next, scaled to unit variance."""
        # k-diffusion passes levels in single precision, which may change the sixth digit, to which the tree rounds
        low, high = (float(np.float32(level)) for level in sorted((here, after)))
        a, b = (min(max(round(value, _DIGITS), self._low), self._high) for value in (low, high))
        increment = self._between(a, b, self._low, self._high, key=0, depth=0, whole=self._whole)
        unit = increment / math.sqrt(high - low)
        return unit if self._falls_upwards or here < after else -unit

    def _between(self, a: float, b: float, start: float, end: float, *, key: int, depth: int, whole: Tensor) -> Tensor:
        """The increment over [a, b] inside the node [start, end], whose own increment is `whole`."""
        if a >= b:
            return torch.zeros(self._shape)
        if a == start and b == end:
            return whole
        middle = round(0.5 * (end + start), _DIGITS)
        left = self._left(start, middle, end, key=key, depth=depth, whole=whole)
        result = None
        if a < middle:
            result = self._between(a, min(b, middle), start, middle, key=2 * key, depth=depth + 1, whole=left)
        if b > middle:
            more = self._between(max(a, middle), b, middle, end, key=2 * key + 1, depth=depth + 1, whole=whole - left)
            result = more if result is None else result + more
        return torch.zeros(self._shape) if result is None else result

    def _left(self, start: float, middle: float, end: float, *, key: int, depth: int, whole: Tensor) -> Tensor:
        if (found := self._cache.get((key, depth))) is not None:
            return found
        seeds = np.random.SeedSequence(self._seed, spawn_key=(key, depth), pool_size=_POOL)
        reciprocal = 1 / (end - start)
        mean = (middle - start) * whole * reciprocal
        spread = math.sqrt((middle - start) * (end - middle) * reciprocal)
        left = mean + spread * self._draw(seeds)
        # every step passes the nodes near the root, so they are cached; deeper ones are cheaper to draw again than to
        # keep
        if depth <= _CACHED_DEPTH:
            self._cache[key, depth] = left
        return left

    def _draw(self, seeds: np.random.SeedSequence) -> Tensor:
        return draws(self._rng, int(seeds.generate_state(1)[0])).randn(self._shape)


_DIGITS, _POOL, _CACHED_DEPTH = 6, 24, 9


def _philox(counter: list[np.ndarray], key: int) -> tuple[np.ndarray, np.ndarray]:
    """The first two words of each counter's Philox block, in double precision."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        even = c0.astype(np.uint64) * np.uint64(0xD2511F53)
        odd = c2.astype(np.uint64) * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (odd >> np.uint64(32)).astype(np.uint32) ^ c1 ^ np.uint32(k0),
            (odd & low).astype(np.uint32),
            (even >> np.uint64(32)).astype(np.uint32) ^ c3 ^ np.uint32(k1),
            (even & low).astype(np.uint32),
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0.astype(np.float64), c1.astype(np.float64)
