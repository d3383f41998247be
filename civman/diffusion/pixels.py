"""Pixels: from and to 8 bits, sizes, masks. Arrays are (H, W, 3) uint8, masks (H, W) uint8 with white to be painted."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Picture:
    """One finished picture. `sha256` is of the pixels (rows, RGB), not of a file: compressors differ by version.

    `decoded_in` is the dtype in which the VAE gave it; `notes` say what had to be done to get it.
    """

    pixels: Pixels = field(repr=False, compare=False)
    seed: int
    sha256: str
    decoded_in: str
    notes: tuple[str, ...] = ()

    def to_image(self) -> Any:
        """As a `PIL.Image.Image`."""
        from PIL import Image  # 0.1 s that a caller of `pixels` need not spend

        return Image.fromarray(self.pixels)


def finished(pixels: Tensor, *, seed: int, rounding: str, decoded_in: str, notes: tuple[str, ...]) -> Picture:
    """A picture from (3, H, W) in 0 … 1: `rounding` "nearest" as diffusers rounds, "down" as A1111's web UI does."""
    scaled = pixels.float().clamp(0, 1) * 255
    scaled = scaled.round() if rounding == "nearest" else scaled.floor()
    array = np.ascontiguousarray(scaled.permute(1, 2, 0).to("cpu", torch.uint8).numpy())
    return Picture(array, seed, hashlib.sha256(array.tobytes()).hexdigest(), decoded_in, notes)


def put_back(picture: Picture, kept: Callable[[Pixels], Pixels]) -> Picture:
    """The picture with what was kept of the one it was made from."""
    array = np.ascontiguousarray(kept(picture.pixels))
    return replace(picture, pixels=array, sha256=hashlib.sha256(array.tobytes()).hexdigest())


def to_tensor(pixels: Pixels) -> Tensor:
    """(1, 3, H, W) float32 in -1 … 1, what a VAE takes."""
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 127.5 - 1


def resized(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """The picture or mask at another size, by Lanczos; itself where the size is right."""
    if pixels.shape[:2] == (height, width):
        return pixels
    from PIL import Image  # only needed where something changes size

    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def latent_mask(mask: NDArray[np.uint8], width: int, height: int) -> Tensor:
    """(1, 1, height, width), 1 where latents are painted anew: the mean over each cell, rounded."""
    whole = torch.from_numpy(np.array(mask)).float()[None, None] / 255
    return torch.nn.functional.interpolate(whole, size=(height, width), mode="area").round()


def composite(painted: Tensor, original: Tensor, mask: NDArray[np.uint8], blur: int) -> Tensor:
    """`painted` where the mask is white, `original` where it is black, mixed over `blur` pixels; (3, H, W) each."""
    from PIL import Image, ImageFilter  # only inpainting needs it

    soft = Image.fromarray(mask).filter(ImageFilter.GaussianBlur(blur)) if blur else Image.fromarray(mask)
    share = torch.from_numpy(np.array(soft)).float().to(painted.device) / 255
    return painted * share + original * (1 - share)
