"""Rejects invalid images, and converts torch's out-of-memory errors to CannotRender."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from civman.errors import CannotRender, Cause

_OUT_OF_MEMORY = (
    "can't allocate memory", "not enough memory: you tried to allocate", "MPS backend out of memory",
    "Invalid buffer size", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED",
)  # fmt: skip


class Checks:
    """Checks that run while an image is computed.

    On a CPU, a check runs at once. With `waits`, as for a GPU, the values to check stay on the device until the pixels
    are read: reading them earlier would make the CPU wait for all earlier work, and then the GPU wait for the CPU.
    """

    def __init__(self, *, waits: bool) -> None:
        self._waits = waits
        self._waiting: list[tuple[Tensor, Judge]] = []

    def add(self, values: Tensor, judge: "Judge") -> None:
        """Call `judge` with a small tensor's values: now, or when the pixels are read. Raises: what `judge` raises."""
        if self._waits:
            self._waiting.append((values.flatten().float(), judge))
        else:
            judge(values.flatten().tolist())

    def read_with(self, pixels: Tensor) -> NDArray[np.uint8]:
        """Read uint8 `pixels` and the values of all pending checks from the device in one copy, and run the checks.

        Raises: what a check raises.
        """
        if not self._waiting:
            return np.ascontiguousarray(pixels.to("cpu").numpy())
        waiting, self._waiting = self._waiting, []
        numbers = torch.cat([values for values, _ in waiting])
        joined = torch.cat([numbers.view(torch.uint8), pixels.flatten()]).to("cpu").numpy()
        found = joined[: numbers.numel() * 4].view(np.float32).tolist()
        for values, judge in waiting:
            judge(found[: values.numel()])
            del found[: values.numel()]
        return np.ascontiguousarray(joined[numbers.numel() * 4 :].reshape(pixels.shape))

    def settle(self, device: torch.device) -> None:
        """Run the pending checks. Raises: what a check raises."""
        if self._waiting:
            self.read_with(torch.empty(0, dtype=torch.uint8, device=device))


Judge = Callable[[list[float]], None]
"""A function that checks the values of a small tensor, given as a flat list. Raises: CannotRender."""


def check_pixels(checks: Checks, pixels: Tensor, *, seeds: Sequence[int]) -> None:
    """Reject images that are invalid or have no content; `pixels` is (B, 3, H, W) between 0 and 1.

    Raises: CannotRender: `not-a-number`, `black-picture` or `flat-picture`; `facts["seed"]` is the seed of the first
    rejected image.
    """
    shown = (pixels * 255).round()
    high, low = shown.amax(dim=(2, 3)), shown.amin(dim=(2, 3))
    numbers = [torch.isfinite(pixels).flatten(1).all(dim=1).float(), high.amax(dim=1), (high - low).amax(dim=1)]
    checks.add(torch.stack(numbers, dim=1), lambda found: _judge_pixels(found, seeds))


def _judge_pixels(found: list[float], seeds: Sequence[int]) -> None:
    for seed, is_finite, brightest, spread in zip(seeds, found[::3], found[1::3], found[2::3], strict=True):
        if not is_finite:
            raise CannotRender(
                f"seed {seed}: the image has values that are not numbers (NaN)",
                hint="render with --precision float32, or use another VAE", code=Cause.NOT_A_NUMBER, seed=seed,
            )  # fmt: skip
        if brightest == 0:
            raise CannotRender(
                f"seed {seed}: the image is all black",
                hint="render with --precision float32, or use another VAE", code=Cause.BLACK_PICTURE, seed=seed,
            )  # fmt: skip
        if spread <= 1:
            raise CannotRender(
                f"seed {seed}: the image is a single flat colour",
                hint="the checkpoint may predict v although epsilon was assumed (try --prediction v_prediction), or "
                "the CFG scale is far too high",
                code=Cause.FLAT_PICTURE,
                seed=seed,
            )


