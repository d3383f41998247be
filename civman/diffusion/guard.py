"""What may not pass for a picture, and torch's failures as ours."""

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
    """Refuses what is no picture: `pixels` is (3, H, W) between 0 and 1.

    Raises: CannotRender: `not-a-number`, `black-picture` or `flat-picture`.
    """
    if not bool(torch.isfinite(pixels).all()):
        raise CannotRender(
            f"seed {seed}: the picture has values that are no numbers",
            hint="render in another precision (`float32`), or use another VAE", code=Cause.NOT_A_NUMBER, seed=seed,
        )  # fmt: skip
    shown = (pixels * 255).round()
    low, high = shown.amin(dim=(1, 2)), shown.amax(dim=(1, 2))
    if float(high.max()) == 0:
        raise CannotRender(
            f"seed {seed}: the picture is all black",
            hint="render in another precision (`float32`), or use another VAE", code=Cause.BLACK_PICTURE, seed=seed,
        )  # fmt: skip
    if float((high - low).max()) <= 1:
        raise CannotRender(
            f"seed {seed}: the picture is one flat colour",
            hint="the checkpoint may predict v where epsilon was assumed, or the guidance is far too high",
            code=Cause.FLAT_PICTURE, seed=seed,
        )  # fmt: skip


def check_latents(latents: Tensor, *, seeds: list[int]) -> None:
    """Refuses latents that are no numbers. Raises: CannotRender: `not-a-number`, `facts["seed"]` names the first."""
    for seed, one in zip(seeds, latents, strict=True):
        if not bool(torch.isfinite(one).all()):
            raise CannotRender(
                f"seed {seed}: the model's output is no number",
                hint="render in another precision (`bfloat16` or `float32`)", code=Cause.NOT_A_NUMBER, seed=seed,
            )  # fmt: skip


NOISE_SPREAD = 12.0
"""Standard deviation of latents from which on the sampler has left the noise in them.

Sampling starts at 14.6 and ends near 1. Measured: trained models end between 0.7 and 5.5 from 8 steps of any sampler
on, random weights between 16.8 and 41.7.
"""
NOISE_LIKENESS = 0.4
"""Correlation of neighbouring latents above which they are shapes, however strong. Random weights reach 0.3."""
_NOISE_MIN_SIDE = 32
_NOISE_MIN_STEPS = 10


def noise_words(latents: Tensor, *, steps: int) -> str:
    """Why a picture drawn from noise alone, with these final latents (C, H, W), is still noise; "" where it is not.

    Says something only where it is certain: below 10 steps or 256 pixels samplers leave too much to chance.
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
    return "the picture is noise: the model did not take away the noise that sampling begins with"


def refuse_noise(latents: Tensor, *, seeds: list[int], steps: int) -> None:
    """Refuses latents that are still noise. Raises: CannotRender: `no-structure`, `facts["seed"]` names the first."""
    for seed, one in zip(seeds, latents, strict=True):
        if words := noise_words(one, steps=steps):
            raise CannotRender(
                f"seed {seed}: {words}",
                hint="the checkpoint's UNet is damaged, untrained or of another kind than it seems; --force keeps the "
                "picture", code=Cause.NO_STRUCTURE, seed=seed,
            )  # fmt: skip


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Out-of-memory inside becomes CannotRender (`out-of-memory`) that says what to do."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(what) from error
    except RuntimeError as error:
        # torch has no class for host memory that runs out, nor for what libraries under it say; these are their words
        if not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
        raise _out_of_memory(what) from error


def _out_of_memory(what: str) -> CannotRender:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return CannotRender(
        f"not enough memory while {what}",
        hint="make the picture (--size) or the batch (--batch-size) smaller; --low-vram needs less",
        code=Cause.OUT_OF_MEMORY,
        stage=what,
    )  # fmt: skip
