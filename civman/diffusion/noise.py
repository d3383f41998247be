"""The noise of a seed, the same on any device: every number is drawn on the CPU, with one generator per image.

`Rng.CPU` is torch's CPU generator. `Rng.NV` gives what torch draws on an NVIDIA card, computed in integers and double
precision (Philox4x32-10, Salmon et al. 2011, with the Box-Muller transform). In a large tensor, the order of the
numbers depends on how many threads the card runs: `nv:43008` is a card with 43008 threads, `nv` a card with at least as
many threads as the tensor has values. An image's noise may also be a mixture of two seeds' noise, or be drawn for
another size (`Variation`).
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from civman.domain.recipes.recipe import Recipe


class Rng(StrEnum):
    """The random number generator that turns a seed into noise.

    Recipes may also specify `nv:THREADS`, an NVIDIA card with this number of threads, which is not a member of this
    class.
    """

    CPU = "cpu"
    NV = "nv"


class Draws(Protocol):
    """A stream of Gaussian noise with unit variance."""

    def randn(self, shape: tuple[int, ...]) -> Tensor:
        """Draw the next numbers of the stream: a float32 tensor of this shape on the CPU."""
        ...


class TorchDraws:
    """Torch's CPU generator (Mersenne Twister). The numbers are equal on all machines to within about 2e-6."""

    __slots__ = ("_generator",)

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def randn(self, shape: tuple[int, ...]) -> Tensor:
        """Draw the next numbers with torch's CPU generator: a float32 tensor of this shape."""
        return torch.randn(shape, generator=self._generator, dtype=torch.float32)