def check_latents(checks: Checks, latents: Tensor, *, seeds: Sequence[int]) -> None:
    """Reject latents (B, C, H, W) that are not finite.

    Raises: CannotRender: `not-a-number`; `facts["seed"]` is the seed of the first rejected image.
    """

    def judge(found: list[float]) -> None:
        for seed, is_finite in zip(seeds, found, strict=True):
            if not is_finite:
                raise CannotRender(
                    f"seed {seed}: the model's output is not a number (NaN)",
                    hint="render with --precision bfloat16 or float32", code=Cause.NOT_A_NUMBER, seed=seed,
                )  # fmt: skip

    checks.add(torch.isfinite(latents).flatten(1).all(dim=1), judge)


NOISE_SPREAD = 12.0
"""Final latents with at least this standard deviation are noise, unless their neighbouring values correlate.

The standard deviation starts at 14.6 and ends near 1. Measured: with 8 or more steps of any sampler, trained models end
between 0.7 and 5.5, and random weights between 16.8 and 41.7.
"""
NOISE_LIKENESS = 0.4
"""Final latents whose neighbouring values have a higher correlation than this are an image, not noise.

This holds whatever their standard deviation is. Latents from random weights reach a correlation of 0.3.
"""
_NOISE_MIN_SIDE = 32
_NOISE_MIN_STEPS = 10


def find_noise(checks: Checks, latents: Tensor, *, steps: int, tell: Callable[[int, str], None]) -> None:
    """Find final latents (B, C, H, W) of a txt2img render that are still noise.

    Calls `tell` with the index and a message for each image that is noise. Renders with fewer than 10 steps or 256
    pixels are not checked, because their statistics vary too much.
    """
    if steps < _NOISE_MIN_STEPS or min(latents.shape[-2:]) < _NOISE_MIN_SIDE:
        return
    numbers = [torch.stack(_noise_statistics(one)) for one in latents]

    def judge(found: list[float]) -> None:
        for place, (spread, likeness) in enumerate(zip(found[::2], found[1::2], strict=True)):
            if spread >= NOISE_SPREAD and likeness <= NOISE_LIKENESS:
                tell(place, "the image is noise: the model did not remove the initial noise")

    checks.add(torch.stack(numbers), judge)


def _noise_statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Return the standard deviation of latents (C, H, W), and the correlation of neighbouring values."""
    one = latents.detach().float()
    one = one - one.mean((-2, -1), keepdim=True)
    power = one.square().mean((-2, -1)).clamp_min(1e-12)
    across = (one[..., :, 1:] * one[..., :, :-1]).mean((-2, -1)) / power
    down = (one[..., 1:, :] * one[..., :-1, :]).mean((-2, -1)) / power
    return power.mean().sqrt(), (across.mean() + down.mean()) / 2


def refuse_noise(checks: Checks, latents: Tensor, *, seeds: Sequence[int], steps: int) -> None:
    """Reject latents (B, C, H, W) that are still noise.

    Raises: CannotRender: `no-structure`; `facts["seed"]` is the seed of the first rejected image.
    """

    def refuse(place: int, words: str) -> None:
        raise CannotRender(
            f"seed {seeds[place]}: {words}",
            hint="the checkpoint's UNet is damaged, untrained or of a different kind than it seems; --force "
            "saves the image anyway",
            code=Cause.NO_STRUCTURE,
            seed=seeds[place],
        )

    find_noise(checks, latents, steps=steps, tell=refuse)


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Convert an out-of-memory error inside the block to CannotRender (`out-of-memory`) with a hint on what to do."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(what) from error
    except RuntimeError as error:
        # torch has no exception class for exhausted host memory or for out-of-memory errors of libraries, so look at
        # the message
        if not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
        raise _out_of_memory(what) from error


def _out_of_memory(what: str) -> CannotRender:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return CannotRender(
        f"not enough memory while {what}",
        hint="use a smaller image (--size) or batch (--batch-size); --low-vram needs less memory",
        code=Cause.OUT_OF_MEMORY,
        stage=what,
    )  # fmt: skip
