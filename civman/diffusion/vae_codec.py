"""Between pixels and latents: the VAE, kept from overflowing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from civman.diffusion.guard import memory_errors
from civman.errors import CannotRender, Cause


class VaeHolder(Protocol):
    """What has a VAE (diffusers' AutoencoderKL) and says where it computes: a loaded model, or a pipeline."""

    @property
    def vae(self) -> Any:
        """Diffusers' AutoencoderKL."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the VAE computes."""
        ...


@dataclass(frozen=True, slots=True)
class Decoded:
    """(B, 3, H, W) float32 in 0 … 1, the dtype that gave it, and what had to be done."""

    pixels: Tensor
    dtype: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Encoded:
    """(B, 4, H/8, W/8) float32, and what had to be done."""

    latents: Tensor
    notes: tuple[str, ...] = ()


@torch.no_grad()
def decode(model: VaeHolder, latents: Tensor) -> Decoded:
    """Pictures of latents (B, 4, h, w), one by one so that a batch costs no more memory than a picture.

    Where half precision overflows (SDXL's first VAE does), the whole is decoded again in single precision and said so.
    Values that are no numbers even then are handed on, for `guard.check_pixels` to refuse.
    """
    with memory_errors("decoding the picture"):
        values, dtype = _finite(model, lambda: _decode(model, latents))
    return Decoded((values / 2 + 0.5).clamp(0, 1), _name(dtype), _overflowed(model, dtype, "decoded"))


@torch.no_grad()
def encode(model: VaeHolder, pixels: Tensor) -> Encoded:
    """What pictures in -1 … 1 are as latents: the mean of what the VAE allows, so nothing is drawn.

    A1111 draws from the VAE's (narrow) distribution with a random generator whose state no picture records.
    """
    if getattr(model.vae, "encoder", model.vae) is None:  # see `civman.diffusion.model_classes.construct`
        raise CannotRender(
            "the VAE has only a decoder, so it cannot read a picture",
            hint="name another VAE with --vae", code=Cause.MISSING_PART, part="vae",
        )  # fmt: skip
    with memory_errors("encoding the picture"):
        latents, dtype = _finite(model, lambda: _encode(model, pixels))
    return Encoded(latents, _overflowed(model, dtype, "encoded"))


def _finite(model: VaeHolder, compute: Callable[[], Tensor]) -> tuple[Tensor, torch.dtype]:
    """The VAE's answer and the dtype that gave it: single precision where its own gives what is no number."""
    dtype = _dtype(model)
    found = compute()
    if dtype is torch.float32 or bool(torch.isfinite(found).all()):
        return found, dtype
    del found
    model.vae.to(torch.float32)
    try:
        return compute(), torch.float32
    finally:
        model.vae.to(dtype)


def _overflowed(model: VaeHolder, dtype: torch.dtype, done: str) -> tuple[str, ...]:
    own = _dtype(model)
    return () if dtype is own else (f"the VAE overflowed in {_name(own)}; {done} again in {_name(dtype)}",)


def _encode(model: VaeHolder, pixels: Tensor) -> Tensor:
    vae: Any = model.vae
    rows = [vae.encode(one[None].to(model.device, _dtype(model))).latent_dist.mode().float() for one in pixels]
    return torch.cat(rows) * float(vae.config.scaling_factor)


def _decode(model: VaeHolder, latents: Tensor) -> Tensor:
    vae: Any = model.vae
    scaled = (latents / float(vae.config.scaling_factor)).to(_dtype(model))
    rows = [vae.decode(one[None], return_dict=False)[0].float() for one in scaled]
    return torch.cat(rows)


def _dtype(model: VaeHolder) -> torch.dtype:
    dtype: torch.dtype = next(model.vae.parameters()).dtype
    return dtype


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