class PhiloxDraws:
    """Torch's CUDA generator, emulated without a GPU."""

    __slots__ = ("_count", "_seed", "_threads")

    def __init__(self, seed: int, threads: int | None = None) -> None:
        """Start the stream of a seed.

        `threads`: the number of threads that the card runs at the same time; None means one for each value.
        """
        self._seed = seed & (2**64 - 1)
        self._count = 0
        self._threads = threads

    def randn(self, shape: tuple[int, ...]) -> Tensor:
        """Draw the next numbers from the emulated CUDA generator: a float32 tensor of this shape on the CPU.

        Each thread draws blocks of four numbers: value `i + threads · k` is number `k` of thread `i`'s block. If a
        tensor needs more than four numbers from each thread, the threads continue with their next blocks.

        Source: PyTorch, aten/src/ATen/native/cuda/DistributionTemplates.h.
        """
        length = math.prod(shape)
        if self._threads is None or length <= self._threads:
            drawn = _normals(self._block(length), is_first_only=True)[0]
            self._count += 1
            return torch.from_numpy(drawn.astype(np.float32).reshape(shape))
        found = []
        for _ in range(-(-length // (4 * self._threads))):
            found += _normals(self._block(self._threads))
            self._count += 1
        return torch.from_numpy(np.concatenate(found)[:length].astype(np.float32).reshape(shape))

    def _block(self, threads: int) -> list[np.ndarray]:
        """Return the four random words of each thread's next block."""
        zeros = np.zeros(threads, np.uint32)
        counter = [zeros + np.uint32(self._count), zeros, np.arange(threads, dtype=np.uint32), zeros]
        return _philox(counter, self._seed)


class SlicedDraws:
    """One image's slice of the noise that ComfyUI draws for a whole batch at once."""

    __slots__ = ("_count", "_index", "_whole")

    def __init__(self, whole: Draws, index: int, count: int) -> None:
        """Start a stream for image `index` (counted from 0) of a batch of `count` images."""
        self._whole, self._index, self._count = whole, index, count

    def randn(self, shape: tuple[int, ...]) -> Tensor:
        """Draw the next numbers for the whole batch, and return those of this image."""
        return self._whole.randn((self._count, *shape))[self._index]


class UnfoldedDraws:
    """Noise for latents that is drawn in folded form: each 2×2 square is one position with four times the channels."""

    __slots__ = ("_folded",)

    def __init__(self, folded: Draws) -> None:
        self._folded = folded

    def randn(self, shape: tuple[int, ...]) -> Tensor:
        """Draw the next numbers for the folded latents, and return them unfolded, in the given shape."""
        *first, channels, height, width = shape
        drawn = self._folded.randn((*first, 4 * channels, height // 2, width // 2))
        squares = drawn.reshape(*first, channels, 2, 2, height // 2, width // 2)
        return squares.movedim((-4, -3), (-3, -1)).reshape(shape)


def draws(rng: str, seed: int, part: str = "", *, is_folded: bool = False) -> Draws:
    """Start the noise stream of this seed.

    `part`: the slice of each draw that is used, as in `Recipe.noise_slice`. `is_folded`: draw noise for folded latents,
    see `UnfoldedDraws`.
    """
    if is_folded:
        return UnfoldedDraws(draws(rng, seed, part))
    if part:
        index, _, count = part.partition("/")
        return SlicedDraws(draws(rng, seed), int(index) - 1, int(count))
    if rng == Rng.CPU:
        return TorchDraws(seed)
    threads = rng.partition(":")[2]
    return PhiloxDraws(seed, int(threads) if threads else None)


@dataclass(frozen=True, slots=True)
class Variation:
    """How an image's initial noise differs from the noise of its seed alone.

    `strength`: how much of the noise comes from the second seed, from 0 (nothing) to 1 (all). `drawn_for`: the height
    and width (in latent pixels) of the noise of another image size, which is pasted into the centre of this image's
    noise; None: no noise is pasted.
    """

    seed: int = 0
    strength: float = 0.0
    drawn_for: tuple[int, int] | None = None


class PictureNoise:
    """All noise of one image, from one stream: first the noise of the initial latents, then the noise of the steps.

    If `eta_seed_delta` (often 31337) is not 0, the steps' noise comes from a second stream with the seed `seed +
    eta_seed_delta`. `step_rng` names another random generator for the steps. For `part` and `is_folded`, see `draws`.
    """

    __slots__ = ("_is_folded", "_part", "_rng", "_seed", "_step_rng", "_steps", "_stream", "_variation")

    def __init__(
        self, seed: int, *, rng: str = Rng.CPU, eta_seed_delta: int = 0, variation: Variation | None = None,
        step_rng: str = "", part: str = "", is_folded: bool = False,
    ) -> None:  # fmt: skip
        self._variation = variation
        self._is_folded = is_folded
        self._seed = seed
        self._rng = rng
        self._step_rng, self._part = step_rng or rng, part
        self._stream = self._draws(rng, seed)
        own = bool(step_rng or eta_seed_delta)
        self._steps = self._draws(self._step_rng, seed + eta_seed_delta) if own else self._stream

    @classmethod
    def of_recipe(cls, recipe: Recipe, seed: int, *, is_folded: bool = False) -> Self:
        """Create the noise of a recipe's image; `seed` is the image's seed."""
        height, width = recipe.seed_resize_height // 8, recipe.seed_resize_width // 8
        if is_folded:
            height, width = height // 2 * 2, width // 2 * 2
        variation = Variation(recipe.variation_seed, recipe.variation_strength, (height, width) if height else None)
        return cls(
            seed, rng=recipe.rng, eta_seed_delta=recipe.eta_seed_delta, variation=variation, step_rng=recipe.step_rng,
            part=recipe.noise_slice, is_folded=is_folded,
        )  # fmt: skip

    def _draws(self, rng: str, seed: int) -> Draws:
        return draws(rng, seed, self._part, is_folded=self._is_folded)

    def start(self, shape: tuple[int, ...]) -> Tensor:
        """Draw the noise for the initial latents, (channels, height, width)."""
        varied = self._variation or Variation()
        drawn_for = (shape[0], *varied.drawn_for) if varied.drawn_for else shape
        whole = self._stream.randn(shape)
        noise = whole if drawn_for == shape else self._draws(self._rng, self._seed).randn(drawn_for)
        if varied.strength:
            noise = _between(noise, self._draws(self._rng, varied.seed).randn(drawn_for), varied.strength)
        return noise if drawn_for == shape else _pasted(noise, whole)

    def next(self, shape: tuple[int, ...]) -> Tensor:
        """Draw the noise for the next step."""
        return self._steps.randn(shape)

    def brownian(
        self, shape: tuple[int, ...], low: float, high: float, *, falls_upwards: bool = False
    ) -> "BrownianPath":
        """Create a Brownian path over the noise levels from `low` to `high`; the path depends on the seed alone."""
        return BrownianPath(
            self._seed,
            shape,
            low,
            high,
            rng=self._step_rng,
            falls_upwards=falls_upwards,
            part=self._part,
            is_folded=self._is_folded,
        )


class BrownianPath:
    """Brownian motion over [low, high]; its values do not depend on which levels are queried, or in which order.

    The noise of a step from a higher to a lower level is the path's increment in that direction, as in k-diffusion;
    `falls_upwards` negates the increment, as version 1 of the recipe rules requires.

    The upward path equals torchsde's `BrownianTree(t0, w0, t1, entropy=seed)` (0.2.6), which other programs' SDE
    samplers use: a dyadic tree whose nodes are split in the middle by a Brownian bridge, each with a seed spawned from
    `seed` by numpy's SeedSequence; times are rounded to six digits. torchsde itself is not needed.
    """

    __slots__ = (
        "_cache", "_deep", "_falls_upwards", "_high", "_is_folded", "_low", "_part", "_passed", "_rng", "_seed",
        "_shape", "_whole",
    )  # fmt: skip

    def __init__(
        self, seed: int, shape: tuple[int, ...], low: float, high: float, *, rng: str, falls_upwards: bool = False,
        part: str = "", is_folded: bool = False,
    ) -> None:  # fmt: skip
        self._falls_upwards, self._part, self._is_folded = falls_upwards, part, is_folded
        self._seed, self._shape, self._rng = seed, shape, rng
        low, high = float(np.float32(low)), float(np.float32(high))
        self._low, self._high = round(low, _DIGITS), round(high, _DIGITS)
        # scale by the exact length of the interval, because its ends in `_low` and `_high` are rounded to six digits
        self._whole = self._draw(np.random.SeedSequence(seed, pool_size=_POOL)) * math.sqrt(high - low)
        self._cache: dict[tuple[int, int], Tensor] = {}
        self._deep: dict[tuple[int, int], Tensor] = {}
        self._passed: dict[tuple[int, int], Tensor] = {}

    def noise(self, here: float, after: float) -> Tensor:
        """Return the path's increment from one noise level to the next, scaled to unit variance."""
        # convert to single precision, as k-diffusion does, because this may change the sixth digit, and the tree rounds
        # to six digits
        low, high = (float(np.float32(level)) for level in sorted((here, after)))
        a, b = (min(max(round(value, _DIGITS), self._low), self._high) for value in (low, high))
        # keep the tree nodes visited in the previous step: this step begins at the noise level where the previous one
        # ended, so finding that level visits the same nodes again
        self._deep, self._passed = self._passed, {}
        increment = self._between(a, b, self._low, self._high, key=0, depth=0, whole=self._whole)
        unit = increment / math.sqrt(high - low)
        return unit if self._falls_upwards or here < after else -unit

    def _between(self, a: float, b: float, start: float, end: float, *, key: int, depth: int, whole: Tensor) -> Tensor:
        """Compute the increment over [a, b] inside the tree node [start, end], whose total increment is `whole`."""
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
        if (found := self._deep.get((key, depth))) is not None:
            self._passed[key, depth] = found
            return found
        seeds = np.random.SeedSequence(self._seed, spawn_key=(key, depth), pool_size=_POOL)
        reciprocal = 1 / (end - start)
        mean = (middle - start) * whole * reciprocal
        spread = math.sqrt((middle - start) * (end - middle) * reciprocal)
        left = mean + spread * self._draw(seeds)
        # every step passes through the nodes near the root, so they are kept for good; deeper nodes are kept only
        # until the next step
        (self._cache if depth <= _CACHED_DEPTH else self._passed)[key, depth] = left
        return left

    def _draw(self, seeds: np.random.SeedSequence) -> Tensor:
        seed = int(seeds.generate_state(1)[0])
        return draws(self._rng, seed, self._part, is_folded=self._is_folded).randn(self._shape)


_DIGITS, _POOL, _CACHED_DEPTH = 6, 24, 9


def _between(noise: Tensor, other: Tensor, share: float) -> Tensor:
    """Interpolate two noise tensors (channels, height, width) spherically, column by column in each channel.

    Source: A1111, which measures the angle between columns, not between whole tensors.
    """
    dot = (noise / noise.norm(dim=1, keepdim=True) * (other / other.norm(dim=1, keepdim=True))).sum(1)
    if dot.mean() > _NEARLY_PARALLEL:
        return noise * share + other * (1 - share)
    angle = torch.acos(dot)
    mine, theirs = (torch.sin(part * angle) / torch.sin(angle) for part in (1.0 - share, share))
    return mine.unsqueeze(1) * noise + theirs.unsqueeze(1) * other


_NEARLY_PARALLEL = 0.9995


def _pasted(noise: Tensor, whole: Tensor) -> Tensor:
    """Paste `noise` into the centre of `whole`; if `noise` is larger, its edges are cut off."""
    result = whole.clone()
    cut = []
    for small, large in zip(noise.shape[1:], whole.shape[1:], strict=True):
        at = (large - small) // 2
        length = small if at >= 0 else small + 2 * at
        cut.append((slice(max(at, 0), max(at, 0) + length), slice(max(-at, 0), max(-at, 0) + length)))
    (rows, from_rows), (columns, from_columns) = cut
    result[:, rows, columns] = noise[:, from_rows, from_columns]
    return result


def _normals(words: list[np.ndarray], *, is_first_only: bool = False) -> list[np.ndarray]:
    """Convert each block's four random words to normally distributed numbers: all, or only the first.

    Computes the Box-Muller transform in double precision.
    """
    found = []
    for first, second in ((words[0], words[1]), (words[2], words[3])):
        radius = np.sqrt(-2.0 * np.log(first * 2.0**-32 + 2.0**-33))
        angle = (second * 2.0**-32 + 2.0**-33) * (2.0 * np.pi)
        found.append(radius * np.sin(angle))
        if is_first_only:
            break
        found.append(radius * np.cos(angle))
    return found


def _philox(counter: list[np.ndarray], key: int) -> list[np.ndarray]:
    """Compute the four random words of each counter's Philox block, returned as float64."""
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
    return [word.astype(np.float64) for word in (c0, c1, c2, c3)]
