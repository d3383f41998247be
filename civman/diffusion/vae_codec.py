"""Encodes pixels to latents and decodes latents with the VAE, in single precision if half precision overflows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from civman.diffusion.guard import memory_errors
from civman.diffusion.uploads import sent
from civman.errors import CannotRender, Cause


class VaeHolder(Protocol):
    """An object with a VAE (diffusers' AutoencoderKL) and the device it computes on: a loaded model, or a pipeline."""

    @property
    def vae(self) -> Any:
        """The VAE, such as diffusers' AutoencoderKL."""
        ...

    @property
    def device(self) -> torch.device:
        """The device on which the VAE computes."""
        ...


@dataclass(frozen=True, slots=True)
class Decoded:
    """Decoded images (B, 3, H, W) float32 in 0 … 1, the dtype in which the VAE decoded them, and notes for the user."""

    pixels: Tensor
    dtype: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Encoded:
    """Encoded images: latents (B, 4, H/8, W/8) float32, and notes for the user."""

    latents: Tensor
    notes: tuple[str, ...] = ()


@torch.no_grad()
def decode(model: VaeHolder, latents: Tensor) -> Decoded:
    """Decode latents (B, 4, h, w) one at a time, so that a batch needs no more memory than one image.

    If half precision overflows (as in SDXL's first VAE), the whole batch is decoded again in single precision, which is
    recorded in a note. Values that are not finite even then are returned, and `guard.check_pixels` rejects them.
    """
    with memory_errors("decoding the image"):
        values, dtype = _finite(model, lambda: _decode(model, latents))
    return Decoded((values / 2 + 0.5).clamp(0, 1), _name(dtype), _overflowed(model, dtype, "decoded"))


@torch.no_grad()
def decodings(model: VaeHolder, latents: Tensor) -> Iterator[tuple[Decoded, Tensor | None]]:
    """Decode latents like `decode`, but let the caller decide whether single precision is needed.

    First yields the images and a boolean tensor () that is true if all values are finite. If it is false, the caller
    asks for the second and last pair: the images decoded in single precision, and None.
    """
    with memory_errors("decoding the image"):
        dtype = _dtype(model)
        values = _decode(model, latents)
        finite = None if dtype is torch.float32 else torch.isfinite(values).all()
        yield Decoded((values / 2 + 0.5).clamp(0, 1), _name(dtype)), finite
        del values, finite
        model.vae.to(torch.float32)
        try:
            values = _decode(model, latents)
        finally:
            model.vae.to(dtype)
        notes = _overflowed(model, torch.float32, "decoded")
        yield Decoded((values / 2 + 0.5).clamp(0, 1), _name(torch.float32), notes), None


@torch.no_grad()
def encode(model: VaeHolder, pixels: Tensor) -> Encoded:
    """Encode pixels in -1 … 1 as the mean of the VAE's distribution. No random numbers are drawn.

    A1111 samples from that (narrow) distribution instead, with a random generator whose state no image records.
    """
    # a VAE that `civman.diffusion.model_classes.construct` built without an encoder
    if getattr(model.vae, "encoder", model.vae) is None:
        raise CannotRender(
            "the VAE has only a decoder, so it cannot encode an image",
            hint="choose another VAE with --vae", code=Cause.MISSING_PART, part="vae",
        )  # fmt: skip
    with memory_errors("encoding the image"):
        latents, dtype = _finite(model, lambda: _encode(model, pixels))
    return Encoded(latents, _overflowed(model, dtype, "encoded"))


def _finite(model: VaeHolder, compute: Callable[[], Tensor]) -> tuple[Tensor, torch.dtype]:
    """Run the VAE; return its result and the dtype in which the result was computed.

    If the VAE's own dtype gives values that are not finite, the result is computed again in single precision.
    """
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
    if dtype is (own := _dtype(model)):
        return ()
    return (f"the VAE overflowed in {_name(own)}, so the image was {done} again in {_name(dtype)}",)


def folds_noise(vae: Any) -> bool:
    """Whether noise for a model with this VAE is drawn in folded form: each 2×2 square of latents becomes channels.

    ComfyUI and diffusers do this for Flux.2.
    """
    return hasattr(vae, "bn")


def latent_shape(vae: Any, width: int, height: int) -> tuple[int, int, int]:
    """Return (channels, rows, columns) of the latents of an image of this size in pixels."""
    channels = vae.config.z_dim if hasattr(vae.config, "z_dim") else vae.config.latent_channels
    return int(channels), height // 8, width // 8


def _affine(vae: Any, like: Tensor) -> tuple[Any, Any]:
    """Return the (shift, scale) that convert a VAE's output to a model's latents: (output − shift) · scale."""
    config = vae.config
    # a video VAE has a mean and a standard deviation for each channel
    if hasattr(config, "latents_mean") and config.latents_mean is not None:
        mean, deviation = (
            sent(torch.tensor(values, dtype=like.dtype), like.device).view(1, -1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        return mean, 1 / deviation
    if folds_noise(vae):  # each position in a square of 2×2 latents has a separate mean and standard deviation
        deviations = torch.sqrt(vae.bn.running_var.float() + config.batch_norm_eps)
        rows, columns = like.shape[-2] // 2, like.shape[-1] // 2
        mean, deviation = (
            sent(values.to(like.dtype), like.device).view(1, -1, 2, 2).repeat(1, 1, rows, columns)
            for values in (vae.bn.running_mean, deviations)
        )
        return mean, 1 / deviation
    return float(getattr(config, "shift_factor", None) or 0.0), float(config.scaling_factor)


def _has_frames(vae: Any) -> bool:
    return hasattr(vae.config, "temperal_downsample")


def _encode(model: VaeHolder, pixels: Tensor) -> Tensor:
    vae: Any = model.vae
    ready = [one[None].to(model.device, _dtype(model)) for one in pixels]
    if _has_frames(vae):
        own = torch.cat([vae.encode(one[:, :, None]).latent_dist.mode()[:, :, 0].float() for one in ready])
    else:
        own = torch.cat([vae.encode(one).latent_dist.mode().float() for one in ready])
    shift, scale = _affine(vae, own)
    scaled: Tensor = (own - shift) * scale if _shifts(shift) else own * scale
    return scaled


def _decode(model: VaeHolder, latents: Tensor) -> Tensor:
    vae: Any = model.vae
    shift, scale = _affine(vae, latents)
    scaled = (latents / scale + shift if _shifts(shift) else latents / scale).to(_dtype(model))
    if _has_frames(vae):
        return torch.cat([vae.decode(one[None, :, None], return_dict=False)[0][:, :, 0].float() for one in scaled])
    rows = [vae.decode(one[None], return_dict=False)[0].float() for one in scaled]
    return torch.cat(rows)


def _shifts(shift: Any) -> bool:
    """Whether latents are shifted; if not (Stable Diffusion), nothing may be added, since adding 0 changes −0 to 0."""
    return not isinstance(shift, float) or shift != 0


def _dtype(model: VaeHolder) -> torch.dtype:
    dtype: torch.dtype = next(model.vae.parameters()).dtype
    return dtype


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
