"""Checks that reject invalid images, and the conversion of torch's out-of-memory errors to CannotRender."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from civman.errors import CannotRender, Cause

_OUT_OF_MEMORY = (
    "can't allocate memory", "not enough memory: you tried to allocate", "MPS backend out of memory",
    "Invalid buffer size", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED",
)  # fmt: skip


def check_pixels(pixels: Tensor, *, seed: int) -> None:
    """Reject an image that is invalid or has no content. `pixels` is (3, H, W) between 0 and 1.

    Raises: CannotRender: `not-a-number`, `black-picture` or `flat-picture`.
    """
    if not bool(torch.isfinite(pixels).all()):
        raise CannotRender(
            f"seed {seed}: the image has values that are not numbers (NaN)",
            hint="render with --precision float32, or use another VAE", code=Cause.NOT_A_NUMBER, seed=seed,
        )  # fmt: skip
    shown = (pixels * 255).round()
    low, high = shown.amin(dim=(1, 2)), shown.amax(dim=(1, 2))
    if float(high.max()) == 0:
        raise CannotRender(
            f"seed {seed}: the image is all black",
            hint="render with --precision float32, or use another VAE", code=Cause.BLACK_PICTURE, seed=seed,
        )  # fmt: skip
    if float((high - low).max()) <= 1:
        raise CannotRender(
            f"seed {seed}: the image is a single flat colour",
            hint="the checkpoint may predict v although epsilon was assumed (try --prediction v_prediction), or "
            "the CFG scale is far too high",
            code=Cause.FLAT_PICTURE,
            seed=seed,
        )


def check_latents(latents: Tensor, *, seeds: list[int]) -> None:
    """Reject latents that are not finite.

    Raises: CannotRender: `not-a-number`; `facts["seed"]` is the first such seed.
    """
    for seed, one in zip(seeds, latents, strict=True):
        if not bool(torch.isfinite(one).all()):
            raise CannotRender(
                f"seed {seed}: the model's output is not a number (NaN)",
                hint="render with --precision bfloat16 or float32", code=Cause.NOT_A_NUMBER, seed=seed,
            )  # fmt: skip


NOISE_SPREAD = 12.0
"""Final latents with at least this standard deviation are still noise.

Sampling starts at 14.6 and ends near 1. Measured: trained models end between 0.7 and 5.5 with 8 or more steps of any
sampler, random weights between 16.8 and 41.7.
"""
NOISE_LIKENESS = 0.4
"""Latents whose neighbours correlate more strongly than this are an image, whatever their standard deviation.

Random weights reach 0.3.
"""
_NOISE_MIN_SIDE = 32
_NOISE_MIN_STEPS = 10


def noise_words(latents: Tensor, *, steps: int) -> str:
    """Return a message if these final latents (C, H, W) of a txt2img render are still noise, or else "".

    Reports noise only if it is certain: below 10 steps or 256 pixels, the statistics of samplers vary too much.
    """
    if steps < _NOISE_MIN_STEPS or min(latents.shape[-2:]) < _NOISE_MIN_SIDE:
        return ""
    one = latents.detach().float()
    one = one - one.mean((-2, -1), keepdim=True)
    power = one.square().mean((-2, -1)).clamp_min(1e-12)
    across = (one[..., :, 1:] * one[..., :, :-1]).mean((-2, -1)) / power
    down = (one[..., 1:, :] * one[..., :-1, :]).mean((-2, -1)) / power
    spread, likeness = float(power.mean().sqrt()), float((across.mean() + down.mean()) / 2)
    if spread < NOISE_SPREAD or likeness > NOISE_LIKENESS:
        return ""
    return "the image is noise: the model did not remove the initial noise"


def refuse_noise(latents: Tensor, *, seeds: list[int], steps: int) -> None:
    """Reject latents that are still noise.

    Raises: CannotRender: `no-structure`; `facts["seed"]` is the first such seed.
    """
    for seed, one in zip(seeds, latents, strict=True):
        if words := noise_words(one, steps=steps):
            raise CannotRender(
                f"seed {seed}: {words}",
                hint="the checkpoint's UNet is damaged, untrained or of a different kind than it seems; --force "
                "saves the "
                "image anyway",
                code=Cause.NO_STRUCTURE,
                seed=seed,
            )


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Convert an out-of-memory error inside the block to CannotRender (`out-of-memory`) with a hint on what to do."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(what) from error
    except RuntimeError as error:
        # torch has no exception class for exhausted host memory or for errors of the libraries it calls, so the message
        # decides
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
