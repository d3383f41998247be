"""Converts and resizes pixels: images are (H, W, 3) uint8; masks are (H, W) uint8, white where to inpaint."""

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
    """One finished image.

    `sha256` is the digest of the image's pixels (row by row, RGB), not of a file, because a file's compression depends
    on library versions. `decoded_in` is the dtype in which the VAE decoded the image; `notes` describe any special
    treatment of the image.
    """

    pixels: Pixels = field(repr=False, compare=False)
    seed: int
    sha256: str
    decoded_in: str
    notes: tuple[str, ...] = ()

    def noted(self, note: str) -> "Picture":
        """Return a copy of the image with one more note for the user."""
        return replace(self, notes=(*self.notes, note))

    def to_image(self) -> Any:
        """Convert the pixels to a `PIL.Image.Image`."""
        # imported here, because importing Pillow takes 0.1 s and not every use of `pixels` needs it
        from PIL import Image

        return Image.fromarray(self.pixels)


def finished(pixels: Tensor, *, seed: int, rounding: str, decoded_in: str, notes: tuple[str, ...]) -> Picture:
    """Convert (3, H, W) in 0 … 1 to an image; `rounding` is "nearest" as in diffusers, "down" as in A1111's web UI."""
    array = np.ascontiguousarray(eight_bit(pixels, rounding).to("cpu").numpy())
    return picture_of(array, seed=seed, decoded_in=decoded_in, notes=notes)


def eight_bit(pixels: Tensor, rounding: str) -> Tensor:
    """Convert (…, 3, H, W) in 0 … 1 to (…, H, W, 3) uint8 on the same device; for `rounding`, see `finished`."""
    scaled = pixels.float().clamp(0, 1) * 255
    scaled = scaled.round() if rounding == "nearest" else scaled.floor()
    return scaled.movedim(-3, -1).to(torch.uint8)


def picture_of(array: Pixels, *, seed: int, decoded_in: str, notes: tuple[str, ...]) -> Picture:
    """Build an image from (H, W, 3) uint8 pixels, with the pixels' SHA-256."""
    data: Any = array
    return Picture(array, seed, hashlib.sha256(data.tobytes()).hexdigest(), decoded_in, notes)


def put_back(picture: Picture, kept: Callable[[Pixels], Pixels]) -> Picture:
    """Composite the preserved part of the start image over a rendered image, with the function `kept`."""
    array = np.ascontiguousarray(kept(picture.pixels))
    return replace(picture, pixels=array, sha256=hashlib.sha256(array.tobytes()).hexdigest())


def to_tensor(pixels: Pixels) -> Tensor:
    """Convert an image to (1, 3, H, W) float32 in -1 … 1, the input of a VAE."""
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 127.5 - 1


def resized(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Resize an image or mask with Lanczos; return it unchanged if it already has this size."""
    if pixels.shape[:2] == (height, width):
        return pixels
    from PIL import Image  # imported here, because Pillow is only needed if the size changes

    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def latent_mask(mask: NDArray[np.uint8], width: int, height: int) -> Tensor:
    """Shrink a mask to the latents' size, (1, 1, height, width), where 1 is inpainted and 0 is kept.

    Each value is the mean of the pixels that the latent covers, rounded to 0 or 1.
    """
    whole = torch.from_numpy(np.array(mask)).float()[None, None] / 255
    return torch.nn.functional.interpolate(whole, size=(height, width), mode="area").round()


def composite(painted: Tensor, original: Tensor, mask: NDArray[np.uint8], blur: int) -> Tensor:
    """Blend (3, H, W) tensors: `painted` where the mask is white, `original` where it is black. `blur` is in pixels."""
    from PIL import Image, ImageFilter  # imported here, because Pillow is only needed for inpainting

    soft = Image.fromarray(mask).filter(ImageFilter.GaussianBlur(blur)) if blur else Image.fromarray(mask)
    share = torch.from_numpy(np.array(soft)).float().to(painted.device) / 255
    return painted * share + original * (1 - share)
