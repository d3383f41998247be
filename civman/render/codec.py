"""Between pixels and latents: the VAE, kept from overflowing."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from civman.render.guard import memory_errors
from civman.render.loader import LoadedModel


@dataclass(frozen=True, slots=True)
class Decoded:
    """(B, 3, H, W) float32 in 0 … 1, the dtype that gave it, and what had to be done."""

    pixels: Tensor
    dtype: str
    notes: tuple[str, ...] = ()


@torch.no_grad()
def decode(model: LoadedModel, latents: Tensor) -> Decoded:
    """Pictures of latents (B, 4, h, w), one by one so that a batch costs no more memory than a picture.

    Where half precision overflows (SDXL's first VAE does), the whole is decoded again in single precision and said so.
    Values that are no numbers even then are handed on, for `guard.check_pixels` to refuse.
    """
    dtype = _dtype(model)
    with memory_errors("decoding the picture"):
        pixels = _decode(model, latents)
    if bool(torch.isfinite(pixels).all()) or dtype is torch.float32:
        return Decoded(pixels, _name(dtype))
    model.vae.to(torch.float32)
    try:
        with memory_errors("decoding the picture in single precision"):
            pixels = _decode(model, latents)
    finally:
        model.vae.to(dtype)
    return Decoded(pixels, "float32", (f"the VAE overflowed in {_name(dtype)}; decoded again in float32",))


@torch.no_grad()
def encode(model: LoadedModel, pixels: Tensor) -> Tensor:
    """Latents (B, 4, H/8, W/8) float32 of pictures in -1 … 1: the mean of what the VAE allows, so nothing is drawn.

    A1111 draws from the VAE's (narrow) distribution with a random generator of its own; the mean is repeatable.
    """
    with memory_errors("encoding the picture"):
        found = _encode(model, pixels)
        if not bool(torch.isfinite(found).all()) and _dtype(model) is not torch.float32:
            dtype = _dtype(model)
            model.vae.to(torch.float32)
            try:
                found = _encode(model, pixels)
            finally:
                model.vae.to(dtype)
    return found


def _encode(model: LoadedModel, pixels: Tensor) -> Tensor:
    vae: Any = model.vae
    rows = [vae.encode(one[None].to(model.device, _dtype(model))).latent_dist.mode().float() for one in pixels]
    return torch.cat(rows) * float(vae.config.scaling_factor)


def _decode(model: LoadedModel, latents: Tensor) -> Tensor:
    vae: Any = model.vae
    scaled = (latents / float(vae.config.scaling_factor)).to(_dtype(model))
    rows = [vae.decode(one[None], return_dict=False)[0].float() for one in scaled]
    return (torch.cat(rows) / 2 + 0.5).clamp(0, 1)


def _dtype(model: LoadedModel) -> torch.dtype:
    dtype: torch.dtype = next(model.vae.parameters()).dtype
    return dtype


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
